#!/bin/sh
# tests/native/agree.c with the address and undefined-behaviour sanitizers, for the instruction sets of this x86-64 machine.
set -eu
cd "$(dirname "$0")/../.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
san='-g -fopenmp -fsanitize=address,undefined -fno-sanitize-recover=all'
build() {
    name=$1
    shift
    for source in conv pool norm; do
        g++ -std=gnu++17 -O1 -w $san "$@" -fno-exceptions "-DGOSSAMER_BUILD=$name" -Icsrc -c csrc/$source/$source.cpp -o "$out/$source.$name.o"
    done
}
build base
build avx2 -mavx2 -mfma
# The sanitizers need minutes and gigabytes for the AVX-512 tiles, whose loads are assembly, which they do not see: without.
(san=-fopenmp && build avx512 -mavx512f -mavx512vl -mavx512dq -mavx512bw -mfma)
g++ -std=gnu++17 -O1 $san '-DGOSSAMER_VERSION="asan"' -Icsrc -c csrc/dispatch.cpp -o "$out/dispatch.o"
g++ -std=gnu++17 -O1 $san -Icsrc -c csrc/base/parallel.cpp -o "$out/parallel.o"
gcc -std=c99 -O1 $san -Icsrc -c tests/native/agree.c -o "$out/agree.o"
g++ $san "$out"/*.o -lm -o "$out/agree"
for isa in base avx2 avx512; do
    GOSSAMER_ISA=$isa "$out/agree"
done
