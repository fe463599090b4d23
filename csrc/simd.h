// The vector type of one instruction set, and the dozen operations the kernels are written in.
//
// Included only by sparse_conv.cpp, which is compiled once for each line of isa.inc. Everything lives in an
// anonymous namespace: a symbol shared between those builds would let the linker keep the copy compiled for the
// newest instruction set and run it on an older processor.
#pragma once

#include <stdint.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define GS_INLINE inline __attribute__((always_inline))

namespace {

// Keeps a value in a register. Without it GCC turns a vector that is loaded once and used three times into three loads,
// and an address that steps through rows into an index computed anew for each.
#if defined(__x86_64__) && defined(__GNUC__)
#define GS_PIN "+v"
#elif defined(__aarch64__) && defined(__GNUC__)
#define GS_PIN "+w"
#endif
#if !defined(__AVX512F__) && defined(__x86_64__)
#undef GS_PIN
#define GS_PIN "+x"
#endif

#if defined(__AVX512F__)

constexpr int kLanes = 16;
constexpr int kRegisters = 32;
typedef __m512 vec;
GS_INLINE vec zero() { return _mm512_setzero_ps(); }
GS_INLINE vec broadcast(float x) { return _mm512_set1_ps(x); }
GS_INLINE vec load(const float* p) { return _mm512_loadu_ps(p); }
GS_INLINE void store(float* p, vec a) { _mm512_storeu_ps(p, a); }
GS_INLINE void stream(float* p, vec a) { _mm512_stream_ps(p, a); }
GS_INLINE vec add(vec a, vec b) { return _mm512_add_ps(a, b); }
GS_INLINE vec max(vec a, vec b) { return _mm512_max_ps(a, b); }
GS_INLINE vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
GS_INLINE vec load_first(const float* p, int count) {
    return _mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1u), p);
}
GS_INLINE vec load_between(const float* p, int first, int last) {  // zero outside; p[i] is touched for first <= i < last
    return _mm512_maskz_loadu_ps((__mmask16)((1u << last) - (1u << first)), p);
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

#elif defined(__AVX2__)

constexpr int kLanes = 8;
constexpr int kRegisters = 16;
typedef __m256 vec;
GS_INLINE vec zero() { return _mm256_setzero_ps(); }
GS_INLINE vec broadcast(float x) { return _mm256_set1_ps(x); }
GS_INLINE vec load(const float* p) { return _mm256_loadu_ps(p); }
GS_INLINE void store(float* p, vec a) { _mm256_storeu_ps(p, a); }
GS_INLINE void stream(float* p, vec a) { _mm256_stream_ps(p, a); }
GS_INLINE vec add(vec a, vec b) { return _mm256_add_ps(a, b); }
GS_INLINE vec max(vec a, vec b) { return _mm256_max_ps(a, b); }
GS_INLINE vec fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
GS_INLINE __m256i first(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
GS_INLINE vec load_first(const float* p, int count) { return _mm256_maskload_ps(p, first(count)); }
GS_INLINE void store_first(float* p, vec a, int count) { _mm256_maskstore_ps(p, first(count), a); }
GS_INLINE float sum(vec a) {
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}

#elif defined(__SSE2__)

constexpr int kLanes = 4;
constexpr int kRegisters = 16;
typedef __m128 vec;
GS_INLINE vec zero() { return _mm_setzero_ps(); }
GS_INLINE vec broadcast(float x) { return _mm_set1_ps(x); }
GS_INLINE vec load(const float* p) { return _mm_loadu_ps(p); }
GS_INLINE void store(float* p, vec a) { _mm_storeu_ps(p, a); }
GS_INLINE void stream(float* p, vec a) { _mm_stream_ps(p, a); }
GS_INLINE vec add(vec a, vec b) { return _mm_add_ps(a, b); }
GS_INLINE vec max(vec a, vec b) { return _mm_max_ps(a, b); }
GS_INLINE vec fma(vec a, vec b, vec c) { return _mm_add_ps(_mm_mul_ps(a, b), c); }
GS_INLINE vec load_first(const float* p, int count) {
    float t[4] = {0, 0, 0, 0};
    for (int i = 0; i < count; i++) t[i] = p[i];
    return _mm_loadu_ps(t);
}
GS_INLINE void store_first(float* p, vec a, int count) {
    float t[4];
    _mm_storeu_ps(t, a);
    for (int i = 0; i < count; i++) p[i] = t[i];
}
GS_INLINE float sum(vec a) {
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps(a, a, 1)));
}

#elif defined(__ARM_NEON)

constexpr int kLanes = 4;
constexpr int kRegisters = 32;
typedef float32x4_t vec;
GS_INLINE vec zero() { return vdupq_n_f32(0); }
GS_INLINE vec broadcast(float x) { return vdupq_n_f32(x); }
GS_INLINE vec load(const float* p) { return vld1q_f32(p); }
GS_INLINE void store(float* p, vec a) { vst1q_f32(p, a); }
GS_INLINE void stream(float* p, vec a) { vst1q_f32(p, a); }
GS_INLINE vec add(vec a, vec b) { return vaddq_f32(a, b); }
GS_INLINE vec max(vec a, vec b) { return vmaxq_f32(a, b); }
GS_INLINE vec fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
GS_INLINE vec load_first(const float* p, int count) {
    float t[4] = {0, 0, 0, 0};
    for (int i = 0; i < count; i++) t[i] = p[i];
    return vld1q_f32(t);
}
GS_INLINE void store_first(float* p, vec a, int count) {
    float t[4];
    vst1q_f32(t, a);
    for (int i = 0; i < count; i++) p[i] = t[i];
}
GS_INLINE float sum(vec a) { return vaddvq_f32(a); }

#else
#error "gossamer: no vector unit known for this processor (x86-64 and aarch64 are supported)"
#endif

GS_INLINE vec pin(vec a) {
    __asm__("" : GS_PIN(a));
    return a;
}
GS_INLINE void pin(const float*& p) { __asm__("" : "+r"(p)); }

#if !defined(__AVX512F__)
GS_INLINE vec load_between(const float* p, int first, int last) {  // zero outside; p[i] is touched for first <= i < last
    float t[kLanes];
    for (int i = 0; i < kLanes; i++) t[i] = i >= first && i < last ? p[i] : 0.0f;
    return load(t);
}
#endif

// Transposes the kLanes x kLanes matrix whose rows are r[0..kLanes).
#if defined(__AVX512F__)
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
#else
GS_INLINE void transpose(vec r[kLanes]) {
    float a[kLanes * kLanes], b[kLanes * kLanes];
    for (int i = 0; i < kLanes; i++) store(a + i * kLanes, r[i]);
    for (int i = 0; i < kLanes; i++)
        for (int j = 0; j < kLanes; j++) b[j * kLanes + i] = a[i * kLanes + j];
    for (int i = 0; i < kLanes; i++) r[i] = load(b + i * kLanes);
}
#endif

}  // namespace
