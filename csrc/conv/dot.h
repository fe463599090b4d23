// Dot products of the rows of two planes, over several images: the sums of a weight gradient, kept in registers until the end.
#pragma once

#include "base/arith.h"

namespace gossamer {
namespace {

struct Dot {
    const float *x, *g;     // planes of the first image
    i64 x_image, g_image;   // floats to the next image's planes
    i64 images, rows, cols; // rows of `cols` floats
    i64 pitch, g_pitch;     // floats from row to row
    const i64* offset;
    float* sums;            // [taps]
    const i64* at;          // [columns] floats from x to each column of taps
    int top, bottom;        // how many of the first and last rows of x are padding (fewer than a column's taps)
};

// To the gradient of `count` weights next to each other: the first sums of them, or more.
void put_sums(float* to, const float* sums, i64 count, bool fresh) {
    for (i64 i = 0; i < count; i += kLanes) {
        const int lanes = (int)least(kLanes, count - i);
        const vec v = load(sums + i);
        store_first(to + i, fresh ? v : add(v, load_first(to + i, lanes)), lanes);
    }
}

// A row of the output gradient.
GS_INLINE vec load_gradient(const float* g, int lanes) { return kMasks || lanes < kLanes ? load_first(g, lanes) : load(g); }

// Gradients that share an input vector, and taps at once: their sums, the gradients and the vector fill the registers.
constexpr int kSharing = kRegisters == 32 ? 3 : 2, kDotTaps = kRegisters == 32 ? 9 : 6;

// T taps of E connections that listen to the same input channel: every loaded input vector meets the E output gradients.
template <int T, int E>
void dot_taps(const Dot& d, const float* const* gradients) {
    vec acc[E * T];
#pragma GCC unroll 32
    for (int i = 0; i < E * T; i++) acc[i] = zero();
    i64 offset[T];
    for (int t = 0; t < T; t++) offset[t] = d.offset[t];
    for (i64 n = 0; n < d.images; n++) {
        const float *x = d.x + n * d.x_image, *g[E];
#pragma GCC unroll 4
        for (int k = 0; k < E; k++) g[k] = gradients[k] + n * d.g_image;
        for (i64 r = 0; r < d.rows; r++, x += d.pitch) {
            for (i64 i = 0; i < d.cols; i += kLanes) {
                const int lanes = (int)least(kLanes, d.cols - i);
                vec gv[E];
#pragma GCC unroll 4
                for (int k = 0; k < E; k++) gv[k] = load_gradient(g[k] + i, lanes);
#pragma GCC unroll 16
                for (int t = 0; t < T; t++) {
                    const vec in = pin(load(x + offset[t] + i));
#pragma GCC unroll 4
                    for (int k = 0; k < E; k++) acc[k * T + t] = fma(gv[k], in, acc[k * T + t]);
                }
            }
#pragma GCC unroll 4
            for (int k = 0; k < E; k++) g[k] += d.g_pitch;
        }
    }
    sum_each<E * T>(acc, d.sums);
}

template <int E, int T = kDotTaps>
void dot_any(const Dot& d, int taps, const float* const* gradients) {
    if (taps == T)
        dot_taps<T, E>(d, gradients);
    else if constexpr (T > 1)
        dot_any<E, T - 1>(d, taps, gradients);
}

// One input row of S columns against the kernel rows lo..hi, whose output-gradient rows are g[lo..hi].
template <int KH, int S>
GS_INLINE void dot_row(vec (&acc)[S][KH], const vec (&g)[KH], const float* x, const i64* at, int lo, int hi) {
#pragma GCC unroll 16
    for (int s = 0; s < S; s++) {
        const vec in = pin(load(x + at[s]));
#pragma GCC unroll 8
        for (int i = 0; i < KH; i++)
            if (i >= lo && i <= hi) acc[s][i] = fma(g[i], in, acc[s][i]);
    }
}

// Pinned, or GCC keeps the sum of row and column for each load of three rows, more than there are registers.
GS_INLINE const float* step(const float* p, i64 pitch) {
    p += pitch;
    pin(p);
    return p;
}

template <int KH>
GS_INLINE void next_row(vec (&g)[KH]) {
#pragma GCC unroll 8
    for (int i = KH - 1; i > 0; i--) g[i] = g[i - 1];
}

// S columns of KH taps, of one connection or of several of the same output: they share the output gradient's rows, and
// every loaded input vector meets the KH of them that it touches. C columns belong together: their sums are stored row by
// row.
template <int KH, int S, int C>
void dot_rows(const Dot& d) {
    vec acc[S][KH];
#pragma GCC unroll 16
    for (int s = 0; s < S; s++)
#pragma GCC unroll 8
        for (int i = 0; i < KH; i++) acc[s][i] = zero();
    i64 at[S];
#pragma GCC unroll 16
    for (int s = 0; s < S; s++) at[s] = d.at[s] - d.at[0];
    const i64 pitch = d.pitch, g_pitch = d.g_pitch, head = d.rows >= KH ? KH - 1 : 0, single = (d.rows - head) % KH;
    const int top = d.top, bottom = d.bottom;
    for (i64 n = 0; n < d.images; n++)
        for (i64 v = 0; v < d.cols; v += kLanes) {
            const int lanes = (int)least(kLanes, d.cols - v);
            const float* x = d.x + d.at[0] + n * d.x_image + v;
            const float* gr = d.g + n * d.g_image + v;
            vec g[KH];
#pragma GCC unroll 8
            for (int i = 0; i < KH; i++) g[i] = zero();
            if (head)
#pragma GCC unroll 8
                for (int p = 0; p < KH - 1; p++, x = step(x, pitch), gr = step(gr, g_pitch)) {
                    next_row<KH>(g);
                    g[0] = load_gradient(gr, lanes);
                    if (p >= top) dot_row<KH, S>(acc, g, x, at, 0, p);
                }
            for (i64 r = 0; r < single; r++, x = step(x, pitch), gr = step(gr, g_pitch)) {
                next_row<KH>(g);
                g[0] = load_gradient(gr, lanes);
                dot_row<KH, S>(acc, g, x, at, 0, KH - 1);
            }
            for (i64 r = head + single; r < d.rows; r += KH) {
#pragma GCC unroll 8
                for (int i = 0; i < KH; i++, x = step(x, pitch), gr = step(gr, g_pitch)) {
                    next_row<KH>(g);
                    g[0] = load_gradient(gr, lanes);
                    dot_row<KH, S>(acc, g, x, at, 0, KH - 1);
                }
            }
#pragma GCC unroll 8
            for (int p = 1; p < KH; p++, x = step(x, pitch)) {
                next_row<KH>(g);
                if (p < KH - bottom) dot_row<KH, S>(acc, g, x, at, p, KH - 1);
            }
        }
    vec in_order[S * KH];
#pragma GCC unroll 16
    for (int s = 0; s < S; s++)
#pragma GCC unroll 8
        for (int i = 0; i < KH; i++) in_order[s / C * C * KH + i * C + s % C] = acc[s][i];
    sum_each<S * KH>(in_order, d.sums);
}

constexpr int most_columns(int column) {
    constexpr bool many = kRegisters == 32;
    return column == 3 ? (many ? 6 : 3) : column == 5 ? (many ? 5 : 1) : many ? 3 : 1;
}

template <int KH, int S = most_columns(KH)>
void dot_columns(const Dot& d, int columns) {
    if (columns == S)
        dot_rows<KH, S, 1>(d);
    else if constexpr (S > 1)
        dot_columns<KH, S - 1>(d, columns);
}

}  // namespace
}  // namespace gossamer
