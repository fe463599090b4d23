// The vector type of one instruction set, and the dozen operations the kernels are written in.
//
// Included only by sources that are compiled once for each line of isa.inc. Everything lives in an
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
GS_INLINE void end_streams() { _mm_sfence(); }
GS_INLINE vec add(vec a, vec b) { return _mm512_add_ps(a, b); }
GS_INLINE vec max(vec a, vec b) { return _mm512_max_ps(a, b); }
GS_INLINE vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
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

#elif defined(__AVX2__)

constexpr int kLanes = 8;
constexpr int kRegisters = 16;
typedef __m256 vec;
GS_INLINE vec zero() { return _mm256_setzero_ps(); }
GS_INLINE vec broadcast(float x) { return _mm256_set1_ps(x); }
GS_INLINE vec load(const float* p) { return _mm256_loadu_ps(p); }
GS_INLINE void store(float* p, vec a) { _mm256_storeu_ps(p, a); }
GS_INLINE void stream(float* p, vec a) { _mm256_stream_ps(p, a); }
GS_INLINE void end_streams() { _mm_sfence(); }
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
GS_INLINE void end_streams() { _mm_sfence(); }
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
GS_INLINE void end_streams() {  }
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
GS_INLINE void pin(const char*& p) { __asm__("" : "+r"(p)); }
GS_INLINE void pin(int64_t& p) { __asm__("" : "+r"(p)); }

// Loads and multiply-adds that the compiler leaves in the order they are written in. Processors look only so far ahead, and less
// where two threads share a core: what waits for a load or for a sum should stand some way behind it. The compiler does not see
// what is loaded, so before_loads() goes between them and the stores before.
GS_INLINE void before_loads() { __asm__ volatile("" : : : "memory"); }
#if defined(__AVX512F__)
GS_INLINE void accumulate(vec& sum, vec a, vec b) { __asm__ volatile("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b)); }
GS_INLINE vec broadcast_now(const char* p) {
    vec a;
    __asm__ volatile("vbroadcastss %1, %0" : "=v"(a) : "m"(*reinterpret_cast<const float*>(p)));
    return a;
}
// At base + scale * index + bytes, without an instruction to compute that.
template <int scale, int bytes>
GS_INLINE vec load_now(const char* base, int64_t index) {
    vec a;
    if constexpr (scale == 0)
        __asm__ volatile("vmovups %c2(%1), %0" : "=v"(a) : "r"(base), "i"(bytes));
    else
        __asm__ volatile("vmovups %c3(%1,%2,%c4), %0" : "=v"(a) : "r"(base), "r"(index), "i"(bytes), "i"(scale));
    return a;
}
#else
GS_INLINE void accumulate(vec& sum, vec a, vec b) { sum = fma(a, b, sum); }
GS_INLINE vec broadcast_now(const char* p) { return pin(broadcast(*reinterpret_cast<const float*>(p))); }
template <int scale, int bytes>
GS_INLINE vec load_now(const char* base, int64_t index) {
    return pin(load(reinterpret_cast<const float*>(base + scale * index + bytes)));
}
#endif

// p[index[i]] in lane i < count; zero where the index is negative, and in the other lanes.
#if defined(__AVX512F__)
GS_INLINE vec pick(const float* p, const int32_t* index, int count) {
    const __m512i at = _mm512_maskz_loadu_epi32((__mmask16)((1u << count) - 1u), index);
    const __mmask16 inside = _mm512_mask_cmpge_epi32_mask((__mmask16)((1u << count) - 1u), at, _mm512_setzero_si512());
    return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), inside, at, p, 4);
}
#else
GS_INLINE vec pick(const float* p, const int32_t* index, int count) {
    float t[kLanes];
    for (int i = 0; i < kLanes; i++) t[i] = i < count && index[i] >= 0 ? p[index[i]] : 0.0f;
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

// ---------------------------------------------------------------------------------------------------------------------
// What max-pooling and strided convolutions need besides.

#if defined(__AVX512F__)

typedef __mmask16 mask;
GS_INLINE mask beats(vec a, vec b) {  // lanes where a > b, or a is not a number
    return _kor_mask16(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q));
}
GS_INLINE vec select(mask m, vec yes, vec no) { return _mm512_mask_blend_ps(m, no, yes); }
GS_INLINE void deinterleave(vec a, vec b, vec& even, vec& odd) {  // the even and the odd floats of a, then b
    const __m512i lanes = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    even = _mm512_permutex2var_ps(a, lanes, b);
    odd = _mm512_permutex2var_ps(a, _mm512_add_epi32(lanes, _mm512_set1_epi32(1)), b);
}
GS_INLINE void interleave(vec even, vec odd, vec& a, vec& b) {  // a, then b: even and odd floats in turn
    const __m512i lanes = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    a = _mm512_permutex2var_ps(even, lanes, odd);
    b = _mm512_permutex2var_ps(even, _mm512_add_epi32(lanes, _mm512_set1_epi32(8)), odd);
}
GS_INLINE void store_spread(float* p, vec a, int count) {  // the first `count` lanes to p[0], p[2], p[4], ...
    const __m512i lanes = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const uint32_t wanted = 0x55555555u & (uint32_t)((1ull << (2 * count)) - 1);
    _mm512_mask_storeu_ps(p, (__mmask16)wanted, _mm512_permutexvar_ps(lanes, a));
    _mm512_mask_storeu_ps(p + 16, (__mmask16)(wanted >> 16), _mm512_permutexvar_ps(_mm512_add_epi32(lanes, _mm512_set1_epi32(8)), a));
}
GS_INLINE vec load_between(const float* p, int first, int last, vec outside) {  // p[i] is touched for first <= i < last
    return _mm512_mask_loadu_ps(outside, (__mmask16)((1u << last) - (1u << first)), p);
}
GS_INLINE void store_bytes(uint8_t* p, vec a, int count) {  // the first `count` lanes, whole numbers from 0 to 255
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a));
    if (count == kLanes)
        _mm_storeu_si128((__m128i*)p, bytes);
    else
        _mm_mask_storeu_epi8(p, (__mmask16)((1u << count) - 1u), bytes);
}

#else

#if defined(__AVX2__)

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

#elif defined(__SSE2__)

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

#else

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

#endif

#if !defined(__AVX2__)
GS_INLINE vec load_between(const float* p, int first, int last, vec outside) {
    float t[kLanes];
    store(t, outside);
    for (int i = first; i < last; i++) t[i] = p[i];
    return load(t);
}
#endif

GS_INLINE void interleave(vec even, vec odd, vec& a, vec& b) {
    float t[2 * kLanes], e[kLanes], o[kLanes];
    store(e, even);
    store(o, odd);
    for (int i = 0; i < kLanes; i++) t[2 * i] = e[i], t[2 * i + 1] = o[i];
    a = load(t);
    b = load(t + kLanes);
}

GS_INLINE void store_spread(float* p, vec a, int count) {
    float t[kLanes];
    store(t, a);
    for (int i = 0; i < count; i++) p[2 * i] = t[i];
}

GS_INLINE void store_bytes(uint8_t* p, vec a, int count) {
    if (count == kLanes) return all_bytes(p, a);
    uint8_t t[kLanes];
    all_bytes(t, a);
    for (int i = 0; i < count; i++) p[i] = t[i];
}

#endif

GS_INLINE vec load_between(const float* p, int first, int last) { return load_between(p, first, last, zero()); }

}  // namespace
