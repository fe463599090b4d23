// Weight gradient: for each connection and tap the dot product of an output-gradient plane with a shifted input plane.
#pragma once

#include "conv/dot.h"
#include "conv/gather.h"
#include "conv/shared_grad.h"

namespace gossamer {
namespace {

// The connections, in one list for each output or, transposed, for each channel.
struct Lists {
    const int32_t* begin;  // of list l: begin[l] .. begin[l + 1]
    const int32_t* end;    // the other end of connection e, channel or output: end[e * entry]; ascending in a list
    i64 entry, lists, ends;
};

struct WeightGrad {
    const gossamer_conv* c;
    const float *grad_output, *input;
    float* grad_weight;
    Layout in, out;       // one pitch; `out` has zeros where `in` has columns that are no position
    Arrangement arrangement;
    i64 oh, ow, kernel, kernel_w;
    i64 band, bands, images, blocks;  // a block is `images` images (or image groups), one band
    i64 at_once;                      // of a block's images, those whose products are added up in registers
    i64 group;                        // images in one plane (images in lanes)
    i64 near;                         // ends of a list whose planes stay in the cache
    int column, columns;
    i64* offset;                      // [columns]
    Lists lists;
    bool by_channel;                  // where taps come one by one
    const Listener* listeners;
    bool out_in_place;                // the output gradient itself is
    float *in_planes, *out_planes;    // [image of block][channel]
    i64* counter;
};

void weight_grad_copy(const WeightGrad& w, i64 block, i64 item) {
    const gossamer_conv& c = *w.c;
    const i64 first = block / w.bands * w.images, y0 = block % w.bands * w.band;
    const i64 per_image = c.in_channels + (w.out_in_place ? 0 : c.out_channels), image = item / per_image;
    i64 ch = item % per_image;
    const i64 n = (first + image) * w.group;
    const bool is_in = ch < c.in_channels;
    if (!is_in) ch -= c.in_channels;
    const Layout& l = is_in ? w.in : w.out;
    float* to = is_in ? w.in_planes + image * c.in_channels * l.plane : w.out_planes + image * c.out_channels * l.plane;
    const i64 channels = is_in ? c.in_channels : c.out_channels, height = is_in ? c.in_h : w.oh, width = is_in ? c.in_w : w.ow;
    const i64 step_y = is_in ? c.stride_h : 1, step_x = is_in ? c.stride_w : 1;
    const float* src = (is_in ? w.input : w.grad_output) + n * channels * height * width;
    if (w.arrangement == kBatch)
        copy_batch(l, step_y, step_x, src, least(w.group, c.batch - n), channels, height, width, y0, ch, ch + 1, to);
    else
        copy_plane(l, step_y, step_x, src + ch * height * width, height, width, y0, to + ch * l.plane);
}

// Square kernels of which E connections at once fit in the registers: their weights follow each other, and so do the sums.
template <int KH, int E>
void weight_grad_square(const WeightGrad& w, Dot d, i64 first, i64 last, bool fresh) {
    i64 at[E * KH];
    d.at = at;
    for (; first + E <= last; first += E) {
        for (int s = 0; s < E * KH; s++) at[s] = w.c->indices[first + s / KH] * w.in.plane + w.offset[s % KH];
        dot_rows<KH, E * KH, KH>(d);
        put_sums(w.grad_weight + first * KH * KH, d.sums, E * KH * KH, fresh);
    }
    if constexpr (E > 1) weight_grad_square<KH, E - 1>(w, d, first, last, fresh);
}

// The columns of all these connections in turn, as many at once as there are registers for.
template <int KH>
void weight_grad_columns(const WeightGrad& w, Dot d, i64 first, i64 last, bool fresh) {
    constexpr int S = most_columns(KH);
    if constexpr (S >= KH)
        if (w.columns == KH) return weight_grad_square<KH, S / KH>(w, d, first, last, fresh);
    i64 at[S];
    float* to[S];
    d.at = at;
    int count = 0;
    for (i64 e = first; e < last; e++)
        for (int j = 0; j < w.columns; j++) {
            at[count] = w.c->indices[e] * w.in.plane + w.offset[j];
            to[count++] = w.grad_weight + e * w.kernel + j;
            if (count < S && (e + 1 < last || j + 1 < w.columns)) continue;
            dot_columns<KH>(d, count);
            for (int s = 0; s < count; s++)
                for (int i = 0; i < KH; i++) {
                    const float sum = d.sums[s * KH + i];
                    to[s][i * w.kernel_w] = fresh ? sum : to[s][i * w.kernel_w] + sum;
                }
            count = 0;
        }
}

// What all dot products of some images share.
Dot dots(const WeightGrad& w, i64 images, i64 rows) {
    Dot d;
    d.x_image = w.c->in_channels * w.in.plane;
    d.g_image = w.c->out_channels * w.out.plane;
    d.images = images;
    const bool run_on = w.arrangement == kFlat;  // rows follow each other, with zeros in the gaps of the output gradient
    d.rows = run_on ? 1 : rows;
    d.cols = run_on ? rows * w.out.pitch : w.ow * w.out.inner;
    d.pitch = w.in.pitch;
    d.g_pitch = w.out.pitch;
    return d;
}

// Connections [first, last) of output o.
void weight_grad_row(const WeightGrad& w, const float* in, const float* out, i64 o, i64 first, i64 last, i64 images, i64 y0, i64 rows, bool fresh) {
    const gossamer_conv& c = *w.c;
    float sums[64 + kLanes];
    Dot d = dots(w, images, rows);
    d.g = out + o * w.out.plane;
    d.x = in;
    d.top = (int)least(w.column - 1, most(0, -w.in.row_min - y0));
    d.bottom = (int)least(w.column - 1, most(0, y0 + w.in.row_min + rows + w.column - 1 - c.in_h));
    d.sums = sums;
    if (w.column == 3)
        weight_grad_columns<3>(w, d, first, last, fresh);
    else if (w.column == 5)
        weight_grad_columns<5>(w, d, first, last, fresh);
    else
        weight_grad_columns<7>(w, d, first, last, fresh);
}

// All taps, which are listed in the order of the weights, a few at a time, of E of a channel's listeners at once.
template <int E = kSharing>
void weight_grad_shared(const WeightGrad& w, Dot d, const float* out, i64 first, i64 last, bool fresh) {
    const int parts = (w.columns + kDotTaps - 1) / kDotTaps;
    for (; first + E <= last; first += E) {
        const float* gradients[E];
        for (int k = 0; k < E; k++) gradients[k] = out + w.listeners[first + k].output * w.out.plane;
        for (int part = 0; part < parts; part++) {
            const int t0 = w.columns * part / parts, taps = w.columns * (part + 1) / parts - t0;
            d.offset = w.offset + t0;
            dot_any<E>(d, taps, gradients);
            for (int k = 0; k < E; k++)
                put_sums(w.grad_weight + w.listeners[first + k].position * w.kernel + t0, d.sums + k * taps, taps, fresh);
        }
    }
    if constexpr (E > 1) weight_grad_shared<E - 1>(w, d, out, first, last, fresh);
}

// The transposed connections [first, last), all of one channel.
void weight_grad_channel(const WeightGrad& w, const float* in, const float* out, i64 channel, i64 first, i64 last, i64 images, i64 rows, bool fresh) {
    float sums[kSharing * kDotTaps + kLanes];
    Dot d = dots(w, images, rows);
    d.x = in + channel * w.in.plane;
    d.sums = sums;
    weight_grad_shared(w, d, out, first, last, fresh);
}

// The first connection of list l whose other end is `wanted` or a later one.
i64 first_from(const Lists& s, i64 l, i64 wanted) {
    i64 first = s.begin[l], last = s.begin[l + 1];
    if (wanted >= s.ends) return last;
    while (first < last) {
        const i64 middle = (first + last) / 2;
        if (s.end[middle * s.entry] < wanted)
            first = middle + 1;
        else
            last = middle;
    }
    return first;
}

// Images at once: as many as leave the planes of all the lists' ends in the cache, but enough of them to make up for adding the
// lanes of each sum. One thread copies just these, so that it finds them in its cache; several copy more of them, because
// they wait for each other after each block.
void choose_images(i64 groups, int threads, WeightGrad* w) {
    const i64 plane = w->by_channel ? w->out.plane : w->in.plane;  // of the other ends
    const i64 fit = kCacheFloats / (w->lists.ends * plane), many = divide_up(256 * kLanes, w->out.plane);
    w->at_once = w->bands > 1 ? 1 : least(groups, most(divide_up(32 * kLanes, w->out.plane), least(fit, many)));
    w->images = w->bands > 1 || threads == 1 ? w->at_once : least(round_up(groups, w->at_once), round_up(many, w->at_once));
    w->blocks = divide_up(groups, w->images) * w->bands;
    w->near = most(1, kCacheFloats / (w->at_once * plane));
}

void weight_grad_thread(void* argument, int thread, int threads) {
    const WeightGrad& w = *static_cast<const WeightGrad*>(argument);
    const gossamer_conv& c = *w.c;
    const i64 image_groups = divide_up(c.batch, w.group), channels = c.in_channels + (w.out_in_place ? 0 : c.out_channels);
    for (i64 block = 0; block < w.blocks; block++) {
        const i64 images = least(w.images, image_groups - block / w.bands * w.images);
        const i64 items = images * channels;
        for (i64 i = items * thread / threads; i < items * (thread + 1) / threads; i++) weight_grad_copy(w, block, i);
        if (thread == 0) *w.counter = 0;
        barrier();
        const i64 begun = block / w.bands * w.images, y0 = block % w.bands * w.band;
        const float* out = w.out_in_place ? w.grad_output + begun * c.out_channels * w.out.plane + y0 * w.ow : w.out_planes;
        const i64 rows = w.out_in_place ? least(w.band, w.oh - y0) : w.out.rows;
        const Lists& s = w.lists;
        const i64 parts = threads == 1 ? 1 : divide_up(threads * 4, s.lists), units = s.lists * parts;  // where lists are few
        const i64 chunk = threads == 1 ? units : divide_up(units, threads * 4);
        for (;;) {
            const i64 u0 = __atomic_fetch_add(w.counter, chunk, __ATOMIC_RELAXED), u1 = least(u0 + chunk, units);
            if (u0 >= units) break;
            for (i64 image = 0; image < images; image += w.at_once) {
                const float* x = w.in_planes + image * c.in_channels * w.in.plane;
                const float* g = out + image * c.out_channels * w.out.plane;
                const i64 now = least(w.at_once, images - image);
                const bool fresh = block == 0 && image == 0;
                for (i64 end = 0; end < s.ends; end += w.near)
                    for (i64 u = u0; u < u1; u++) {
                        const i64 l = u / parts, part = u % parts;
                        const i64 from = first_from(s, l, end), count = first_from(s, l, end + w.near) - from;
                        const i64 first = from + count * part / parts, last = from + count * (part + 1) / parts;
                        if (w.by_channel)
                            weight_grad_channel(w, x, g, l, first, last, now, rows, fresh);
                        else
                            weight_grad_row(w, x, g, l, first, last, now, y0, rows, fresh);
                    }
            }
        }
        barrier();
    }
}

// The layout is that of a forward pass's gather, which has no pointers here.
GatherPlan plan_weight_grad(const gossamer_conv& c) {
    GatherPlan p;
    p.g[0].dst = nullptr;
    describe_forward(c, p.g);
    p.connections = c.indptr[c.out_channels];
    plan_gather(&p, 1, true, false);
    const bool joined = c.stride_h == 1 && c.dil_h == 1 && (c.kernel_h == 3 || c.kernel_h == 5 || c.kernel_h == 7);
    if (joined && p.how.arrangement != kFlat) take_in_columns(p.g);
    return p;
}

// The sizes of everything, and its pieces of memory.
WeightGrad lay_out_weight_grad(const gossamer_conv& c, const GatherPlan& plan, int threads, Arena* arena, Transposed* transposed) {
    const Gather& g = plan.g[0];
    const Plan& p = plan.how;
    WeightGrad w = {};
    w.c = &c;
    w.oh = g.rows;
    w.ow = g.cols;
    w.kernel = g.kernel;
    w.kernel_w = g.kernel_w;
    w.offset = arena->take<i64>(g.columns);
    w.counter = arena->take<i64>(1);
    w.lists = {c.indptr, c.indices, 1, c.out_channels, c.in_channels};
    if (g.kernel > 1 && g.column == 1) {
        *transposed = take_transposed(c, arena);
        w.listeners = transposed->listeners;
        w.by_channel = true;
        w.lists = {transposed->begin, reinterpret_cast<const int32_t*>(transposed->listeners), sizeof(Listener) / sizeof(int32_t), c.in_channels, c.out_channels};
    }
    w.arrangement = p.arrangement;
    w.group = p.arrangement == kBatch ? p.group : 1;
    w.column = g.column;
    w.columns = g.columns;
    w.band = p.band;
    w.bands = p.bands;
    w.in = p.layout;
    w.out = w.in;
    w.out.row_min = w.out.col_min = 0;
    w.out.phases_x = w.out.phases_y = 1;
    w.out.rows = p.band;
    if (p.arrangement == kBatch) {
        w.out.cols = w.ow;
        w.out.pitch = w.ow * w.out.inner;
    }
    w.out.phase = w.out.rows * w.out.pitch;
    w.out.plane = round_up(w.out.phase, kLanes);
    choose_images(divide_up(c.batch, w.group), threads, &w);
    w.out_in_place = w.arrangement == kRows;
    if (w.out_in_place) {
        w.out.pitch = w.ow;
        w.out.plane = w.oh * w.ow;
    }
    w.in_planes = arena->take<float>(w.images * c.in_channels * w.in.plane + kSlack);
    w.out_planes = arena->take<float>((w.out_in_place ? 0 : w.images * c.out_channels * w.out.plane) + kSlack);
    return w;
}

int weight_grad(const gossamer_conv& c, const float* grad_output, const float* input, float* grad_weight, int threads, unsigned* ran) {
    threads = useful_threads(c, threads);
    if (c.kernel_h * c.kernel_w == 1) return GOSSAMER_BUILT(shared_weight_grad)(c, grad_output, input, grad_weight, threads, ran);
    const GatherPlan plan = plan_weight_grad(c);
    WeightGrad w;
    Transposed transposed;
    if (!in_scratch([&](Arena* arena) { w = lay_out_weight_grad(c, plan, threads, arena, &transposed); }).memory) return GOSSAMER_NO_MEMORY;
    w.grad_output = grad_output;
    w.input = input;
    w.grad_weight = grad_weight;
    if (w.by_channel) transpose_connections(c, nullptr, transposed);
    for (i64 j = 0; j < w.columns; j++) {
        const Tap tap = column_tap(plan.g[0], j);
        w.offset[j] = tap_offset(w.in, c.stride_h, c.stride_w, tap.row, tap.col);
    }
    fill_zero(w.in_planes + w.images * c.in_channels * w.in.plane, kSlack);  // read past the input's last row, times zero
    *ran = kernel_of(plan);
    parallel(threads, weight_grad_thread, &w);
    return GOSSAMER_OK;
}

}  // namespace
}  // namespace gossamer
