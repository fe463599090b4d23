// Weight gradient: for each connection and tap the dot product of an output-gradient plane with a shifted input plane.
#pragma once

#include "gather.h"

namespace gossamer {
namespace {

struct WeightGrad {
    const gossamer_conv* c;
    const float *grad_output, *input;
    float* grad_weight;
    Layout in, out;       // one pitch; `out` has zeros where `in` has columns that are no position
    Shape shape;
    i64 oh, ow, kernel;
    i64 band, bands, images, blocks;  // a block is `images` images (or image groups), one band
    i64 group;                        // images in one plane (batch shape)
    i64 channel_block;
    int column, columns;
    const i64* offset;
    const int32_t* tap_weight;
    bool in_place;                    // the input itself is the planes: one tap, no padding, no stride
    bool out_in_place;                // the output gradient itself is
    float *in_planes, *out_planes;    // [image of block][channel]
    int32_t* cursor;                  // [out_channels] next connection, while channel blocks go by
    i64* counter;
};

struct Dot {
    const float *x, *g;     // planes of the first image
    i64 x_image, g_image;   // floats to the next image's planes
    i64 images, rows, cols; // rows of `cols` floats
    i64 pitch, g_pitch;     // floats from row to row
    const i64* offset;
    float* sums;            // [taps]
};

template <int T>
void dot_flat(const Dot& d) {
    vec acc[T];
#pragma GCC unroll 16
    for (int t = 0; t < T; t++) acc[t] = zero();
    i64 offset[T];
    for (int t = 0; t < T; t++) offset[t] = d.offset[t];
    for (i64 n = 0; n < d.images; n++) {
        const float* x = d.x + n * d.x_image;
        const float* g = d.g + n * d.g_image;
        for (i64 r = 0; r < d.rows; r++, x += d.pitch, g += d.g_pitch)
            for (i64 i = 0; i < d.cols; i += kLanes) {
                const vec gv = i + kLanes <= d.cols ? load(g + i) : load_first(g + i, (int)(d.cols - i));
#pragma GCC unroll 16
                for (int t = 0; t < T; t++) acc[t] = fma(gv, load(x + offset[t] + i), acc[t]);
            }
    }
#pragma GCC unroll 16
    for (int t = 0; t < T; t++) d.sums[t] = sum(acc[t]);
}

constexpr int kDotTaps = kRegisters == 32 ? 10 : 6;

void dot_any(Dot d, int taps) {
    for (int t = 0; t < taps;) {
        const int left = taps - t, parts = (left + kDotTaps - 1) / kDotTaps, take = (left + parts - 1) / parts;
        switch (take) {
            case 1: dot_flat<1>(d); break;
            case 2: dot_flat<2>(d); break;
            case 3: dot_flat<3>(d); break;
            case 4: dot_flat<4>(d); break;
            case 5: dot_flat<5>(d); break;
            case 6: dot_flat<6>(d); break;
#if defined(__AVX512F__) || defined(__ARM_NEON)
            case 7: dot_flat<7>(d); break;
            case 8: dot_flat<8>(d); break;
            case 9: dot_flat<9>(d); break;
            case 10: dot_flat<10>(d); break;
#endif
        }
        t += take;
        d.offset += take;
        d.sums += take;
    }
}

// E connections of one output that have one tap each.
template <int E>
void dot_points(const Dot& d, const float* const* planes) {
    vec acc[E];
    const float* x[E];
#pragma GCC unroll 8
    for (int k = 0; k < E; k++) {
        acc[k] = zero();
        x[k] = planes[k] + d.offset[0];
    }
    for (i64 n = 0; n < d.images; n++) {
        const float* g = d.g + n * d.g_image;
        i64 i = 0;
        for (; i + kLanes <= d.cols; i += kLanes) {
            const vec gv = load(g + i);
#pragma GCC unroll 8
            for (int k = 0; k < E; k++) acc[k] = fma(gv, load(x[k] + i), acc[k]);
        }
        if (i < d.cols) {
            const int left = (int)(d.cols - i);
            const vec gv = load_first(g + i, left);
#pragma GCC unroll 8
            for (int k = 0; k < E; k++) acc[k] = fma(gv, load_first(x[k] + i, left), acc[k]);
        }
#pragma GCC unroll 8
        for (int k = 0; k < E; k++) x[k] += d.x_image;
    }
#pragma GCC unroll 8
    for (int k = 0; k < E; k++) d.sums[k] = sum(acc[k]);
}

// One input row against the kernel rows lo..hi, whose output-gradient rows are g[lo..hi].
template <int KH, int J>
GS_INLINE void dot_row(vec (&acc)[J][KH], const vec (&g)[KH], const float* x, const i64* offset, int lo, int hi) {
#pragma GCC unroll 8
    for (int j = 0; j < J; j++) {
        const vec in = pin(load(x + offset[j]));
#pragma GCC unroll 8
        for (int i = 0; i < KH; i++)
            if (i >= lo && i <= hi) acc[j][i] = fma(g[i], in, acc[j][i]);
    }
}

// J columns of KH taps; every loaded input vector meets the KH output-gradient rows it touches.
template <int KH, int J>
void dot_rows(const Dot& d) {
    vec acc[J][KH];
#pragma GCC unroll 8
    for (int j = 0; j < J; j++)
#pragma GCC unroll 8
        for (int i = 0; i < KH; i++) acc[j][i] = zero();
    i64 offset[J];
    for (int j = 0; j < J; j++) offset[j] = d.offset[j];
    for (i64 n = 0; n < d.images; n++)
        for (i64 v = 0; v < d.cols; v += kLanes) {
            const int lanes = (int)least(kLanes, d.cols - v);
            const float* x = d.x + n * d.x_image + v;
            const float* gr = d.g + n * d.g_image + v;
            vec g[KH];
#pragma GCC unroll 8
            for (int i = 0; i < KH; i++) g[i] = zero();
            i64 r = 0;
            if (d.rows >= KH) {
#pragma GCC unroll 8
                for (int p = 0; p < KH - 1; p++, x += d.pitch, gr += d.g_pitch) {
#pragma GCC unroll 8
                    for (int i = KH - 1; i > 0; i--) g[i] = g[i - 1];
                    g[0] = load_first(gr, lanes);
                    dot_row<KH, J>(acc, g, x, offset, 0, p);
                }
                r = KH - 1;
            }
            for (; r < d.rows; r++, x += d.pitch, gr += d.g_pitch) {
#pragma GCC unroll 8
                for (int i = KH - 1; i > 0; i--) g[i] = g[i - 1];
                g[0] = load_first(gr, lanes);
                dot_row<KH, J>(acc, g, x, offset, 0, KH - 1);
            }
#pragma GCC unroll 8
            for (int p = 1; p < KH; p++, x += d.pitch) {
#pragma GCC unroll 8
                for (int i = KH - 1; i > 0; i--) g[i] = g[i - 1];
                dot_row<KH, J>(acc, g, x, offset, p, KH - 1);
            }
        }
#pragma GCC unroll 8
    for (int j = 0; j < J; j++)
#pragma GCC unroll 8
        for (int i = 0; i < KH; i++) d.sums[j * KH + i] = sum(acc[j][i]);
}

template <int KH, int J>
void dot_columns(Dot d, int columns) {
    int j = 0;
    for (; j + J <= columns; j += J, d.offset += J, d.sums += J * KH) dot_rows<KH, J>(d);
    for (; j < columns; j++, d.offset++, d.sums += KH) dot_rows<KH, 1>(d);
}

void dot_joined(const Dot& d, int column, int columns) {
    constexpr bool many = kRegisters == 32;
    if (column == 3) dot_columns<3, many ? 3 : 2>(d, columns);
    if (column == 5) dot_columns<5, many ? 5 : 1>(d, columns);
    if (column == 7) dot_columns<7, many ? 3 : 1>(d, columns);
}

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
    if (w.shape == kBatch)
        copy_batch(l, step_y, step_x, src, least(w.group, c.batch - n), channels, height, width, y0, ch, ch + 1, to);
    else
        copy_plane(l, step_y, step_x, src + ch * height * width, height, width, y0, to + ch * l.plane);
}

void weight_grad_row(const WeightGrad& w, const float* in, const float* out, i64 o, i64 first, i64 last, i64 images, i64 rows, bool fresh) {
    const gossamer_conv& c = *w.c;
    float sums[64];
    Dot d;
    d.g = out + o * w.out.plane;
    d.x_image = c.in_channels * w.in.plane;
    d.g_image = c.out_channels * w.out.plane;
    d.images = images;
    const bool run_on = w.shape == kFlat;  // rows follow each other, with zeros in the gaps of the output gradient
    d.rows = run_on ? 1 : rows;
    d.cols = run_on ? w.out.plane : w.ow * w.out.inner;
    d.pitch = w.in.pitch;
    d.g_pitch = w.out.pitch;
    if (w.kernel == 1) {
        d.offset = w.offset;
        d.sums = sums;
        for (i64 e = first; e < last;) {
            const int count = last - e >= 6 ? 6 : last - e >= 2 ? 2 : 1;
            const float* planes[6];
            for (int k = 0; k < count; k++) planes[k] = in + c.indices[e + k] * w.in.plane;
            if (count == 6)
                dot_points<6>(d, planes);
            else if (count == 2)
                dot_points<2>(d, planes);
            else
                dot_points<1>(d, planes);
            for (int k = 0; k < count; k++) w.grad_weight[e + k] = fresh ? sums[k] : w.grad_weight[e + k] + sums[k];
            e += count;
        }
        return;
    }
    for (i64 e = first; e < last; e++) {
        d.x = in + c.indices[e] * w.in.plane;
        float* to = w.grad_weight + e * w.kernel;
        const int per = 64 / w.column;
        for (int j = 0; j < w.columns; j += per) {
            const int columns = (int)least(per, w.columns - j);
            d.offset = w.offset + j;
            d.sums = sums;
            if (w.column == 1)
                dot_any(d, columns);
            else
                dot_joined(d, w.column, columns);
            const int32_t* place = w.tap_weight + j * w.column;
            for (int t = 0; t < columns * w.column; t++) to[place[t]] = fresh ? sums[t] : to[place[t]] + sums[t];
        }
    }
}

void weight_grad_thread(void* argument, int thread, int threads) {
    const WeightGrad& w = *static_cast<const WeightGrad*>(argument);
    const gossamer_conv& c = *w.c;
    const i64 image_groups = divide_up(c.batch, w.group), channels = c.in_channels + (w.out_in_place ? 0 : c.out_channels);
    i64 items = 0;
    for (i64 block = 0; block < w.blocks; block++) {
        const i64 images = least(w.images, image_groups - block / w.bands * w.images);
        items = w.in_place ? 0 : images * channels;
        for (i64 i = items * thread / threads; i < items * (thread + 1) / threads; i++) weight_grad_copy(w, block, i);
        if (thread == 0) *w.counter = 0;
        barrier();
        const i64 begun = block / w.bands * w.images, y0 = block % w.bands * w.band;
        const float* in = w.in_place ? w.input + begun * c.in_channels * w.in.plane : w.in_planes;
        const float* out = w.out_in_place ? w.grad_output + begun * c.out_channels * w.out.plane + y0 * w.ow : w.out_planes;
        const i64 rows = w.out_in_place ? least(w.band, w.oh - y0) : w.out.rows;
        const i64 chunk = most(1, divide_up(c.out_channels, threads * 8));
        for (;;) {
            const i64 o0 = __atomic_fetch_add(w.counter, chunk, __ATOMIC_RELAXED), o1 = least(o0 + chunk, c.out_channels);
            if (o0 >= c.out_channels) break;
            for (i64 o = o0; o < o1; o++) w.cursor[o] = c.indptr[o];
            for (i64 channel = w.channel_block;; channel += w.channel_block) {
                for (i64 o = o0; o < o1; o++) {
                    i64 last = w.cursor[o];
                    while (last < c.indptr[o + 1] && c.indices[last] < channel) last++;
                    weight_grad_row(w, in, out, o, w.cursor[o], last, images, rows, block == 0);
                    w.cursor[o] = (int32_t)last;
                }
                if (channel >= c.in_channels) break;
            }
        }
        barrier();
    }
}

bool weight_grad_joined(const gossamer_conv& c) {
    return c.stride_h == 1 && c.dil_h == 1 && (c.kernel_h == 3 || c.kernel_h == 5 || c.kernel_h == 7);
}

int weight_grad(const gossamer_conv& c, const float* grad_output, const float* input, float* grad_weight, int threads) {
    threads = useful_threads(c, threads);
    Gather g;
    describe_forward(c, &g);
    WeightGrad w;
    w.c = &c;
    w.grad_output = grad_output;
    w.input = input;
    w.grad_weight = grad_weight;
    w.oh = g.rows;
    w.ow = g.cols;
    w.kernel = g.kernel;
    const i64 tables = round_up(5 * g.kernel + c.out_channels + 2, kLanes) + kLanes;
    i64 floats = 0;
    for (int pass = 0; pass < 2; pass++) {
        float* memory = scratch(tables + floats);
        if (!memory) return GOSSAMER_NO_MEMORY;
        i64* offset = reinterpret_cast<i64*>(memory);
        w.counter = offset + g.kernel;
        w.cursor = reinterpret_cast<int32_t*>(w.counter + 1);
        g.tap_row = w.cursor + c.out_channels;
        g.tap_col = g.tap_row + g.kernel;
        g.tap_weight = g.tap_col + g.kernel;
        forward_taps(c, weight_grad_joined(c), &g);
        Plan p = make_plan(g, 1, true);
        if (p.shape != kRows) forward_taps(c, false, &g);
        w.shape = p.shape;
        w.group = p.shape == kBatch ? p.group : 1;
        w.column = g.column;
        w.columns = g.columns;
        w.offset = offset;
        w.tap_weight = g.tap_weight;
        w.band = p.band;
        w.bands = p.bands;
        w.in = p.layout;
        for (int j = 0; j < g.columns; j++) offset[j] = tap_offset(w.in, g.step_y, g.step_x, g.tap_row[j], g.tap_col[j]);
        w.out = w.in;
        w.out.row_min = w.out.col_min = 0;
        w.out.phases_x = w.out.phases_y = 1;
        w.out.rows = p.band;
        if (p.shape == kBatch) {
            w.out.cols = w.ow;
            w.out.pitch = w.ow * w.out.inner;
        }
        w.out.phase = w.out.rows * w.out.pitch;
        w.out.plane = round_up(w.out.phase, kLanes);
        const i64 groups = divide_up(c.batch, w.group);
        w.images = w.bands > 1 ? 1 : least(groups, divide_up(256 * kLanes, w.out.plane));
        w.blocks = divide_up(groups, w.images) * w.bands;
        w.channel_block = most(1, kCacheFloats / (w.images * w.in.plane));
        w.in_place = g.kernel == 1 && c.stride_h == 1 && c.stride_w == 1 && c.pad_h == 0 && c.pad_w == 0;
        w.out_in_place = w.in_place || w.shape == kRows;
        if (w.shape == kRows) {
            w.out.pitch = w.ow;
            w.out.plane = w.oh * w.ow;
        }
        if (w.in_place) {
            offset[0] = 0;
            w.shape = kFlat;
            w.group = w.bands = 1;
            w.band = w.oh;
            w.in.plane = w.out.plane = c.in_h * c.in_w;
            w.images = least(c.batch, divide_up(256 * kLanes, w.in.plane));
            w.blocks = divide_up(c.batch, w.images);
            w.channel_block = most(1, kCacheFloats / (w.images * w.in.plane));
        }
        w.in_planes = memory + tables;
        w.out_planes = w.in_planes + w.images * c.in_channels * w.in.plane + kSlack;
        floats = w.images * ((w.in_place ? 0 : c.in_channels * w.in.plane) + (w.out_in_place ? 0 : c.out_channels * w.out.plane)) + 2 * kSlack;
    }
    if (!w.in_place) fill_zero(w.out_planes - kSlack, kSlack);  // read past the input's last row, times zero
    parallel(threads, weight_grad_thread, &w);
    return GOSSAMER_OK;
}

}  // namespace
}  // namespace gossamer
