// Weight gradient of 1x1 kernels: every vector of an input plane meets the gradients of all outputs of a block, and every vector of
// those meets several inputs, so that a few loads serve many sums. All sums stay in registers over as many positions of as many
// images as leave the planes in the cache.
#include "base/arena.h"
#include "conv/dot.h"
#include "conv/layout.h"
#include "conv/problem.h"
#include "conv/shared.h"
#include "conv/shared_grad.h"
#include "base/parallel.h"

namespace gossamer {
namespace {

struct SharedDots {
    const gossamer_conv* c;
    Gather g;                        // the forward pass: where each position's input lies
    const float *grad_output, *input;
    float* grad_weight;
    int block;
    bool in_place;                   // else planes of several images are joined in copies, without gaps
    i64 area;
    i64 images, stretch;             // at once: images, and positions of each
    i64 steps;                       // until all have had their turn
    float *in_planes, *out_planes;   // copies, [channel][plane]
    i64 plane;
    i64* counter;
};

// Positions at hand: `length` floats of each of `images` images.
struct Stretch {
    const float *in, *out;
    i64 in_plane, out_plane, in_image, out_image, images, length;
    bool fresh;  // the first that the sums see
};

// How many inputs meet the gradients of a block at once: their sums, the gradients and an input fill the registers.
constexpr int most_inputs(int block) { return kRegisters == 32 ? (block == 4 ? 6 : block == 2 ? 8 : 6) : block == 4 ? 2 : block == 2 ? 4 : 8; }

// Adds to the sums of E inputs and B outputs, [output][input], meanwhile fetching the planes that come next.
template <int B, int E, bool ahead>
void dot_block(const Stretch& s, const float* const* in, const float* const* next_in, const float* out, const float* next_out, float* sums) {
    vec acc[B * E];
#pragma GCC unroll 32
    for (int i = 0; i < B * E; i++) acc[i] = zero();
    const float* x[E];
#pragma GCC unroll 8
    for (int k = 0; k < E; k++) x[k] = in[k];
    const auto add_vector = [&](i64 i, int lanes) {
        vec g[B];
#pragma GCC unroll 4
        for (int b = 0; b < B; b++) g[b] = pin(lanes == kLanes ? load(out + b * s.out_plane + i) : load_first(out + b * s.out_plane + i, lanes));
#pragma GCC unroll 8
        for (int k = 0; k < E; k++) {
            const vec in = pin(lanes == kLanes ? load(x[k] + i) : load_first(x[k] + i, lanes));
#pragma GCC unroll 4
            for (int b = 0; b < B; b++) acc[b * E + k] = fma(g[b], in, acc[b * E + k]);
        }
    };
    for (i64 n = 0; n < s.images; n++) {
        i64 i = 0;
        for (; i + kLanes <= s.length; i += kLanes) {
            if (ahead) {
#pragma GCC unroll 8
                for (int k = 0; k < E; k++) __builtin_prefetch(next_in[k] + n * s.in_image + i);
#pragma GCC unroll 4
                for (int b = 0; b < B; b++) __builtin_prefetch(next_out + n * s.out_image + b * s.out_plane + i);
            }
            add_vector(i, kLanes);
        }
        if (i < s.length) add_vector(i, (int)(s.length - i));
        out += s.out_image;
#pragma GCC unroll 8
        for (int k = 0; k < E; k++) x[k] += s.in_image;
    }
    sum_each<B * E>(acc, sums);
}

// The inputs [first, last) of a block, E at once.
template <int B, int E>
void dot_inputs(const SharedDots& d, const Stretch& s, i64 o, i64 first, i64 last) {
    const gossamer_conv& c = *d.c;
    const i64 row = c.indptr[o + 1] - c.indptr[o];
    float sums[B * E + kLanes];
    for (; first + E <= last; first += E) {
        const float *in[E], *next_in[E], *out = s.out + o * s.out_plane;
        const bool ends = first + E >= last;
        const float* const next_out = ends && o + B < c.out_channels ? out + B * s.out_plane : out;
        const int32_t* const index = c.indices + c.indptr[o] + first;
        for (int k = 0; k < E; k++) {
            in[k] = s.in + index[k] * s.in_plane;
            next_in[k] = s.in + index[first + E + k < last ? E + k : k] * s.in_plane;
        }
        if (d.in_place && B > 1)  // alone, an output loads a vector for each sum already
            dot_block<B, E, true>(s, in, next_in, out, next_out, sums);
        else
            dot_block<B, E, false>(s, in, next_in, out, next_out, sums);
        float* to = d.grad_weight + c.indptr[o] + first;
        for (int b = 0; b < B; b++, to += row) put_sums(to, sums + b * E, E, s.fresh);
    }
    if constexpr (E > 1) dot_inputs<B, E - 1>(d, s, o, first, last);
}

void dot_outputs(const SharedDots& d, const Stretch& s, i64 block) {
    const i64 o = block * d.block, count = d.c->indptr[o + 1] - d.c->indptr[o];
    switch (d.block) {
        case 4: return dot_inputs<4, most_inputs(4)>(d, s, o, 0, count);
        case 2: return dot_inputs<2, most_inputs(2)>(d, s, o, 0, count);
        default: return dot_inputs<1, most_inputs(1)>(d, s, o, 0, count);
    }
}

// One channel of one image, position after position.
void copy_points(const Gather& g, i64 image, i64 channel, float* to) {
    const float* const from = g.src + (image * g.channels + channel) * g.height * g.width;
    if (g.step_y == 1 && g.step_x == 1 && g.rows == g.height && g.cols == g.width && g.down.first == 0 && g.along.first == 0)
        return copy(to, from, g.rows * g.cols);
    for (i64 y = 0; y < g.rows; y++, to += g.cols) {
        const i64 row = y * g.step_y + g.down.first, left = g.along.first;
        const bool inside = row >= 0 && row < g.height;
        if (inside && g.step_x == 2 && left >= 0 && left + 2 * (g.cols - 1) < g.width) {
            copy_even(to, from + row * g.width + left, g.cols);
            continue;
        }
        for (i64 x = 0; x < g.cols; x++) {
            const i64 col = x * g.step_x + left;
            to[x] = inside && col >= 0 && col < g.width ? from[row * g.width + col] : 0.0f;
        }
    }
}

// A thread's share of the copies of the images from the first-th on.
void copy_images(const SharedDots& d, i64 first, i64 images, int thread, int threads) {
    const gossamer_conv& c = *d.c;
    const i64 channels = c.in_channels + c.out_channels, length = images * d.area;
    for (i64 i = channels * thread / threads; i < channels * (thread + 1) / threads; i++) {
        const bool in = i < c.in_channels;
        const i64 channel = in ? i : i - c.in_channels;
        float* const to = (in ? d.in_planes : d.out_planes) + channel * d.plane;
        for (i64 n = 0; n < images; n++)
            if (in)
                copy_points(d.g, first + n, channel, to + n * d.area);
            else
                copy(to + n * d.area, d.grad_output + ((first + n) * c.out_channels + channel) * d.area, d.area);
        fill_zero(to + length, d.plane - length);
    }
}

void shared_dots_thread(void* argument, int thread, int threads) {
    const SharedDots& d = *static_cast<const SharedDots*>(argument);
    const gossamer_conv& c = *d.c;
    const i64 blocks = c.out_channels / d.block, chunk = threads == 1 ? blocks : divide_up(blocks, threads * 4);
    i64* counter = d.counter;
    for (i64 n = 0; n < c.batch; n += d.images)
        for (i64 p = 0; p < d.area; p += d.stretch, counter++) {
            const i64 images = least(d.images, c.batch - n);
            Stretch s = {d.in_planes, d.out_planes, d.plane, d.plane, 0, 0, 1, round_up(images * d.area, kLanes), n == 0 && p == 0};
            if (d.in_place) {
                const i64 in = c.in_channels * d.area, out = c.out_channels * d.area;
                s = {d.input + n * in + p, d.grad_output + n * out + p, d.area, d.area, in, out, images, least(d.stretch, d.area - p), s.fresh};
            } else {
                copy_images(d, n, images, thread, threads);
            }
            barrier();  // also where nothing is copied: a block's sums are added to in one order
            for (;;) {
                const i64 first = __atomic_fetch_add(counter, chunk, __ATOMIC_RELAXED);
                if (first >= blocks) break;
                for (i64 block = first; block < least(first + chunk, blocks); block++) dot_outputs(d, s, block);
            }
            if (!d.in_place) barrier();
        }
}

// How the planes are taken, but not where they lie.
SharedDots plan_dots(const gossamer_conv& c) {
    SharedDots d = {};
    d.c = &c;
    d.block = block_of(c.indptr, c.indices, c.out_channels);
    describe_forward(c, &d.g);
    d.area = d.g.rows * d.g.cols;
    const bool plain = c.stride_h == 1 && c.stride_w == 1 && c.pad_h == 0 && c.pad_w == 0;
    // planes that do not begin on vectors are copied where they are small or read often
    d.in_place = plain && (d.area % kLanes == 0 || (d.area >= 10 * kLanes && c.indptr[c.out_channels] < 16 * d.block * c.in_channels));
    constexpr i64 shortest = 32 * kLanes;  // floats: fewer do not make up for adding the lanes of each sum
    if (d.in_place) {
        const i64 fit = most(shortest, kCacheFloats / c.in_channels);
        d.images = least(c.batch, most(1, fit / d.area));
        d.stretch = d.area > fit ? round_up(divide_up(d.area, divide_up(d.area, fit)), kLanes) : d.area;
    } else {
        const i64 fit = kCacheFloats / (c.in_channels + c.out_channels) / d.area;
        d.images = least(c.batch, most(divide_up(shortest, d.area), fit));
        d.stretch = d.area;
    }
    d.steps = divide_up(c.batch, d.images) * divide_up(d.area, d.stretch);
    d.plane = round_up(d.images * d.area, kLanes);
    return d;
}

unsigned kernels_of(const SharedDots& d) {
    return (d.block == 4 ? kSharedBy4 : d.block == 2 ? kSharedBy2 : 0u) | (d.in_place ? kKernelInPlace : kKernelLines);
}

}  // namespace

unsigned GOSSAMER_BUILT(shared_weight_grad_planned)(const gossamer_conv& c) { return kernels_of(plan_dots(c)); }

int GOSSAMER_BUILT(shared_weight_grad)(const gossamer_conv& c, const float* grad_output, const float* input, float* grad_weight, int threads,
                                       unsigned* ran) {
    SharedDots d = plan_dots(c);
    *ran = kernels_of(d);
    d.grad_output = grad_output;
    d.input = d.g.src = input;
    d.grad_weight = grad_weight;
    const auto lay_out = [&](Arena* arena) {
        d.counter = arena->take<i64>(d.steps);
        d.in_planes = arena->take<float>(d.in_place ? 0 : c.in_channels * d.plane);
        d.out_planes = arena->take<float>(d.in_place ? 0 : c.out_channels * d.plane);
    };
    if (!in_scratch(lay_out).memory) return GOSSAMER_NO_MEMORY;
    for (i64 i = 0; i < d.steps; i++) d.counter[i] = 0;
    parallel(threads, shared_dots_thread, &d);
    return GOSSAMER_OK;
}

}  // namespace gossamer
