// NEON, which every 64-bit ARM processor has.
#pragma once

#include <arm_neon.h>

namespace {

constexpr int kLanes = 4;
constexpr int kRegisters = 32;
constexpr bool kMasks = false;
typedef float32x4_t vec;
GS_INLINE vec zero() { return vdupq_n_f32(0); }
GS_INLINE vec broadcast(float x) { return vdupq_n_f32(x); }
GS_INLINE vec load(const float* p) { return vld1q_f32(p); }
GS_INLINE void store(float* p, vec a) { vst1q_f32(p, a); }
GS_INLINE void stream(float* p, vec a) { vst1q_f32(p, a); }
GS_INLINE void end_streams() {}
GS_INLINE vec pin(vec a) {
    __asm__("" : "+w"(a));
    return a;
}
GS_INLINE vec add(vec a, vec b) { return vaddq_f32(a, b); }
GS_INLINE vec max(vec a, vec b) { return vmaxq_f32(a, b); }
GS_INLINE vec min(vec a, vec b) { return vminq_f32(a, b); }
GS_INLINE vec fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
GS_INLINE float sum(vec a) { return vaddvq_f32(a); }

typedef uint32x4_t mask;
GS_INLINE mask beats(vec a, vec b) { return vornq_u32(vcgtq_f32(a, b), vceqq_f32(a, a)); }
GS_INLINE vec select(mask m, vec yes, vec no) { return vbslq_f32(m, yes, no); }
GS_INLINE void deinterleave(vec a, vec b, vec& even, vec& odd) {
    even = vuzp1q_f32(a, b);
    odd = vuzp2q_f32(a, b);
}
GS_INLINE void all_bytes(uint8_t* p, vec a) {
    const uint16x4_t pairs = vmovn_u32(vcvtq_u32_f32(a));
    const uint8x8_t bytes = vmovn_u16(vcombine_u16(pairs, pairs));
    __builtin_memcpy(p, &bytes, 4);
}

}  // namespace

#include "simd/by_array.h"
#include "simd/by_float.h"
