// The problem both the forward pass and the input gradient are cast into, and how each becomes one.
#pragma once

#include "base/arena.h"
#include "kernels.h"

namespace gossamer {
namespace {

// The kernel rows (or columns) of a gather, from the one with the least source offset on.
struct Axis {
    i64 count;
    i64 first, step;        // source offset of the first, and from one to the next
    i64 index, index_step;  // which row of the kernel
};

struct Gather {
    i64 batch, channels, height, width;  // source planes
    i64 outputs, rows, cols;             // destination planes and the grid of positions computed in each
    i64 step_y, step_x;                  // source steps from one position to the next
    i64 dst_h, dst_w;                    // destination planes' true size; position (y, x) is element
    i64 dst_step_y, dst_step_x, dst_y, dst_x;  // (y * dst_step_y + dst_y, x * dst_step_x + dst_x)
    bool zeros;                          // the other floats of destination planes are zeros that this gather writes (one tap)
    const int32_t* begin;                // connections of destination plane o: begin[o] .. begin[o + 1]
    const int32_t* source;               // source channel of connection e: source[e * entry]
    const int32_t* position;             // where its weights lie: position[e * entry]; NULL: in order, at weight[e * entry]
    i64 entry;                           // 1, or 2 where listeners hold them
    const float* weight;
    i64 kernel;                          // weights of a connection
    const float* bias;
    bool relu;
    const float* src;
    float* dst;
    Axis down, along;                    // its taps: every row with every column
    i64 kernel_w;
    int column, columns;                 // taps taken together, one source row (stretches: one place) apart, and how many such columns
};

// A transposed connection. One store writes both, which is half of what transposing takes.
struct Listener {
    int32_t output;
    union {
        int32_t position;  // where its weights lie
        float weight;      // itself, of a kernel of one
    };
};

// begin [in_channels + 1], and as many listeners as there are connections.
struct Transposed {
    int32_t* begin;
    Listener* listeners;
};

Transposed take_transposed(const gossamer_conv& c, Arena* arena) {
    Transposed t;
    t.begin = arena->take<int32_t>(c.in_channels + 1);
    t.listeners = arena->take<Listener>(c.indptr[c.out_channels]);
    return t;
}

// For each input channel the outputs that listen to it, in ascending order. Weights are read of kernels of one alone.
void transpose_connections(const gossamer_conv& c, const float* weight, const Transposed& t) {
    int32_t* const begin = t.begin;
    const bool single = c.kernel_h * c.kernel_w == 1;
    for (i64 i = 0; i <= c.in_channels; i++) begin[i] = 0;
    const int32_t connections = c.indptr[c.out_channels];
    for (int32_t e = 0; e < connections; e++) begin[c.indices[e] + 1]++;
    for (i64 i = 0; i < c.in_channels; i++) begin[i + 1] += begin[i];
    for (int32_t o = 0; o < c.out_channels; o++)
        for (int32_t e = c.indptr[o]; e < c.indptr[o + 1]; e++) {
            Listener& l = t.listeners[begin[c.indices[e]]++];
            l.output = o;
            if (single)
                l.weight = weight[e];
            else
                l.position = e;
        }
    for (i64 i = c.in_channels; i > 0; i--) begin[i] = begin[i - 1];
    begin[0] = 0;
}

// Whether the tile has columns of so many taps that lie `step` rows apart from one position to the next.
bool has_column(i64 taps, i64 step) { return taps == 3 || taps == 5 || taps == 7 ? step == 1 || step == 2 : taps == 2 && step == 1; }

// Whether the kernel's columns are such columns.
bool joinable(const Gather& g) { return g.down.step == 1 && has_column(g.down.count, g.step_y); }

void take_one_by_one(Gather* g) {
    g->column = 1;
    g->columns = (int)(g->down.count * g->along.count);
}

void take_in_columns(Gather* g) {
    g->column = (int)g->down.count;
    g->columns = (int)g->along.count;
}

struct Tap {
    i64 row, col, weight;  // source offsets, and which of a connection's weights
};

Tap tap_at(const Gather& g, i64 i, i64 j) {
    return {g.down.first + i * g.down.step, g.along.first + j * g.along.step,
            (g.down.index + i * g.down.index_step) * g.kernel_w + g.along.index + j * g.along.index_step};
}

// The first tap of a column.
Tap column_tap(const Gather& g, i64 column) {
    return g.column > 1 ? tap_at(g, 0, column) : tap_at(g, column / g.along.count, column % g.along.count);
}

void describe_forward(const gossamer_conv& c, Gather* g) {
    g->batch = c.batch;
    g->channels = c.in_channels;
    g->height = c.in_h;
    g->width = c.in_w;
    g->outputs = c.out_channels;
    g->rows = g->dst_h = out_size(c.in_h, c.kernel_h, c.stride_h, c.pad_h, c.dil_h);
    g->cols = g->dst_w = out_size(c.in_w, c.kernel_w, c.stride_w, c.pad_w, c.dil_w);
    g->step_y = c.stride_h;
    g->step_x = c.stride_w;
    g->dst_step_y = g->dst_step_x = 1;
    g->dst_y = g->dst_x = 0;
    g->zeros = false;
    g->begin = c.indptr;
    g->source = c.indices;
    g->position = nullptr;
    g->entry = 1;
    g->kernel = c.kernel_h * c.kernel_w;
    g->kernel_w = c.kernel_w;
    g->down = {c.kernel_h, -c.pad_h, c.dil_h, 0, 1};
    g->along = {c.kernel_w, -c.pad_w, c.dil_w, 0, 1};
    take_one_by_one(g);
}

// Those that reach a stride phase.
Axis phase_axis(i64 kernel, i64 stride, i64 pad, i64 dilation, i64 phase) {
    Axis a = {0, 0, 1, 0, -1};
    for (i64 i = kernel - 1; i >= 0; i--) {
        const i64 at = phase + pad - i * dilation, offset = floor_divide(at, stride);
        if (modulo(at, stride)) continue;
        if (a.count == 0) a.first = offset, a.index = i;
        if (a.count == 1) a.step = offset - a.first, a.index_step = i - a.index;
        a.count++;
    }
    return a;
}

void describe_input_grad(const gossamer_conv& c, i64 phase_y, i64 phase_x, Gather* g) {
    g->batch = c.batch;
    g->channels = c.out_channels;
    g->height = out_size(c.in_h, c.kernel_h, c.stride_h, c.pad_h, c.dil_h);
    g->width = out_size(c.in_w, c.kernel_w, c.stride_w, c.pad_w, c.dil_w);
    g->outputs = c.in_channels;
    g->dst_h = c.in_h;
    g->dst_w = c.in_w;
    g->step_y = g->step_x = 1;
    g->dst_step_y = c.stride_h;
    g->dst_step_x = c.stride_w;
    g->zeros = false;
    g->dst_y = phase_y;
    g->dst_x = phase_x;
    g->rows = divide_up(c.in_h - phase_y, c.stride_h);
    g->cols = divide_up(c.in_w - phase_x, c.stride_w);
    g->kernel = c.kernel_h * c.kernel_w;
    g->bias = nullptr;
    g->relu = false;
    g->kernel_w = c.kernel_w;
    g->down = phase_axis(c.kernel_h, c.stride_h, c.pad_h, c.dil_h, phase_y);
    g->along = phase_axis(c.kernel_w, c.stride_w, c.pad_w, c.dil_w, phase_x);
    take_one_by_one(g);
}

i64 phases_reached(i64 kernel, i64 stride, i64 dilation) {
    i64 reached = 0;
    for (i64 phase = 0; phase < stride; phase++) {
        bool any = false;
        for (i64 i = 0; i < kernel; i++) any = any || modulo(i * dilation - phase, stride) == 0;
        reached += any;
    }
    return reached;
}

int useful_threads(const gossamer_conv& c, int threads) {
    const double work = (double)c.batch * c.indptr[c.out_channels] * c.kernel_h * c.kernel_w *
                        out_size(c.in_h, c.kernel_h, c.stride_h, c.pad_h, c.dil_h) *
                        out_size(c.in_w, c.kernel_w, c.stride_w, c.pad_w, c.dil_w);
    const double most_useful = work / 100000 + 1;
    return threads < 1 ? 1 : most_useful < threads ? (int)most_useful : threads;
}

}  // namespace
}  // namespace gossamer
