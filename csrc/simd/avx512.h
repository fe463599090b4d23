// AVX-512 (F, VL, DQ, BW).
#pragma once

#include <immintrin.h>

namespace {

constexpr int kLanes = 16;
constexpr int kRegisters = 32;
constexpr bool kMasks = true;
typedef __m512 vec;
GS_INLINE vec zero() { return _mm512_setzero_ps(); }
GS_INLINE vec broadcast(float x) { return _mm512_set1_ps(x); }
GS_INLINE vec load(const float* p) { return _mm512_loadu_ps(p); }
GS_INLINE void store(float* p, vec a) { _mm512_storeu_ps(p, a); }
GS_INLINE void stream(float* p, vec a) { _mm512_stream_ps(p, a); }
GS_INLINE void end_streams() { _mm_sfence(); }
GS_INLINE vec pin(vec a) {
    __asm__("" : "+v"(a));
    return a;
}
GS_INLINE vec add(vec a, vec b) { return _mm512_add_ps(a, b); }
GS_INLINE vec max(vec a, vec b) { return _mm512_max_ps(a, b); }
GS_INLINE vec min(vec a, vec b) { return _mm512_min_ps(a, b); }
GS_INLINE vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
GS_INLINE vec load_lanes(const float* p, unsigned lanes) { return _mm512_maskz_loadu_ps((__mmask16)lanes, p); }
GS_INLINE void store_lanes(float* p, vec a, unsigned lanes) { _mm512_mask_storeu_ps(p, (__mmask16)lanes, a); }
GS_INLINE vec keep_lanes(vec a, unsigned lanes) { return _mm512_maskz_mov_ps((__mmask16)lanes, a); }
GS_INLINE vec load_first(const float* p, int count) {
    return _mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1u), p);
}
GS_INLINE void store_first(float* p, vec a, int count) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1u), a);
}
GS_INLINE float sum(vec a) {
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1)));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}

GS_INLINE void accumulate(vec& sum, vec a, vec b) { __asm__ volatile("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b)); }
GS_INLINE vec broadcast_now(const char* p) {
    vec a;
    __asm__ volatile("vbroadcastss %1, %0" : "=v"(a) : "m"(*reinterpret_cast<const float*>(p)));
    return a;
}
template <int scale, int bytes>
GS_INLINE vec load_now(const char* base, int64_t index) {
    vec a;
    if constexpr (scale == 0)
        __asm__ volatile("vmovups %c2(%1), %0" : "=v"(a) : "r"(base), "i"(bytes));
    else
        __asm__ volatile("vmovups %c3(%1,%2,%c4), %0" : "=v"(a) : "r"(base), "r"(index), "i"(bytes), "i"(scale));
    return a;
}

GS_INLINE vec pick(const float* p, const int32_t* index, int count) {
    const __m512i at = _mm512_maskz_loadu_epi32((__mmask16)((1u << count) - 1u), index);
    const __mmask16 inside = _mm512_mask_cmpge_epi32_mask((__mmask16)((1u << count) - 1u), at, _mm512_setzero_si512());
    return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), inside, at, p, 4);
}

GS_INLINE void transpose(vec r[kLanes]) {
    __m512 t[16], u[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        u[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        u[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
        u[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        u[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_f32x4(u[i], u[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(u[i], u[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

template <int N>
GS_INLINE vec sums_of(const vec* a) {
    constexpr int pairs = (N + 1) / 2, fours = (N + 3) / 4, eights = (N + 7) / 8;
    vec b[pairs], c[fours], e[eights];
#pragma GCC unroll 8
    for (int i = 0; i < pairs; i++) {
        const vec x = a[2 * i], y = a[2 * i + 1 < N ? 2 * i + 1 : 2 * i];
        b[i] = add(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));
    }
#pragma GCC unroll 8
    for (int i = 0; i < fours; i++) {
        const vec x = b[2 * i], y = b[2 * i + 1 < pairs ? 2 * i + 1 : 2 * i];
        c[i] = add(_mm512_shuffle_ps(x, y, 0x44), _mm512_shuffle_ps(x, y, 0xee));
    }
#pragma GCC unroll 8
    for (int i = 0; i < eights; i++) {
        const vec x = c[2 * i], y = c[2 * i + 1 < fours ? 2 * i + 1 : 2 * i];
        e[i] = add(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
    }
    const vec x = e[0], y = e[eights - 1];
    return add(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
}

template <int N>
GS_INLINE void sum_each(const vec* a, float* to) {
    constexpr int now = N < kLanes ? N : kLanes;
    store(to, sums_of<now>(a));
    if constexpr (N > now) sum_each<N - now>(a + now, to + now);
}

typedef __mmask16 mask;
GS_INLINE mask beats(vec a, vec b) {
    return _kor_mask16(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q));
}
GS_INLINE vec select(mask m, vec yes, vec no) { return _mm512_mask_blend_ps(m, no, yes); }
GS_INLINE void deinterleave(vec a, vec b, vec& even, vec& odd) {
    const __m512i lanes = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    even = _mm512_permutex2var_ps(a, lanes, b);
    odd = _mm512_permutex2var_ps(a, _mm512_add_epi32(lanes, _mm512_set1_epi32(1)), b);
}
GS_INLINE void interleave(vec even, vec odd, vec& a, vec& b) {
    const __m512i lanes = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    a = _mm512_permutex2var_ps(even, lanes, odd);
    b = _mm512_permutex2var_ps(even, _mm512_add_epi32(lanes, _mm512_set1_epi32(8)), odd);
}
GS_INLINE void store_spread(float* p, vec a, int count) {
    const __m512i lanes = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const uint32_t wanted = 0x55555555u & (uint32_t)((1ull << (2 * count)) - 1);
    _mm512_mask_storeu_ps(p, (__mmask16)wanted, _mm512_permutexvar_ps(lanes, a));
    _mm512_mask_storeu_ps(p + 16, (__mmask16)(wanted >> 16), _mm512_permutexvar_ps(_mm512_add_epi32(lanes, _mm512_set1_epi32(8)), a));
}
GS_INLINE vec load_between(const float* p, int first, int last, vec outside) {
    return _mm512_mask_loadu_ps(outside, (__mmask16)((1u << last) - (1u << first)), p);
}
GS_INLINE void store_bytes(uint8_t* p, vec a, int count) {
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a));
    if (count == kLanes)
        _mm_storeu_si128((__m128i*)p, bytes);
    else
        _mm_mask_storeu_epi8(p, (__mmask16)((1u << count) - 1u), bytes);
}

}  // namespace
