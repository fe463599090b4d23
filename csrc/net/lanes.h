// Operations on vectors that programs need besides those of simd/.
#pragma once

#include "simd/vec.h"

namespace {

#if defined(__AVX512F__)
GS_INLINE vec keep(vec a, const uint32_t* bits) { return _mm512_and_ps(a, _mm512_loadu_ps((const float*)bits)); }
GS_INLINE vec smaller(vec a, vec b) { return _mm512_min_ps(a, b); }
GS_INLINE vec product(vec a, vec b) { return _mm512_mul_ps(a, b); }
GS_INLINE vec quotient(vec a, vec b) { return _mm512_div_ps(a, b); }
#elif defined(__AVX2__)
GS_INLINE vec keep(vec a, const uint32_t* bits) { return _mm256_and_ps(a, _mm256_loadu_ps((const float*)bits)); }
GS_INLINE vec smaller(vec a, vec b) { return _mm256_min_ps(a, b); }
GS_INLINE vec product(vec a, vec b) { return _mm256_mul_ps(a, b); }
GS_INLINE vec quotient(vec a, vec b) { return _mm256_div_ps(a, b); }
#elif defined(__SSE2__)
GS_INLINE vec keep(vec a, const uint32_t* bits) { return _mm_and_ps(a, _mm_loadu_ps((const float*)bits)); }
GS_INLINE vec smaller(vec a, vec b) { return _mm_min_ps(a, b); }
GS_INLINE vec product(vec a, vec b) { return _mm_mul_ps(a, b); }
GS_INLINE vec quotient(vec a, vec b) { return _mm_div_ps(a, b); }
#else
GS_INLINE vec keep(vec a, const uint32_t* bits) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a), vld1q_u32(bits)));
}
GS_INLINE vec smaller(vec a, vec b) { return vminq_f32(a, b); }
GS_INLINE vec product(vec a, vec b) { return vmulq_f32(a, b); }
GS_INLINE vec quotient(vec a, vec b) { return vdivq_f32(a, b); }
#endif

}  // namespace
