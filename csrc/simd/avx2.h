// AVX2 and FMA.
#pragma once

#include <immintrin.h>

namespace {

constexpr int kLanes = 8;
constexpr int kRegisters = 16;
constexpr bool kMasks = false;
typedef __m256 vec;
GS_INLINE vec zero() { return _mm256_setzero_ps(); }
GS_INLINE vec broadcast(float x) { return _mm256_set1_ps(x); }
GS_INLINE vec load(const float* p) { return _mm256_loadu_ps(p); }
GS_INLINE void store(float* p, vec a) { _mm256_storeu_ps(p, a); }
GS_INLINE void stream(float* p, vec a) { _mm256_stream_ps(p, a); }
GS_INLINE void end_streams() { _mm_sfence(); }
GS_INLINE vec pin(vec a) {
    __asm__("" : "+x"(a));
    return a;
}
GS_INLINE vec add(vec a, vec b) { return _mm256_add_ps(a, b); }
GS_INLINE vec max(vec a, vec b) { return _mm256_max_ps(a, b); }
GS_INLINE vec min(vec a, vec b) { return _mm256_min_ps(a, b); }
GS_INLINE vec fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
GS_INLINE __m256i first(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
GS_INLINE __m256i spread_bits(unsigned lanes) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)lanes), bit), bit);
}
GS_INLINE vec load_lanes(const float* p, unsigned lanes) { return _mm256_maskload_ps(p, spread_bits(lanes)); }
GS_INLINE void store_lanes(float* p, vec a, unsigned lanes) { _mm256_maskstore_ps(p, spread_bits(lanes), a); }
GS_INLINE vec keep_lanes(vec a, unsigned lanes) { return _mm256_and_ps(a, _mm256_castsi256_ps(spread_bits(lanes))); }
GS_INLINE vec load_first(const float* p, int count) { return _mm256_maskload_ps(p, first(count)); }
GS_INLINE void store_first(float* p, vec a, int count) { _mm256_maskstore_ps(p, first(count), a); }
GS_INLINE float sum(vec a) {
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}

typedef __m256 mask;
GS_INLINE mask beats(vec a, vec b) { return _mm256_or_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ), _mm256_cmp_ps(a, a, _CMP_UNORD_Q)); }
GS_INLINE vec select(mask m, vec yes, vec no) { return _mm256_blendv_ps(no, yes, m); }
GS_INLINE vec in_order(vec a) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(a), 0xd8)); }
GS_INLINE void deinterleave(vec a, vec b, vec& even, vec& odd) {
    even = in_order(_mm256_shuffle_ps(a, b, 0x88));
    odd = in_order(_mm256_shuffle_ps(a, b, 0xdd));
}
GS_INLINE vec load_between(const float* p, int from, int last, vec outside) {
    const __m256i inside = _mm256_andnot_si256(first(from), first(last));
    return _mm256_blendv_ps(outside, _mm256_maskload_ps(p, inside), _mm256_castsi256_ps(inside));
}
GS_INLINE void all_bytes(uint8_t* p, vec a) {
    const __m256i whole = _mm256_cvtps_epi32(a);
    const __m128i pairs = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64((__m128i*)p, _mm_packus_epi16(pairs, pairs));
}

}  // namespace

#include "simd/by_array.h"
