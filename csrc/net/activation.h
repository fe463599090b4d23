// Functions of one number over rows of floats. Written for one element; the loops become vectors of the build's instruction set.
#pragma once

#include <math.h>

#include "base/arith.h"
#include "net/step.h"

namespace gossamer {
namespace {

GS_INLINE float bits_to_float(int32_t bits) {
    float made;
    __builtin_memcpy(&made, &bits, 4);
    return made;
}

// e^x to about 2 units in the last place; x is clamped to where the result is a normal number.
GS_INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    const float shifted = x * 1.44269504088896341f + magic, n = shifted - magic;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t whole;
    __builtin_memcpy(&whole, &shifted, 4);
    return p * bits_to_float((int32_t)((uint32_t)(whole - 0x4b400000 + 127) << 23));
}
GS_INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }
GS_INLINE float tangent(float x) { return 1.0f - 2.0f / (1.0f + exponential(2.0f * x)); }

// Abramowitz and Stegun 7.1.26: at most 1.5e-7 off.
GS_INLINE float error_function(float x) {
    const float a = x < 0 ? -x : x, t = 1.0f / (1.0f + 0.3275911f * a);
    const float p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    const float y = 1.0f - p * exponential(-a * a);
    return x < 0 ? -y : y;
}
GS_INLINE float clamp(float x, float lowest, float highest) {
    x = x < lowest ? lowest : x;
    return x > highest ? highest : x;
}
// log(1 + e^-a) for a >= 0
GS_INLINE float log_one_more(float a) { return log1pf(exponential(-a)); }

// x[i] = f(x[i]) for i < n
void activate(const Activation& f, float* __restrict x, i64 n) {
#define EACH(RESULT)                  \
    for (i64 i = 0; i < n; i++) {     \
        const float v = x[i];         \
        x[i] = (RESULT);              \
    }                                 \
    break;
    const float a = f.a, b = f.b, c = f.c;
    switch (f.function) {
        case Function::Clamp: EACH(clamp(v, a, b))
        case Function::LeakyRelu: EACH(v > 0 ? v : v * a)
        case Function::Elu: EACH(b * (v > 0 ? v : a * (exponential(c * v) - 1.0f)))
        case Function::Sigmoid: EACH(sigmoid(v))
        case Function::Tanh: EACH(tangent(v))
        case Function::Silu: EACH(v * sigmoid(v))
        case Function::Gelu: EACH(0.5f * v * (1.0f + error_function(v * 0.70710678118654752f)))
        case Function::GeluTanh: EACH(0.5f * v * (1.0f + tangent(0.79788456080286536f * (v + 0.044715f * v * v * v))))
        case Function::HardSigmoid: EACH(clamp(v + 3.0f, 0, 6) * (1.0f / 6.0f))
        case Function::HardSwish: EACH(v * clamp(v + 3.0f, 0, 6) * (1.0f / 6.0f))
        case Function::Softplus: EACH(v * a > b ? v : (v * a > 0 ? v * a + log_one_more(v * a) : log1pf(exponential(v * a))) / a)
        case Function::Mish: EACH(v * tangent(v > 0 ? v + log_one_more(v) : log1pf(exponential(v))))
        case Function::Exp: EACH(expf(v))
        case Function::Log: EACH(logf(v))
        case Function::Sqrt: EACH(sqrtf(v))
        case Function::Rsqrt: EACH(1.0f / sqrtf(v))
        case Function::Abs: EACH(fabsf(v))
        case Function::Neg: EACH(-v)
        case Function::Square: EACH(v * v)
        case Function::Reciprocal: EACH(1.0f / v)
        case Function::Erf: EACH(error_function(v))
        case Function::Sin: EACH(sinf(v))
        case Function::Cos: EACH(cosf(v))
        case Function::Floor: EACH(floorf(v))
        case Function::Softsign: EACH(v / (1.0f + fabsf(v)))
        case Function::LogSigmoid: EACH((v < 0 ? v : 0.0f) - log_one_more(fabsf(v)))
        default: break;
    }
#undef EACH
}

}  // namespace
}  // namespace gossamer
