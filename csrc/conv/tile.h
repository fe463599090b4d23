// The tile: R x V vectors of one destination plane, kept in registers over all its connections.
#pragma once

#include "base/arith.h"

namespace gossamer {
namespace {

constexpr int kMaxRows = kLanes == 16 ? 16 : 4;  // of a tile one vector wide

// The most vectors along a row. Tall columns two rows apart are as fast one vector wide, and there is half as much to compile.
GS_INLINE i64 most_vectors(int column, i64 step) { return column == 1 ? 8 : column > 3 && step == 2 ? 1 : 2; }

// The most rows of a tile that is `vectors` wide: its sums must stay in registers.
GS_INLINE constexpr int most_rows(i64 vectors) {
    if (kLanes < 16) return vectors <= 2 ? 4 : vectors <= 4 ? 2 : 1;
    return vectors == 1 ? 16 : vectors == 2 ? 12 : vectors <= 4 ? 6 : vectors <= 6 ? 4 : 3;
}

// A column of taps, one source row apart, in bytes: the first one's source from the first one of the column before (or
// from the plane), its weight from the connection's first.
struct Column {
    i64 source, weight;
};

struct Tile {
    const float* planes;    // source plane 0, at the tile's first position
    i64 plane, pitch, odd;  // floats to the next channel, next row, and to the odd rows when rows step by two
    const int32_t *source, *position;
    i64 first, last, entry; // of connections in those; from one to the next
    const float* weight;
    i64 kernel;
    i64 weight_step;        // floats from weight to weight of a column
    int columns;
    const Column* column;
    float* to;              // destination: row r at to + r * to_pitch, `count` floats of each
    i64 to_pitch, count;
    float bias, floor;
    bool stream;            // past the caches; all of `to` is aligned then
};

template <int R, int V>
GS_INLINE void start_tile(const Tile& t, vec (&acc)[R][V]) {
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 16
        for (int v = 0; v < V; v++) acc[r][v] = broadcast(t.bias);
}

template <int R, int V>
GS_INLINE void store_tile(const Tile& t, const vec (&acc)[R][V]) {
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

// The source plane and the weights of the connection at e.
GS_INLINE const char* source_of(const Tile& t, i64 e) { return reinterpret_cast<const char*>(t.planes + t.source[e] * t.plane); }
GS_INLINE const char* weights_of(const Tile& t, i64 e) {
    return reinterpret_cast<const char*>(t.weight + (t.position ? t.position[e] : e) * t.kernel);
}

// Single taps: every sum takes a vector of its own from memory.
template <int R, int V>
void single_tile(const Tile& t) {
    vec acc[R][V];
    start_tile(t, acc);
    const i64 pitch = t.pitch * (i64)sizeof(float);
    for (i64 e = t.first; e < t.last; e += t.entry) {
        const char *x = source_of(t, e), *w = weights_of(t, e);
        const Column* column = t.column;
        for (int j = 0; j < t.columns; j++, column++) {
            x += column->source;
            const char* row = x;
            const vec weight = broadcast(*reinterpret_cast<const float*>(w + column->weight));
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
#pragma GCC unroll 16
                for (int v = 0; v < V; v++) acc[r][v] = fma(weight, load(reinterpret_cast<const float*>(row) + v * kLanes), acc[r][v]);
                if (r + 1 < R) {
                    row += pitch;
                    pin(row);
                }
            }
        }
    }
    store_tile(t, acc);
}

template <int i>
struct Constant {
    static constexpr int value = i;
};

// f(Constant<0>()), ..., f(Constant<N - 1>())
template <int N, int I = 0, typename F>
GS_INLINE void each(const F& f) {
    if constexpr (I < N) {
        f(Constant<I>());
        each<N, I + 1>(f);
    }
}

// Multiples of the row pitch, in bytes, from which every row's address is one operand: `row` = x + k * pitch.
struct Pitch {
    i64 one, three, five, seven;
};

template <int k, int bytes>
GS_INLINE vec load_row(const char* x0, const char* x8, const char* x16, const Pitch& p) {
    const char* x = k < 8 ? x0 : k < 16 ? x8 : x16;
    switch (k % 8) {
        case 0: return load_now<0, bytes>(x, 0);
        case 1: return load_now<1, bytes>(x, p.one);
        case 2: return load_now<2, bytes>(x, p.one);
        case 3: return load_now<1, bytes>(x, p.three);
        case 4: return load_now<4, bytes>(x, p.one);
        case 5: return load_now<1, bytes>(x, p.five);
        case 6: return load_now<2, bytes>(x, p.three);
        default: return load_now<1, bytes>(x, p.seven);
    }
}

// The order of a tile's loads and multiply-adds. In step s row s is loaded; tap i of the column meets the row that was loaded
// `ahead + i * delay` steps before, so that the KH additions to one sum stand (delay + 1) * KH * V multiply-adds apart.
template <int KH, int R, int V>
struct Order {
    static constexpr int room = (kRegisters - R * V - KH - 1) / V;  // rows that can wait in registers
    static constexpr int wanted = (kRegisters == 32 ? 8 : 4) / (KH * V), allowed = (room - 1) / (KH - 1);
    static constexpr int delay = room < 1 ? 0 : wanted < allowed ? wanted : allowed;
    static constexpr int spare = room - 1 - delay * (KH - 1), ahead = spare < 0 ? 0 : spare < 4 ? spare : 4;
    static constexpr int early = KH - 1;                    // a weight is loaded as soon as the column before is done with its register
    static constexpr int steps = ahead + (KH - 1) * delay;  // after the last load
};

// Columns of KH taps, W of them in one run of instructions; rows step by S.
template <int KH, int W, int S, int R, int V>
void tile(const Tile& t) {
    constexpr int rows = (R - 1) * S + KH, total = W * rows;
    typedef Order<KH, R, V> order;
    vec acc[R][V];
    start_tile(t, acc);
    before_loads();
    Pitch pitch = {t.pitch * (i64)sizeof(float), t.pitch * 3 * (i64)sizeof(float), t.pitch * 5 * (i64)sizeof(float), t.pitch * 7 * (i64)sizeof(float)};
    pin(pitch.one), pin(pitch.three), pin(pitch.five), pin(pitch.seven);
    const i64 weight_step = t.weight_step * (i64)sizeof(float), odd = t.odd * (i64)sizeof(float);
    const char *source = nullptr, *weights = nullptr;
    if (t.first < t.last) source = source_of(t, t.first), weights = weights_of(t, t.first);
    for (i64 e = t.first; e < t.last;) {
        const char *x = source, *w = weights;
        e += t.entry;
        if (e < t.last) source = source_of(t, e), weights = weights_of(t, e);  // early, to be there when the next turn begins
        const Column* column = t.column;
        for (int j = 0; j < t.columns; j += W, column += W) {
            const char *x8 = x, *x16 = x, *y = x, *y8 = x, *y16 = x, *wj[W];
            vec in[total][V], weight[KH];
            each<total + order::steps>([&](auto step) __attribute__((always_inline)) {
                constexpr int s = decltype(step)::value;
                if constexpr (s < total) {
                    constexpr int row = s % rows;
                    if constexpr (row == 0) {
                        const i64 to_column = column[s / rows].source;
                        x += to_column;
                        x8 = x + 8 * pitch.one;
                        pin(x), pin(x8);
                        if constexpr (S == 2) y = x + odd, y8 = x8 + odd, pin(y), pin(y8);
                    }
                    if constexpr (row == 16 * S) x16 = x8 + 8 * pitch.one, pin(x16);
                    if constexpr (S == 2 && row == 16 * S + 1) y16 = x16 + odd, pin(y16);
                    each<V>([&](auto vector) __attribute__((always_inline)) {
                        constexpr int v = decltype(vector)::value;
                        in[s][v] = S == 1 || row % 2 == 0 ? load_row<row / S, v * (int)sizeof(vec)>(x, x8, x16, pitch)
                                                          : load_row<row / S, v * (int)sizeof(vec)>(y, y8, y16, pitch);
                    });
                }
#pragma GCC unroll 8
                for (int i = 0; i < KH; i++) {
                    const int at = s + order::early - order::ahead - i * (order::delay + 1);  // 0 when tap i's weight is due
                    if ((at >= 0 && at < total && at % rows == 0) || (s == 0 && at > 0)) {
                        const int column_at = at / rows;
                        if (i == 0) wj[column_at] = w + column[column_at].weight;
                        weight[i] = broadcast_now(wj[column_at] + i * weight_step);
                    }
                    const int u = s - order::ahead - i * order::delay, row = u % rows;
                    if (u < 0 || u >= total || row < i || (row - i) % S || (row - i) / S >= R) continue;
#pragma GCC unroll 2
                    for (int v = 0; v < V; v++) accumulate(acc[(row - i) / S][v], weight[i], in[u][v]);
                }
            });
        }
    }
    store_tile(t, acc);
}

typedef void (*TileFunction)(const Tile&);

template <int KH, int W, int S, int R, int V>
TileFunction tile_of_size() {
    if constexpr (KH == 1)
        return single_tile<R, V>;
    else
        return tile<KH, W, S, R, V>;
}

template <int KH, int W, int S, int V, int R = most_rows(V)>
TileFunction tile_of_rows(int rows) {
    if (rows == R) return tile_of_size<KH, W, S, R, V>();
    if constexpr (R > 1) return tile_of_rows<KH, W, S, V, R - 1>(rows);
    return nullptr;
}

template <int KH, int W, int S>
TileFunction tile_of(int rows, int vectors) {
    return vectors == 1 ? tile_of_rows<KH, W, S, 1>(rows) : tile_of_rows<KH, W, S, 2>(rows);
}

// The tile for columns of `column` taps, whose rows step by one or two.
TileFunction find_tile(int column, int columns, i64 step, int rows, int vectors) {
    if (column == 1) switch (vectors) {
            case 3: return tile_of_rows<1, 1, 1, 3>(rows);
            case 4: return tile_of_rows<1, 1, 1, 4>(rows);
            case 5: return tile_of_rows<1, 1, 1, 5>(rows);
            case 6: return tile_of_rows<1, 1, 1, 6>(rows);
            case 7: return tile_of_rows<1, 1, 1, 7>(rows);
            case 8: return tile_of_rows<1, 1, 1, 8>(rows);
            default: return tile_of<1, 1, 1>(rows, vectors);
        }
    if (column == 2) return tile_of<2, 1, 1>(rows, vectors);
    if (column == 3 && step == 2) return tile_of<3, 1, 2>(rows, vectors);
    if (column == 3) return columns % 3 == 0 ? tile_of<3, 3, 1>(rows, vectors) : tile_of<3, 1, 1>(rows, vectors);
    if (column == 5) return step == 2 ? tile_of_rows<5, 1, 2, 1>(rows) : tile_of<5, 1, 1>(rows, vectors);
    return step == 2 ? tile_of_rows<7, 1, 2, 1>(rows) : tile_of<7, 1, 1>(rows, vectors);
}

}  // namespace
}  // namespace gossamer
