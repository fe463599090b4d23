// SSE2, which every x86-64 processor has.
#pragma once

#include <emmintrin.h>

namespace {

constexpr int kLanes = 4;
constexpr int kRegisters = 16;
constexpr bool kMasks = false;
typedef __m128 vec;
GS_INLINE vec zero() { return _mm_setzero_ps(); }
GS_INLINE vec broadcast(float x) { return _mm_set1_ps(x); }
GS_INLINE vec load(const float* p) { return _mm_loadu_ps(p); }
GS_INLINE void store(float* p, vec a) { _mm_storeu_ps(p, a); }
GS_INLINE void stream(float* p, vec a) { _mm_stream_ps(p, a); }
GS_INLINE void end_streams() { _mm_sfence(); }
GS_INLINE vec pin(vec a) {
    __asm__("" : "+x"(a));
    return a;
}
GS_INLINE vec add(vec a, vec b) { return _mm_add_ps(a, b); }
GS_INLINE vec max(vec a, vec b) { return _mm_max_ps(a, b); }
GS_INLINE vec min(vec a, vec b) { return _mm_min_ps(a, b); }
GS_INLINE vec fma(vec a, vec b, vec c) { return _mm_add_ps(_mm_mul_ps(a, b), c); }
GS_INLINE float sum(vec a) {
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps(a, a, 1)));
}

typedef __m128 mask;
GS_INLINE mask beats(vec a, vec b) { return _mm_or_ps(_mm_cmpgt_ps(a, b), _mm_cmpunord_ps(a, a)); }
GS_INLINE vec select(mask m, vec yes, vec no) { return _mm_or_ps(_mm_and_ps(m, yes), _mm_andnot_ps(m, no)); }
GS_INLINE void deinterleave(vec a, vec b, vec& even, vec& odd) {
    even = _mm_shuffle_ps(a, b, 0x88);
    odd = _mm_shuffle_ps(a, b, 0xdd);
}
GS_INLINE void all_bytes(uint8_t* p, vec a) {
    const __m128i whole = _mm_cvtps_epi32(a), pairs = _mm_packs_epi32(whole, whole);
    const int bytes = _mm_cvtsi128_si32(_mm_packus_epi16(pairs, pairs));
    __builtin_memcpy(p, &bytes, 4);
}

}  // namespace

#include "simd/by_array.h"
#include "simd/by_float.h"
