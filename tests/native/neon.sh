#!/bin/sh
# Builds the library and tests/native/agree.c for 64-bit ARM and runs them under qemu. Debian: apt install g++-aarch64-linux-gnu qemu-user
set -eu
cd "$(dirname "$0")/../.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
cxx=aarch64-linux-gnu-g++
version='-DGOSSAMER_VERSION="neon"'
for source in conv pool norm; do
    $cxx -std=gnu++17 -O2 -w -fopenmp -fno-exceptions -DGOSSAMER_BUILD=base -Icsrc -c csrc/$source/$source.cpp -o "$out/$source.o"
done
$cxx -std=gnu++17 -O2 -fopenmp "$version" -Icsrc -c csrc/dispatch.cpp -o "$out/dispatch.o"
$cxx -std=gnu++17 -O2 -fopenmp -Icsrc -c csrc/base/parallel.cpp -o "$out/parallel.o"
aarch64-linux-gnu-gcc -std=c99 -O1 -Wall -Wextra -Icsrc -c tests/native/agree.c -o "$out/agree.o"
$cxx -static -fopenmp "$out"/*.o -lm -o "$out/agree"
qemu-aarch64 "$out/agree"
