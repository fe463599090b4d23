// The vector type of one instruction set, and the operations that the kernels are written in.
//
// Included only by sources that are compiled once for each line of isa.inc. Everything lives in an
// anonymous namespace: a symbol shared between those builds would let the linker keep the copy compiled for the
// newest instruction set and run it on an older processor.
//
// Each instruction set has in its own file, or takes from by_array.h and by_float.h:
//   kLanes, kRegisters         floats in a vector, vectors in the processor
//   kMasks                     whether a load or store of some lanes is as fast as one of all
//   vec, mask                  the types
//   zero, broadcast, load, store, add, fma (a * b + c), sum (of the lanes)
//   max, min                   where a is not a number b, where b is none no number
//   stream, end_streams        a store past the caches, to whole vectors; before others may read those
//   load_first, store_first    the first `count` lanes; the others are zero, or stay
//   load_lanes, store_lanes,   the lanes whose bits are set; the others are not touched, and zero in what is loaded or kept
//   keep_lanes
//   load_between               p[i] in lane i for first <= i < last, the lanes of `outside` elsewhere; no other p[i] is touched
//   pick                       p[index[i]] in lane i < count; zero where the index is negative, and in the other lanes
//   transpose                  of the kLanes x kLanes matrix whose rows are r[0..kLanes)
//   sum_each<N>                the sums of N vectors' lanes; to[] has room for whole vectors
//   beats, select              lanes where a > b, or a is not a number; lane by lane one of two
//   deinterleave, interleave   the even and the odd floats of a, then b; and back
//   store_spread, store_bytes  the first `count` lanes to p[0], p[2], p[4], ...; whole numbers from 0 to 255 as bytes
//   pin                        keeps a value in a register. Without it GCC turns a vector that is loaded once and used three
//                              times into three loads, and an address that steps through rows into an index computed anew for each
//   accumulate, broadcast_now, load_now (at base + scale * index + bytes, without an instruction to compute that)
//                              multiply-adds and loads that the compiler leaves in the order they are written in. Processors look
//                              only so far ahead, and less where two threads share a core: what waits for a load or for a sum
//                              should stand some way behind it. The compiler does not see what is loaded, so before_loads() goes
//                              between them and the stores before
#pragma once

#include <stdint.h>

#define GS_INLINE inline __attribute__((always_inline))

namespace {

GS_INLINE void pin(const float*& p) { __asm__("" : "+r"(p)); }
GS_INLINE void pin(const char*& p) { __asm__("" : "+r"(p)); }
GS_INLINE void pin(int64_t& p) { __asm__("" : "+r"(p)); }
GS_INLINE void before_loads() { __asm__ volatile("" : : : "memory"); }

}  // namespace

#if defined(__AVX512F__)
#include "simd/avx512.h"
#elif defined(__AVX2__)
#include "simd/avx2.h"
#elif defined(__SSE2__)
#include "simd/sse2.h"
#elif defined(__ARM_NEON)
#include "simd/neon.h"
#else
#error "gossamer: no vector unit known for this processor (x86-64 and aarch64 are supported)"
#endif

namespace {

GS_INLINE vec load_between(const float* p, int first, int last) { return load_between(p, first, last, zero()); }

}  // namespace
