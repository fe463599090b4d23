// Small integer arithmetic that every kernel needs.
#pragma once

#include "simd/vec.h"

// What one file compiled for each instruction set gives to another: GOSSAMER_BUILT(f) is f_avx512 in the build of that name.
#define GOSSAMER_BUILT_OF(name, build) name##_##build
#define GOSSAMER_BUILT_IN(name, build) GOSSAMER_BUILT_OF(name, build)
#define GOSSAMER_BUILT(name) GOSSAMER_BUILT_IN(name, GOSSAMER_BUILD)

namespace gossamer {
namespace {

typedef int64_t i64;

GS_INLINE i64 least(i64 a, i64 b) { return a < b ? a : b; }
GS_INLINE i64 most(i64 a, i64 b) { return a > b ? a : b; }
GS_INLINE i64 divide_up(i64 a, i64 b) { return (a + b - 1) / b; }
GS_INLINE i64 round_up(i64 a, i64 b) { return divide_up(a, b) * b; }
GS_INLINE i64 modulo(i64 a, i64 b) { return ((a % b) + b) % b; }
GS_INLINE i64 floor_divide(i64 a, i64 b) { return (a - modulo(a, b)) / b; }

constexpr i64 kCacheFloats = 256 * 1024;  // 1 MiB: what a thread's share of planes should fit in (the level-2 cache)
constexpr i64 kStreamFloats = kCacheFloats;  // results from here on are stored past the caches
constexpr i64 kSlack = 512;               // floats that may be read, never used, after the last plane

}  // namespace
}  // namespace gossamer
