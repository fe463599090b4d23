// The problem both the forward pass and the input gradient are cast into, and how each becomes one.
#pragma once

#include "base/arith.h"
#include "kernels.h"

namespace gossamer {
namespace {

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
    // taps, as columns of `column` rows each that lie one source row apart (column = 1: any taps at all)
    int column, columns;
    int32_t *tap_row, *tap_col;          // [columns] source offset of each column's first tap
    int32_t* tap_weight;                 // [columns * column]
};

// A transposed connection. One store writes both, which is half of what transposing takes.
struct Listener {
    int32_t output;
    union {
        int32_t position;  // where its weights lie
        float weight;      // itself, of a kernel of one
    };
};

// Where they lie in scratch memory: begin [in_channels + 1], then as many listeners as there are connections.
struct Transposed {
    int32_t* begin;
    Listener* listeners;
};

i64 transposed_floats(const gossamer_conv& c) { return round_up(c.in_channels + 1, 2) + 2 * c.indptr[c.out_channels]; }

Transposed transposed_at(const gossamer_conv& c, float* memory) {
    int32_t* begin = reinterpret_cast<int32_t*>(memory);
    return {begin, reinterpret_cast<Listener*>(begin + round_up(c.in_channels + 1, 2))};
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
}

// Whether the tile has columns of so many taps that lie `step` rows apart from one position to the next.
bool has_column(i64 taps, i64 step) { return taps == 3 || taps == 5 || taps == 7 ? step == 1 || step == 2 : taps == 2 && step == 1; }

// Taps in columns if `joined`, else one by one. The tap arrays have room for kernel entries.
void forward_taps(const gossamer_conv& c, bool joined, Gather* g) {
    g->column = joined ? (int)c.kernel_h : 1;
    g->columns = 0;
    for (i64 i = 0; i < (joined ? 1 : c.kernel_h); i++)
        for (i64 j = 0; j < c.kernel_w; j++) {
            g->tap_row[g->columns] = (int32_t)(i * c.dil_h - c.pad_h);
            g->tap_col[g->columns] = (int32_t)(j * c.dil_w - c.pad_w);
            for (i64 k = 0; k < g->column; k++) g->tap_weight[g->columns * g->column + k] = (int32_t)((i + k) * c.kernel_w + j);
            g->columns++;
        }
}

bool forward_joined(const gossamer_conv& c) { return c.dil_h == 1 && has_column(c.kernel_h, c.stride_h); }

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
}

// The kernel rows (or columns) that reach a stride phase, from the one with the least source offset on.
i64 phase_taps(i64 kernel, i64 stride, i64 pad, i64 dilation, i64 phase, int32_t* offset, int32_t* index) {
    i64 count = 0;
    for (i64 i = kernel - 1; i >= 0; i--) {
        const i64 at = phase + pad - i * dilation;
        if (modulo(at, stride)) continue;
        offset[count] = (int32_t)floor_divide(at, stride);
        index[count++] = (int32_t)i;
    }
    return count;
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

// `lists` has room for 2 * (kernel_h + kernel_w) numbers.
void input_grad_taps(const gossamer_conv& c, i64 phase_y, i64 phase_x, bool allow_joined, int32_t* lists, Gather* g) {
    int32_t *row = lists, *row_index = row + c.kernel_h, *col = row_index + c.kernel_h, *col_index = col + c.kernel_w;
    const i64 rows = phase_taps(c.kernel_h, c.stride_h, c.pad_h, c.dil_h, phase_y, row, row_index);
    const i64 cols = phase_taps(c.kernel_w, c.stride_w, c.pad_w, c.dil_w, phase_x, col, col_index);
    bool joined = allow_joined && has_column(rows, 1);
    for (i64 i = 1; i < rows; i++) joined = joined && row[i] == row[i - 1] + 1;
    g->column = joined ? (int)rows : 1;
    g->columns = 0;
    for (i64 i = 0; i < (joined ? 1 : rows); i++)
        for (i64 j = 0; j < cols; j++) {
            g->tap_row[g->columns] = row[i];
            g->tap_col[g->columns] = col[j];
            for (i64 k = 0; k < g->column; k++)
                g->tap_weight[g->columns * g->column + k] = (int32_t)(row_index[i + k] * c.kernel_w + col_index[j]);
            g->columns++;
        }
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
