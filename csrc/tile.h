// The tile: R x V vectors of one destination plane, kept in registers over all its connections.
#pragma once

#include "arith.h"

namespace gossamer {
namespace {

constexpr int kMaxRows = kLanes == 16 ? 16 : 4;  // of a tile one vector wide
constexpr int kMaxVectors = kLanes == 16 ? 3 : 2;  // along a row, where a column has several taps
constexpr int kMaxFlat = 8;                        // along a row, where it has one

// The most rows of a tile that is `vectors` wide: its sums must stay in registers.
GS_INLINE int most_rows(i64 vectors) {
    if (kLanes < 16) return vectors <= 2 ? 4 : vectors <= 4 ? 2 : 1;
    return vectors == 1 ? 16 : vectors == 2 ? 12 : vectors == 3 ? 8 : vectors == 4 ? 6 : vectors <= 6 ? 4 : 3;
}

struct Tile {
    const float* planes;    // source plane 0, at the tile's first position
    i64 plane, pitch, odd;  // floats to the next channel, next row, and to the odd rows when rows step by two
    const int32_t *source, *position;
    i64 first, last;        // connections
    const float* weight;
    i64 kernel;
    int columns;
    const i64* offset;          // [columns]
    const i64* tap_weight;      // [columns * column]
    float* to;                  // destination: row r at to + r * to_pitch, `count` floats of each
    i64 to_pitch, count;
    float bias, floor;
    bool stream;                // past the caches; all of `to` is aligned then
};

template <int KH, int S, int R, int V>
void tile(const Tile& t) {
    constexpr int rows = (R - 1) * S + KH;
    vec acc[R][V];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 16
        for (int v = 0; v < V; v++) acc[r][v] = broadcast(t.bias);
    const i64 pitch = t.pitch, odd = t.odd, back = pitch - odd;
    const int columns = t.columns;
    const i64* offset = t.offset;
    for (i64 e = t.first; e < t.last; e++) {
        const float* x = t.planes + t.source[e] * t.plane;
        const float* w = t.weight + (t.position ? t.position[e] : e) * t.kernel;
        const i64* tap = t.tap_weight;
        for (int j = 0; j < columns; j++, tap += KH) {
            const float* xr = x + offset[j];
            vec weight[KH];
#pragma GCC unroll 8
            for (int i = 0; i < KH; i++) weight[i] = KH > 1 ? pin(broadcast(w[tap[i]])) : broadcast(w[tap[i]]);
#pragma GCC unroll 32
            for (int r = 0; r < rows; r++) {
#pragma GCC unroll 16
                for (int v = 0; v < V; v++) {
                    const vec in = KH > 1 ? pin(load(xr + v * kLanes)) : load(xr + v * kLanes);
#pragma GCC unroll 8
                    for (int i = 0; i < KH; i++)
                        if (r >= i && (r - i) % S == 0 && (r - i) / S < R) acc[(r - i) / S][v] = fma(weight[i], in, acc[(r - i) / S][v]);
                }
                if (r + 1 < rows) {
                    xr += S == 1 ? pitch : r & 1 ? back : odd;
                    pin(xr);
                }
            }
        }
    }
    const vec floor = broadcast(t.floor);
    const i64 last = t.count - (V - 1) * kLanes;  // floats wanted of each row's last vector
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
        float* to = t.to + r * t.to_pitch;
#pragma GCC unroll 16
        for (int v = 0; v < V - 1; v++) t.stream ? stream(to + v * kLanes, max(floor, acc[r][v])) : store(to + v * kLanes, max(floor, acc[r][v]));
        if (t.stream && last >= kLanes)
            stream(to + (V - 1) * kLanes, max(floor, acc[r][V - 1]));
        else if (last >= kLanes)
            store(to + (V - 1) * kLanes, max(floor, acc[r][V - 1]));
        else
            store_first(to + (V - 1) * kLanes, max(floor, acc[r][V - 1]), (int)last);
    }
}

typedef void (*TileFunction)(const Tile&);

template <int KH, int S, int V>
TileFunction tile_of_rows(int rows) {
    switch (rows) {
        case 1: return tile<KH, S, 1, V>;
        case 2: return tile<KH, S, 2, V>;
        case 3: return tile<KH, S, 3, V>;
        case 4: return tile<KH, S, 4, V>;
#if defined(__AVX512F__)
        case 5: return tile<KH, S, 5, V>;
        case 6: return tile<KH, S, 6, V>;
        case 7: return tile<KH, S, 7, V>;
        case 8: return tile<KH, S, 8, V>;
#endif
    }
#if defined(__AVX512F__)
    if constexpr (V < 3) switch (rows) {
            case 9: return tile<KH, S, 9, V>;
            case 10: return tile<KH, S, 10, V>;
            case 11: return tile<KH, S, 11, V>;
            case 12: return tile<KH, S, 12, V>;
        }
    if constexpr (V == 1) switch (rows) {
            case 13: return tile<KH, S, 13, V>;
            case 14: return tile<KH, S, 14, V>;
            case 15: return tile<KH, S, 15, V>;
            case 16: return tile<KH, S, 16, V>;
        }
#endif
    return nullptr;
}

template <int KH, int S>
TileFunction tile_of(int rows, int vectors) {
    switch (vectors) {
        case 1: return tile_of_rows<KH, S, 1>(rows);
        case 2: return tile_of_rows<KH, S, 2>(rows);
#if defined(__AVX512F__)
        case 3: return tile_of_rows<KH, S, 3>(rows);
#endif
    }
    return nullptr;
}

template <int V>
TileFunction wide_tile(int rows) {
    switch (rows) {
        case 1: return tile<1, 1, 1, V>;
#if defined(__AVX512F__)
        case 2: return tile<1, 1, 2, V>;
        case 3: return tile<1, 1, 3, V>;
#else
        case 2: if constexpr (V <= 4) return tile<1, 1, 2, V>;
#endif
    }
#if defined(__AVX512F__)
    if constexpr (V <= 6) if (rows == 4) return tile<1, 1, 4, V>;
    if constexpr (V <= 4) {
        if (rows == 5) return tile<1, 1, 5, V>;
        if (rows == 6) return tile<1, 1, 6, V>;
    }
#endif
    return nullptr;
}

// The tile for columns of `column` taps; steps of two rows only for columns of three.
TileFunction find_tile(int column, i64 step, int rows, int vectors) {
    if (column == 1) switch (vectors) {
#if !defined(__AVX512F__)
            case 3: return wide_tile<3>(rows);
#endif
            case 4: return wide_tile<4>(rows);
            case 5: return wide_tile<5>(rows);
            case 6: return wide_tile<6>(rows);
            case 7: return wide_tile<7>(rows);
            case 8: return wide_tile<8>(rows);
            default: return tile_of<1, 1>(rows, vectors);
        }
    if (column == 2) return tile_of<2, 1>(rows, vectors);
    if (column == 3) return step == 2 ? tile_of<3, 2>(rows, vectors) : tile_of<3, 1>(rows, vectors);
    if (column == 5) return tile_of<5, 1>(rows, vectors);
    return tile_of<7, 1>(rows, vectors);
}

}  // namespace
}  // namespace gossamer
