// Batch normalisation of planes. Compiled once for each line of isa.inc, under the rules of conv/conv.cpp: no STL,
// everything in the anonymous namespace but the one table at the end.
//
// A channel belongs to one thread. Its floats come in pieces, which are summed in float32 and joined in float64.
#include "base/arith.h"
#include "base/parallel.h"
#include "kernels.h"

namespace gossamer {
namespace {

constexpr i64 kPieceFloats = 4096;

// Floats of one channel: `length` of each of `images` images, the first at `at`, `step` apart.
struct Piece {
    i64 at, images, step, length;
};

template <class Body>
GS_INLINE void pieces(const gossamer_norm& n, i64 channel, Body body) {
    const i64 images = most(1, kPieceFloats / n.area), step = n.channels * n.area;
    for (i64 i = 0; i < n.batch; i += images)
        for (i64 x = 0; x < n.area; x += kPieceFloats)
            body(Piece{i * step + channel * n.area + x, least(images, n.batch - i), step, least(kPieceFloats, n.area - x)});
}

struct Sums {
    double a, b;
};

// term(at, lanes, a, b) for each vector of a piece; it adds the vector's shares to the sums a and b.
template <class Term>
GS_INLINE Sums sums(const Piece& p, Term term) {
    vec a[4] = {zero(), zero(), zero(), zero()}, b[4] = {zero(), zero(), zero(), zero()};
    for (i64 i = 0; i < p.images; i++) {
        i64 x = p.at + i * p.step;
        const i64 last = x + p.length;
        for (; x + 4 * kLanes <= last; x += 4 * kLanes)
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++) term(x + k * kLanes, kLanes, a[k], b[k]);
        for (; x + kLanes <= last; x += kLanes) term(x, kLanes, a[0], b[0]);
        if (x < last) term(x, (int)(last - x), a[1], b[1]);
    }
    return {sum(add(add(a[0], a[1]), add(a[2], a[3]))), sum(add(add(b[0], b[1]), add(b[2], b[3])))};
}

// Whether the result is so large that it is stored past the caches, and on whole vectors.
bool streams(const gossamer_norm& n, const float* to) {
    return n.batch * n.channels * n.area >= kStreamFloats && n.area % kLanes == 0 && (uintptr_t)to % sizeof(vec) == 0;
}

// value(at, lanes) for each vector of a channel goes to `to`, past the caches if `past`.
template <class Value>
GS_INLINE void fill(const gossamer_norm& n, i64 channel, bool past, float* to, Value value) {
    const i64 step = n.channels * n.area;
    for (i64 i = 0; i < n.batch; i++) {
        i64 x = i * step + channel * n.area;
        const i64 last = x + n.area;
        if (past)
            for (; x < last; x += kLanes) stream(to + x, value(x, kLanes));
        for (; x + kLanes <= last; x += kLanes) store(to + x, value(x, kLanes));
        if (x < last) store_first(to + x, value(x, (int)(last - x)), (int)(last - x));
    }
}

// The lanes that are there, and `outside` in the others.
GS_INLINE vec some(const float* p, int lanes, float outside) {
    return lanes == kLanes ? load(p) : load_between(p, 0, lanes, broadcast(outside));
}

// The gradient of max(0, y) at y, given that of the result; where y is not a number it passes, as in PyTorch.
template <bool relu>
GS_INLINE vec through(vec y, vec grad) {
    return relu ? select(beats(y, zero()), grad, zero()) : grad;
}

struct Call {
    const gossamer_norm& n;
    const float *grad_output, *input, *scale, *shift;
    float epsilon;
    float *mean, *variance, *output, *grad_input, *grad_scale, *grad_shift;
};

double inverse_deviation(const Call& c, i64 channel) { return 1 / __builtin_sqrt((double)c.variance[channel] + c.epsilon); }

// Sums of differences from `near`, the mean of what came before (of the first piece, at its beginning): one pass, and
// nothing cancels that the variance of the whole would not hide.
void moments(const Call& c, i64 channel) {
    const float* x = c.input;
    double count = 0, mean = 0, squares = 0;
    pieces(c.n, channel, [&](const Piece& p) {
        const double floats = (double)(p.images * p.length);
        if (count == 0) mean = sums(p, [&](i64 at, int lanes, vec& a, vec&) { a = add(a, some(x + at, lanes, 0)); }).a / floats;
        const float near = (float)mean;
        const vec minus = broadcast(-near);
        const Sums s = sums(p, [&](i64 at, int lanes, vec& a, vec& b) {
            const vec d = add(some(x + at, lanes, near), minus);
            a = add(a, d);
            b = fma(d, d, b);
        });
        const double own = near + s.a / floats, away = own - mean;
        squares += s.b - s.a * s.a / floats + away * away * floats * count / (count + floats);
        count += floats;
        mean += away * floats / count;
    });
    c.mean[channel] = (float)mean;
    c.variance[channel] = (float)(squares > 0 ? squares / count : squares * 0);
}

template <bool relu>
GS_INLINE void normalise(const Call& c, i64 channel, bool past) {
    const float* x = c.input;
    const vec minus = broadcast(-c.mean[channel]), shift = broadcast(c.shift ? c.shift[channel] : 0);
    const vec factor = broadcast((float)((c.scale ? c.scale[channel] : 1) * inverse_deviation(c, channel)));
    fill(c.n, channel, past, c.output, [&](i64 at, int lanes) {
        const vec y = fma(add(some(x + at, lanes, 0), minus), factor, shift);
        return relu ? max(zero(), y) : y;  // of the two the second where that is not a number
    });
}

template <bool relu>
void train(const Call& c, i64 channel) {
    moments(c, channel);
    normalise<relu>(c, channel, streams(c.n, c.output));
}

template <bool relu>
void evaluate(const Call& c, i64 channel) {
    normalise<relu>(c, channel, false);  // what is read is in the caches then
}

// With g the gradient, d = input - mean, r = 1 / deviation and M the channel's floats:
// grad_shift = sum g, grad_scale = r sum g d, grad_input = scale r (g - grad_shift / M - d r grad_scale / M).
// After a ReLU, g is what passes it: the output is computed anew, exactly as `normalise` did, to see where.
template <bool relu>
void gradient(const Call& c, i64 channel) {
    const float *x = c.input, *g = c.grad_output, mean = c.mean[channel];
    const double r = inverse_deviation(c, channel), factor = (c.scale ? c.scale[channel] : 1) * r;
    const vec minus = broadcast(-mean), for_g = broadcast((float)factor), above = broadcast(c.shift ? c.shift[channel] : 0);
    double shift = 0, product = 0;
    pieces(c.n, channel, [&](const Piece& p) {
        const Sums s = sums(p, [&](i64 at, int lanes, vec& a, vec& b) {
            const vec d = add(some(x + at, lanes, mean), minus);
            const vec v = through<relu>(fma(d, for_g, above), some(g + at, lanes, 0));
            a = add(a, v);
            b = fma(v, d, b);
        });
        shift += s.a, product += s.b;
    });
    const double floats = (double)(c.n.batch * c.n.area);
    c.grad_shift[channel] = (float)shift;
    c.grad_scale[channel] = (float)(product * r);
    const vec for_d = broadcast((float)(-factor * r * r * product / floats));
    const vec rest = broadcast((float)(-factor * shift / floats));
    fill(c.n, channel, streams(c.n, c.grad_input), c.grad_input, [&](i64 at, int lanes) {
        const vec d = add(some(x + at, lanes, 0), minus);
        return fma(through<relu>(fma(d, for_g, above), some(g + at, lanes, 0)), for_g, fma(d, for_d, rest));
    });
}

template <void (*body)(const Call&, i64)>
void channels(void* argument, int thread, int threads) {
    const Call& c = *static_cast<const Call*>(argument);
    const i64 last = c.n.channels * (thread + 1) / threads;
    for (i64 channel = c.n.channels * thread / threads; channel < last; channel++) body(c, channel);
    end_streams();
}

// A thread is not worth waking for less than about 30,000 floats.
int useful_threads(const gossamer_norm& n, int threads) {
    return (int)least(least(threads, n.channels), 1 + n.batch * n.channels * n.area / 32768);
}

void batch_norm(const gossamer_norm& n, const float* input, const float* scale, const float* shift, float epsilon,
                bool relu, float* mean, float* variance, float* output, int threads) {
    Call c = {n, nullptr, input, scale, shift, epsilon, mean, variance, output, nullptr, nullptr, nullptr};
    parallel(useful_threads(n, threads), relu ? channels<train<true>> : channels<train<false>>, &c);
}

void normalise(const gossamer_norm& n, const float* mean, const float* variance, const float* scale, const float* shift,
               float epsilon, bool relu, float* values, int threads) {
    Call c = {n, nullptr, values, scale, shift, epsilon, const_cast<float*>(mean), const_cast<float*>(variance),
              values, nullptr, nullptr, nullptr};
    parallel(useful_threads(n, threads), relu ? channels<evaluate<true>> : channels<evaluate<false>>, &c);
}

void batch_norm_grad(const gossamer_norm& n, const float* grad_output, const float* input, const float* scale, const float* shift,
                     const float* mean, const float* variance, float epsilon, bool relu, float* grad_input, float* grad_scale,
                     float* grad_shift, int threads) {
    Call c = {n, grad_output, input, scale, shift, epsilon, const_cast<float*>(mean), const_cast<float*>(variance),
              nullptr, grad_input, grad_scale, grad_shift};
    parallel(useful_threads(n, threads), relu ? channels<gradient<true>> : channels<gradient<false>>, &c);
}

}  // namespace

#define GS_TABLE_(name) norm_##name
#define GS_TABLE(name) GS_TABLE_(name)
extern const NormKernels GS_TABLE(GOSSAMER_BUILD);
const NormKernels GS_TABLE(GOSSAMER_BUILD) = {batch_norm, batch_norm_grad, normalise};

}  // namespace gossamer
