// All arithmetic of the native core. Compiled once for each line of isa.inc, with GOSSAMER_BUILD naming that line.
//
// The trap of such a file: anything with a weak symbol (an inline function or template outside the anonymous namespace,
// any part of the STL) may be linked from the newest build into all of them. So: no STL, no headers with inline
// functions, everything in the anonymous namespace but the one table at the end. A test looks with nm.
//
// README.md beside this file says how the kernels work; the short form:
//  - forward and input gradient are both a Gather: destination plane o = sum over its connections and taps of a weight
//    times a shifted source plane. The input gradient gathers with transposed connections, once per stride phase.
//  - source planes are first copied into a zero-padded Layout in which every tap is one constant offset.
//  - three layouts: rows (vectors along the width), flat (rows run on, for widths that fill vectors badly), batch
//    (images in the lanes, for small maps).
#include "kernels.h"
#include "parallel.h"
#include "simd.h"

namespace gossamer {
namespace {

typedef int64_t i64;

// The most rows of a tile that is `vectors` wide: its sums must stay in registers.
GS_INLINE int most_rows(i64 vectors) {
    if (kLanes < 16) return vectors <= 2 ? 4 : vectors <= 4 ? 2 : 1;
    return vectors == 1 ? 16 : vectors == 2 ? 12 : vectors == 3 ? 8 : vectors == 4 ? 6 : vectors <= 6 ? 4 : 3;
}

GS_INLINE i64 least(i64 a, i64 b) { return a < b ? a : b; }
GS_INLINE i64 most(i64 a, i64 b) { return a > b ? a : b; }
GS_INLINE i64 divide_up(i64 a, i64 b) { return (a + b - 1) / b; }
GS_INLINE i64 round_up(i64 a, i64 b) { return divide_up(a, b) * b; }
GS_INLINE i64 modulo(i64 a, i64 b) { return ((a % b) + b) % b; }
GS_INLINE i64 floor_divide(i64 a, i64 b) { return (a - modulo(a, b)) / b; }

constexpr i64 kCacheFloats = 256 * 1024;  // 1 MiB: what a thread's share of planes should fit in (the level-2 cache)
constexpr i64 kSlack = 512;               // floats that may be read, never used, after the last plane
constexpr int kMaxRows = kLanes == 16 ? 16 : 4;  // of a tile one vector wide
constexpr int kMaxVectors = kLanes == 16 ? 3 : 2;  // along a row, where a column has several taps
constexpr int kMaxFlat = 8;                        // along a row, where it has one

// ---------------------------------------------------------------------------------------------------------------------
// The problem both the forward pass and the input gradient are cast into.

struct Gather {
    i64 batch, channels, height, width;  // source planes
    i64 outputs, rows, cols;             // destination planes and the grid of positions computed in each
    i64 step_y, step_x;                  // source steps from one position to the next
    i64 dst_h, dst_w;                    // destination planes' true size; position (y, x) is element
    i64 dst_step_y, dst_step_x, dst_y, dst_x;  // (y * dst_step_y + dst_y, x * dst_step_x + dst_x)
    const int32_t* begin;                // connections of destination plane o: begin[o] .. begin[o + 1]
    const int32_t* source;               // source channel of each connection
    const int32_t* position;             // where its weights lie; NULL: in order
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

// ---------------------------------------------------------------------------------------------------------------------
// Padded copies.

// Where source planes go: [channel][phase][row][col][inner]. A phase holds every step-th row and column.
struct Layout {
    i64 inner;                // floats at one position: 1, or images in the batch layout
    i64 row_min, col_min;     // source offset of padded position (0, 0)
    i64 phases_y, phases_x;
    i64 pitch, phase, plane;  // floats from row to row, phase to phase, channel to channel
    i64 rows, cols;           // rows copied and columns kept in each phase
};

i64 tap_offset(const Layout& l, i64 step_y, i64 step_x, i64 row, i64 col) {
    const i64 y = row - l.row_min, x = col - l.col_min;
    const i64 a = y % step_y, b = x % step_x;
    return (a * l.phases_x + b) * l.phase + (y / step_y) * l.pitch + (x / step_x) * l.inner;
}

enum Fit { kTight, kVectorRows, kUnshared };

// A layout for `rows` x `cols` positions whose taps lie in [row_lo, row_hi] x [col_lo, col_hi].
Layout make_layout(i64 rows, i64 cols, i64 step_y, i64 step_x, i64 row_lo, i64 row_hi, i64 col_lo, i64 col_hi,
                   i64 width, i64 inner, Fit fit) {
    Layout l;
    l.inner = inner;
    l.row_min = row_lo;
    l.col_min = col_lo;
    l.phases_y = least(step_y, row_hi - row_lo + 1);
    l.phases_x = least(step_x, col_hi - col_lo + 1);
    const i64 last = (col_hi - col_lo) / step_x;
    i64 shared = 0;  // zero columns that end one row and begin the next
    if (step_x == 1 && fit != kUnshared) {
        const i64 left = most(0, -col_lo), right = most(0, cols - 1 + col_hi - (width - 1));
        shared = least(least(left, right), last);
    }
    l.rows = rows + (row_hi - row_lo) / step_y;
    i64 pitch = cols + last - shared;
    if (fit == kVectorRows) pitch = round_up(pitch, kLanes) * 8 <= pitch * 9 ? round_up(pitch, kLanes) : round_up(pitch, 4);
    l.cols = pitch;
    l.pitch = pitch * inner;
    l.phase = l.rows * l.pitch;
    l.plane = round_up(l.phases_y * l.phases_x * l.phase + shared * inner, kLanes);
    return l;
}

GS_INLINE void fill_zero(float* p, i64 count) {
    i64 i = 0;
    for (; i + kLanes <= count; i += kLanes) store(p + i, zero());
    for (; i < count; i++) p[i] = 0;
}

GS_INLINE void copy(float* to, const float* from, i64 count) {
    i64 i = 0;
    for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
    if (i < count) store_first(to + i, load_first(from + i, (int)(count - i)), (int)(count - i));
}

// to[0..length) = from, zero outside [first, last).
GS_INLINE void copy_row(float* to, i64 length, const float* from, i64 first, i64 last) {
    i64 q = 0;
    for (; q < length; q += kLanes) {
        const bool inside = q >= first && q + kLanes <= last;
        const vec v = inside ? load(from + q)
                             : load_between(from + q, (int)most(0, least(kLanes, first - q)), (int)most(0, least(kLanes, last - q)));
        if (q + kLanes <= length)
            store(to + q, v);
        else
            store_first(to + q, v, (int)(length - q));
    }
}

// Copies one source plane; position row 0 is grid row y0.
void copy_plane(const Layout& l, i64 step_y, i64 step_x, const float* src, i64 height, i64 width, i64 y0, float* to) {
    float* const end = to + l.plane;
    for (i64 a = 0; a < l.phases_y; a++)
        for (i64 b = 0; b < l.phases_x; b++) {
            const i64 x0 = b + l.col_min;
            const i64 first = least(l.cols, x0 >= 0 ? 0 : divide_up(-x0, step_x));
            const i64 last = most(first, least(l.cols, x0 >= width ? 0 : divide_up(width - x0, step_x)));
            for (i64 r = 0; r < l.rows; r++, to += l.pitch) {
                const i64 y = (y0 + r) * step_y + a + l.row_min;
                if (y < 0 || y >= height) {
                    fill_zero(to, l.pitch);
                    continue;
                }
                const float* from = src + y * width + x0;
                if (step_x == 1) {
                    copy_row(to, l.cols, from, first, last);
                    continue;
                }
                for (i64 q = 0; q < first; q++) to[q] = 0;
                if (step_x == 2)
                    for (i64 q = first; q < last; q++) to[q] = from[2 * q];
                else
                    for (i64 q = first; q < last; q++) to[q] = from[q * step_x];
                for (i64 q = last; q < l.cols; q++) to[q] = 0;
            }
        }
    fill_zero(to, end - to);
}

// Copies all channels of up to l.inner images into the batch layout; lanes past `images` are zero.
void copy_batch(const Layout& l, i64 step_y, i64 step_x, const float* src, i64 images, i64 channels, i64 height,
                i64 width, i64 y0, i64 c0, i64 c1, float* to) {
    const i64 area = height * width, stride = channels * area;
    for (i64 c = c0; c < c1; c++) fill_zero(to + c * l.plane, l.plane);
    // for every source pixel its place in the layout, kLanes consecutive pixels (of all channels in turn) at once
    const i64 total = (c1 - c0) * area;
    i64 c = c0, y = 0, x = 0;
    for (i64 m = 0; m < total; m += kLanes) {
        const int pixels = (int)least(kLanes, total - m);
        float* place[kLanes];
        for (int k = 0; k < pixels; k++) {
            const i64 py = y - l.row_min, px = x - l.col_min;
            const i64 a = modulo(py, step_y), b = modulo(px, step_x);
            const i64 r = floor_divide(py, step_y) - y0, q = floor_divide(px, step_x);
            const bool kept = a < l.phases_y && b < l.phases_x && r >= 0 && r < l.rows && q >= 0 && q < l.cols;
            place[k] = kept ? to + c * l.plane + (a * l.phases_x + b) * l.phase + r * l.pitch + q * l.inner : nullptr;
            if (++x == width) {
                x = 0;
                if (++y == height) y = 0, c++;
            }
        }
        for (i64 n = 0; n < images; n += kLanes) {
            vec v[kLanes];
            const float* from = src + n * stride + c0 * area + m;
            for (int k = 0; k < kLanes; k++)
                v[k] = n + k >= images ? zero() : pixels == kLanes ? load(from + k * stride) : load_first(from + k * stride, pixels);
            transpose(v);
            for (int k = 0; k < pixels; k++)
                if (place[k]) store(place[k] + n, v[k]);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The tile: R x V vectors of one destination plane, kept in registers over all its connections.

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
        for (int v = 0; v < V - 1; v++) store(to + v * kLanes, max(floor, acc[r][v]));
        if (last >= kLanes)
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

bool has_column(i64 taps, i64 step) { return step == 1 ? taps == 2 || taps == 3 || taps == 5 || taps == 7 : step == 2 && taps == 3; }

// ---------------------------------------------------------------------------------------------------------------------
// Gather, driven over images, bands of rows and destination planes.

enum Shape { kRows, kFlat, kBatch, kPoints };

struct Plan {
    Shape shape;
    Layout layout;
    i64 band, bands;     // rows of positions in a band
    i64 group, groups;   // images in a task
    i64 flat;            // floats of one row of positions or, in the flat shape, of a whole band
    bool whole;          // rows follow each other without a gap, in source and destination
    i64 block;           // destination planes computed before they are stored (batch shape)
    i64 points;          // positions in a task (points shape)
    bool by_position;    // batch shape: each position has its own list of taps, those that fall inside the image
};

struct GatherRun {
    const Gather* g;
    const Plan* plan;
    const i64 *offset, *tap_weight;  // [columns], [columns * column]; by position: [positions][columns]
    const i64* taps;                 // by position: [positions], how many
    float* work;          // [private ? threads : 1][planes]
    i64 work_floats;
    float* temporary;     // [threads][temporary_floats]
    i64 temporary_floats;
    i64* counters;        // one for each task
    i64 tasks;
    bool alone;           // every thread takes whole tasks
};

void bounds(const int32_t* values, i64 count, i64 extra, i64* lo, i64* hi) {
    *lo = *hi = count ? values[0] : 0;
    for (i64 i = 0; i < count; i++) {
        *lo = least(*lo, values[i]);
        *hi = most(*hi, values[i]);
    }
    *hi += extra;
}

// How many of `count` positions a tap at `offset` finds inside [0, size).
i64 count_inside(i64 count, i64 step, i64 offset, i64 size) {
    i64 inside = 0;
    for (i64 i = 0; i < count; i++) inside += i * step + offset >= 0 && i * step + offset < size;
    return inside;
}

// Positions that the points shape copies at once: so many that all channels' fit in the level-1 cache.
i64 point_tile(i64 channels) {
    const i64 vectors = 8192 / channels / kLanes;
    return kLanes * (vectors >= 8 ? 8 : vectors >= 4 ? 4 : 2);
}

// `weights` plans the layout for the weight gradient, which needs whole planes.
Plan make_plan(const Gather& g, int threads, bool weights) {
    Plan p;
    p.group = p.block = 1;
    p.by_position = false;
    p.points = weights || g.column * g.columns != 1 ? 0 : point_tile(g.channels);
    i64 row_lo, row_hi, col_lo, col_hi;
    bounds(g.tap_row, g.columns, g.column - 1, &row_lo, &row_hi);
    bounds(g.tap_col, g.columns, 0, &col_lo, &col_hi);
    const i64 lanes = round_up(g.cols, kLanes), taps = g.column * g.columns;
    const bool narrow = g.cols * 16 < lanes * 13;
    p.shape = p.points ? kPoints : taps == 1 ? kFlat : g.cols * 8 >= lanes * 5 ? kRows : kFlat;
    if (taps > 1 && g.batch * 2 >= kLanes && g.cols <= 8 && narrow) {
        p.shape = kBatch;
        const i64 positions = g.rows * g.cols, wanted = divide_up(g.batch, kLanes * divide_up(8, positions));
        p.group = weights ? kLanes : round_up(divide_up(g.batch, most(wanted, least(threads, divide_up(g.batch, 4 * kLanes)))), kLanes);
        if (!weights && positions <= 64 && positions * taps <= 16384) {
            i64 inside = 0;  // taps that fall inside the image
            for (i64 j = 0; j < g.columns; j++)
                for (i64 i = 0; i < g.column; i++)
                    inside += count_inside(g.rows, g.step_y, g.tap_row[j] + i, g.height) *
                              count_inside(g.cols, g.step_x, g.tap_col[j], g.width);
            const i64 groups = most(divide_up(g.batch, 8 * kLanes), least(threads, divide_up(g.batch, 4 * kLanes)));
            const i64 group = round_up(divide_up(g.batch, groups), kLanes);
            p.by_position = inside * most(1, divide_up(4 * kLanes, group)) * 10 < positions * taps * 6;
            if (p.by_position) p.group = group;
        }
        p.block = least(g.outputs, most(1, divide_up(kLanes * 2, positions)));
    }
    p.band = g.rows;
    const Fit fit = p.shape == kRows ? kVectorRows : p.shape == kBatch ? kUnshared : kTight;
    const i64 least_rows = p.shape == kBatch ? 2 : kMaxRows, budget = p.shape == kBatch ? kCacheFloats * 3 / 2 : kCacheFloats;
    if (p.by_position) {  // the source as it is: no padding, no phases
        p.layout = make_layout(g.height, g.width, 1, 1, 0, 0, 0, 0, g.width, p.group, kUnshared);
    } else {
        for (;;) {
            p.layout = make_layout(p.band, g.cols, g.step_y, g.step_x, row_lo, row_hi, col_lo, col_hi, g.width, p.group, fit);
            if (p.band <= least_rows || p.layout.plane * g.channels <= budget || (weights && p.shape == kBatch)) break;
            const i64 parts = divide_up(g.rows, p.band) + 1;
            p.band = most(least_rows, least(p.band - 1, divide_up(g.rows, parts)));
        }
    }
    p.bands = divide_up(g.rows, p.band);
    p.groups = divide_up(g.batch, p.group);
    p.whole = p.layout.cols == g.cols && g.dst_step_x == 1 && g.dst_w == g.cols && g.dst_step_y == 1;
    return p;
}

// Rows of one destination plane from `from` (row pitch `pitch`) to their places.
void place_rows(const Gather& g, const float* from, i64 pitch, i64 y0, i64 rows, float* plane) {
    for (i64 y = 0; y < rows; y++, from += pitch) {
        float* to = plane + ((y0 + y) * g.dst_step_y + g.dst_y) * g.dst_w + g.dst_x;
        if (g.dst_step_x == 1)
            copy(to, from, g.cols);
        else
            for (i64 x = 0; x < g.cols; x++) to[x * g.dst_step_x] = from[x];
    }
}

// Positions x images of `planes` destination planes, from [plane][position][image] to their places.
void place_batch(const Gather& g, const float* from, i64 group, i64 n0, i64 images, i64 o0, i64 planes, i64 y0, i64 rows) {
    const i64 positions = rows * g.cols, total = planes * positions, image = g.outputs * g.dst_h * g.dst_w;
    const bool dense = g.dst_step_x == 1 && g.dst_step_y == 1 && (rows == g.dst_h || planes == 1) && g.cols == g.dst_w;
    float* base = g.dst + n0 * image + o0 * g.dst_h * g.dst_w;
    for (i64 m = 0; m < total; m += kLanes) {
        const int count = (int)least(kLanes, total - m);
        for (i64 n = 0; n < images; n += kLanes) {
            vec v[kLanes];
            for (int k = 0; k < kLanes; k++) v[k] = k < count ? load(from + (m + k) * group + n) : zero();
            transpose(v);
            const int lanes = (int)least(kLanes, images - n);
            if (dense) {
                float* to = base + n * image + y0 * g.dst_w + m;
                for (int k = 0; k < lanes; k++) store_first(to + k * image, v[k], count);
                continue;
            }
            for (int k = 0; k < lanes; k++) {
                float row[kLanes];
                store(row, v[k]);
                float* to = base + (n + k) * image;
                for (int i = 0; i < count; i++) {
                    const i64 plane = (m + i) / positions, at = (m + i) % positions;
                    to[(plane * g.dst_h + (y0 + at / g.cols) * g.dst_step_y + g.dst_y) * g.dst_w +
                       (at % g.cols) * g.dst_step_x + g.dst_x] = row[i];
                }
            }
        }
    }
}

// One destination plane of a band, into `plane` (its place) or `temporary`.
void gather_plane(const GatherRun& run, const float* planes, i64 o, i64 rows, float* to, i64 to_pitch) {
    const Gather& g = *run.g;
    const Plan& p = *run.plan;
    const Layout& l = p.layout;
    Tile t;
    t.plane = l.plane;
    t.pitch = l.pitch;
    t.odd = l.phases_x * l.phase;
    t.source = g.source;
    t.position = g.position;
    t.first = g.begin[o];
    t.last = g.begin[o + 1];
    t.weight = g.weight;
    t.kernel = g.kernel;
    t.columns = g.columns;
    t.offset = run.offset;
    t.tap_weight = run.tap_weight;
    t.to_pitch = to_pitch;
    t.bias = g.bias ? g.bias[o] : 0.0f;
    t.floor = g.relu ? 0.0f : -__builtin_inff();
    if (p.by_position) {
        for (i64 at = 0; at < rows * g.cols; at++) {
            t.columns = (int)run.taps[at];
            t.offset = run.offset + at * g.columns;
            t.tap_weight = run.tap_weight + at * g.columns;
            t.planes = planes;
            t.to = to + at * l.inner;
            t.count = l.inner;
            find_tile(1, 1, 1, (int)(l.inner / kLanes))(t);
        }
        return;
    }
    const bool run_on = p.shape == kFlat;  // rows of positions follow each other as one
    const i64 length = run_on ? (rows - 1) * l.pitch + g.cols : g.cols * l.inner;
    const i64 vectors = divide_up(length, kLanes), across = divide_up(vectors, g.column > 1 ? kMaxVectors : kMaxFlat);
    const i64 wide = divide_up(vectors, across);
    const i64 down = run_on ? 1 : divide_up(rows, most_rows(wide)), high = run_on ? 1 : divide_up(rows, down);
    for (i64 y = 0; y < (run_on ? 1 : rows); y += high)
        for (i64 v = 0; v < vectors; v += wide) {
            t.planes = planes + y * l.pitch + v * kLanes;
            t.to = to + y * to_pitch + v * kLanes;
            t.count = length - v * kLanes;
            find_tile(g.column, g.step_y, (int)(run_on ? 1 : least(high, rows - y)), (int)least(wide, vectors - v))(t);
        }
}

void gather_outputs(const GatherRun& run, const float* planes, float* temporary, i64 task, i64 o0, i64 o1) {
    const Gather& g = *run.g;
    const Plan& p = *run.plan;
    const i64 n0 = task / p.bands * p.group, y0 = task % p.bands * p.band, rows = least(p.band, g.rows - y0);
    const i64 area = g.dst_h * g.dst_w;
    if (p.shape == kBatch) {
        const i64 plane = rows * g.cols * p.group;
        for (i64 o = o0; o < o1; o += p.block) {
            const i64 count = least(p.block, o1 - o);
            for (i64 k = 0; k < count; k++) gather_plane(run, planes, o + k, rows, temporary + k * plane, g.cols * p.group);
            place_batch(g, temporary, p.group, n0, least(p.group, g.batch - n0), o, count, y0, rows);
        }
        return;
    }
    for (i64 o = o0; o < o1; o++) {
        float* plane = g.dst + (n0 * g.outputs + o) * area;
        if (p.shape == kRows ? g.dst_step_x == 1 : p.whole) {
            gather_plane(run, planes, o, rows, plane + (y0 * g.dst_step_y + g.dst_y) * g.dst_w + g.dst_x, g.dst_step_y * g.dst_w);
        } else {
            const i64 pitch = p.shape == kRows ? round_up(g.cols, kLanes) : p.layout.pitch;
            gather_plane(run, planes, o, rows, temporary, pitch);
            place_rows(g, temporary, pitch, y0, rows, plane);
        }
    }
}

void gather_copy(const GatherRun& run, float* planes, i64 task, i64 c0, i64 c1) {
    const Gather& g = *run.g;
    const Plan& p = *run.plan;
    const i64 n0 = task / p.bands * p.group, y0 = task % p.bands * p.band;
    const float* src = g.src + n0 * g.channels * g.height * g.width;
    if (p.shape == kBatch) {
        copy_batch(p.layout, p.by_position ? 1 : g.step_y, p.by_position ? 1 : g.step_x, src, least(p.group, g.batch - n0), g.channels, g.height, g.width, y0, c0, c1, planes);
        return;
    }
    for (i64 c = c0; c < c1; c++)
        copy_plane(p.layout, g.step_y, g.step_x, src + c * g.height * g.width, g.height, g.width, y0, planes + c * p.layout.plane);
}

void gather_thread(void* argument, int thread, int threads) {
    const GatherRun& run = *static_cast<const GatherRun*>(argument);
    const Gather& g = *run.g;
    const Plan& p = *run.plan;
    float* temporary = run.temporary + thread * run.temporary_floats;
    if (run.alone) {
        float* planes = run.work + thread * run.work_floats;
        fill_zero(planes + run.work_floats - kSlack, kSlack);
        for (;;) {
            const i64 task = __atomic_fetch_add(run.counters, 1, __ATOMIC_RELAXED);
            if (task >= run.tasks) return;
            gather_copy(run, planes, task, 0, g.channels);
            gather_outputs(run, planes, temporary, task, 0, g.outputs);
        }
    }
    if (thread == 0) fill_zero(run.work + run.work_floats - kSlack, kSlack);
    const i64 chunk = round_up(most(1, divide_up(g.outputs, threads * 8)), p.block);
    for (i64 task = 0; task < run.tasks; task++) {
        gather_copy(run, run.work, task, g.channels * thread / threads, g.channels * (thread + 1) / threads);
        barrier();
        for (;;) {
            const i64 o = __atomic_fetch_add(run.counters + task, chunk, __ATOMIC_RELAXED);
            if (o >= g.outputs) break;
            gather_outputs(run, run.work, temporary, task, o, least(o + chunk, g.outputs));
        }
        barrier();
    }
}

// For each position the taps that fall inside the image.
void list_taps(const Gather& g, const Layout& l, i64* offset, i64* tap_weight, i64* taps) {
    for (i64 y = 0; y < g.rows; y++)
        for (i64 x = 0; x < g.cols; x++, offset += g.columns, tap_weight += g.columns, taps++) {
            *taps = 0;
            for (int j = 0; j < g.columns; j++) {
                const i64 sy = y * g.step_y + g.tap_row[j], sx = x * g.step_x + g.tap_col[j];
                if (sy < 0 || sy >= g.height || sx < 0 || sx >= g.width) continue;
                offset[*taps] = sy * l.pitch + sx * l.inner;
                tap_weight[(*taps)++] = g.tap_weight[j];
            }
        }
}

i64 gather_scratch(const Gather& g, const Plan& p, int threads, GatherRun* run) {
    run->g = &g;
    run->plan = &p;
    run->tasks = p.groups * p.bands;
    run->alone = threads == 1 || run->tasks % threads == 0 || run->tasks >= 4 * threads;
    run->work_floats = p.layout.plane * g.channels + kSlack;
    run->temporary_floats = round_up(p.block * p.band * most(p.layout.pitch, round_up(g.cols, kLanes) * p.layout.inner) + kSlack, kLanes);
    const i64 lists = p.by_position ? g.rows * g.cols : 1;
    return (run->alone ? threads : 1) * run->work_floats + threads * run->temporary_floats + 2 * run->tasks +
           2 * lists * (g.columns * (1 + g.column) + 1) + 2 * kLanes;
}

void gather(const Gather& g, const Plan& p, int threads, GatherRun* run, float* memory) {
    run->work = memory;
    run->temporary = run->work + (run->alone ? threads : 1) * run->work_floats;
    run->counters = reinterpret_cast<i64*>(run->temporary + threads * run->temporary_floats);
    for (i64 i = 0; i < run->tasks; i++) run->counters[i] = 0;
    i64* offset = run->counters + run->tasks;
    const i64 lists = p.by_position ? g.rows * g.cols : 1;
    i64* tap_weight = offset + lists * g.columns;
    i64* taps = tap_weight + lists * g.columns * g.column;
    if (p.by_position)
        list_taps(g, p.layout, offset, tap_weight, taps);
    else
        for (int j = 0; j < g.columns; j++) {
            offset[j] = tap_offset(p.layout, g.step_y, g.step_x, g.tap_row[j], g.tap_col[j]);
            for (int i = 0; i < g.column; i++) tap_weight[j * g.column + i] = g.tap_weight[j * g.column + i];
        }
    run->offset = offset;
    run->tap_weight = tap_weight;
    run->taps = taps;
    parallel(threads, gather_thread, run);
}

// ---------------------------------------------------------------------------------------------------------------------
// One tap (1x1 kernels): a tile of positions of all channels is copied to the cache, and several outputs at once are
// summed over it, so that enough sums are under way to hide the latency of the multiply-adds.

struct PointsRun {
    const Gather* g;
    i64 tile, total, tasks;
    const int32_t* offset;  // [connections] source channel times tile
    const float* weight;    // [connections] in order
    float* work;            // [threads or 1][channels][tile]
    i64 work_floats;
    float* temporary;       // [threads][tile]
    i64* counters;
    bool alone;
};

template <int V, int O>
void points(const PointsRun& run, const float* planes, i64 o, float* to, i64 to_pitch, i64 count) {
    const Gather& g = *run.g;
    vec acc[O][V];
    const int32_t* offset[O];
    const float* weight[O];
    i64 length[O], common = 0;
#pragma GCC unroll 4
    for (int k = 0; k < O; k++) {
        offset[k] = run.offset + g.begin[o + k];
        weight[k] = run.weight + g.begin[o + k];
        length[k] = g.begin[o + k + 1] - g.begin[o + k];
        common = k == 0 ? length[0] : least(common, length[k]);
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) acc[k][v] = broadcast(g.bias ? g.bias[o + k] : 0.0f);
    }
    for (i64 i = 0; i < common; i++)
#pragma GCC unroll 4
        for (int k = 0; k < O; k++) {
            const float* x = planes + offset[k][i];
            const vec w = broadcast(weight[k][i]);
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) acc[k][v] = fma(w, load(x + v * kLanes), acc[k][v]);
        }
    const vec floor = broadcast(g.relu ? 0.0f : -__builtin_inff());
#pragma GCC unroll 4
    for (int k = 0; k < O; k++) {
        for (i64 i = common; i < length[k]; i++) {
            const float* x = planes + offset[k][i];
            const vec w = broadcast(weight[k][i]);
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) acc[k][v] = fma(w, load(x + v * kLanes), acc[k][v]);
        }
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            const i64 left = count - v * kLanes;
            if (left >= kLanes)
                store(to + k * to_pitch + v * kLanes, max(floor, acc[k][v]));
            else if (left > 0)
                store_first(to + k * to_pitch + v * kLanes, max(floor, acc[k][v]), (int)left);
        }
    }
}

template <int V, int O>
void points_outputs(const PointsRun& run, const float* planes, i64 o0, i64 o1, float* to, i64 to_pitch, i64 count) {
    i64 o = o0;
    for (; o + O <= o1; o += O) points<V, O>(run, planes, o, to + (o - o0) * to_pitch, to_pitch, count);
    for (; o < o1; o++) points<V, 1>(run, planes, o, to + (o - o0) * to_pitch, to_pitch, count);
}

void points_any(const PointsRun& run, const float* planes, i64 o0, i64 o1, float* to, i64 to_pitch, i64 count) {
    switch (run.tile / kLanes) {
        case 1: return points_outputs<1, 4>(run, planes, o0, o1, to, to_pitch, count);
        case 2: return points_outputs<2, kLanes == 16 ? 4 : 2>(run, planes, o0, o1, to, to_pitch, count);
        case 4: return points_outputs<4, 2>(run, planes, o0, o1, to, to_pitch, count);
        default: return points_outputs<8, kLanes == 16 ? 2 : 1>(run, planes, o0, o1, to, to_pitch, count);
    }
}

// Calls of a run of positions [p, p + count) that lie in one image and one row (or one image, where rows run on).
struct Segment {
    i64 image, y, x, count;
};

Segment segment(const Gather& g, bool run_on, i64 p, i64 end) {
    const i64 area = g.rows * g.cols, at = p % area;
    Segment s;
    s.image = p / area;
    s.y = at / g.cols;
    s.x = at % g.cols;
    s.count = least(end - p, run_on ? area - at : g.cols - s.x);
    return s;
}

void points_copy(const PointsRun& run, i64 task, i64 c0, i64 c1, float* planes) {
    const Gather& g = *run.g;
    const i64 row = g.tap_row[0], col = g.tap_col[0], area = g.height * g.width;
    const bool same = g.step_y == 1 && g.step_x == 1 && row == 0 && col == 0 && g.rows == g.height && g.cols == g.width;
    const i64 begin = task * run.tile, end = least(begin + run.tile, run.total);
    for (i64 p = begin; p < end;) {
        const Segment s = segment(g, same, p, end);
        const i64 y = s.y * g.step_y + row;
        float* to = planes + c0 * run.tile + p - begin;
        const float* from = g.src + (s.image * g.channels + c0) * area + y * g.width + s.x * g.step_x + col;
        for (i64 c = c0; c < c1; c++, to += run.tile, from += area) {
            if (same) {
                copy(to, from, s.count);
                continue;
            }
            for (i64 i = 0; i < s.count; i++) {
                const i64 x = (s.x + i) * g.step_x + col;
                to[i] = y >= 0 && y < g.height && x >= 0 && x < g.width ? from[i * g.step_x] : 0.0f;
            }
        }
        p += s.count;
    }
}

void points_task(const PointsRun& run, const float* planes, float* temporary, i64 task, i64 o0, i64 o1) {
    const Gather& g = *run.g;
    const i64 begin = task * run.tile, end = least(begin + run.tile, run.total), area = g.dst_h * g.dst_w;
    const bool same = g.dst_step_y == 1 && g.dst_step_x == 1;
    const Segment first = segment(g, same, begin, end);
    if (same && first.count == end - begin) {
        float* to = g.dst + (first.image * g.outputs + o0) * area + first.y * g.dst_w + first.x;
        points_any(run, planes, o0, o1, to, area, end - begin);
        return;
    }
    for (i64 o = o0; o < o1; o += 4) {
        const i64 count = least(4, o1 - o);
        points_any(run, planes, o, o + count, temporary, run.tile, run.tile);
        for (i64 p = begin; p < end;) {
            const Segment s = segment(g, same, p, end);
            for (i64 k = 0; k < count; k++) {
                float* to = g.dst + (s.image * g.outputs + o + k) * area + (s.y * g.dst_step_y + g.dst_y) * g.dst_w +
                            s.x * g.dst_step_x + g.dst_x;
                const float* from = temporary + k * run.tile + p - begin;
                for (i64 i = 0; i < s.count; i++) to[i * g.dst_step_x] = from[i];
            }
            p += s.count;
        }
    }
}

void points_thread(void* argument, int thread, int threads) {
    const PointsRun& run = *static_cast<const PointsRun*>(argument);
    const Gather& g = *run.g;
    float* temporary = run.temporary + thread * 4 * run.tile;
    if (run.alone) {
        float* planes = run.work + thread * run.work_floats;
        for (;;) {
            const i64 task = __atomic_fetch_add(run.counters, 1, __ATOMIC_RELAXED);
            if (task >= run.tasks) return;
            points_copy(run, task, 0, g.channels, planes);
            points_task(run, planes, temporary, task, 0, g.outputs);
        }
    }
    const i64 chunk = round_up(divide_up(g.outputs, threads * 4), 4);
    for (i64 task = 0; task < run.tasks; task++) {
        points_copy(run, task, g.channels * thread / threads, g.channels * (thread + 1) / threads, run.work);
        barrier();
        for (;;) {
            const i64 o = __atomic_fetch_add(run.counters + task, chunk, __ATOMIC_RELAXED);
            if (o >= g.outputs) break;
            points_task(run, run.work, temporary, task, o, least(o + chunk, g.outputs));
        }
        barrier();
    }
}

i64 points_scratch(const Gather& g, i64 tile, i64 connections, int threads, PointsRun* run) {
    run->g = &g;
    run->tile = tile;
    run->total = g.batch * g.rows * g.cols;
    run->tasks = divide_up(run->total, tile);
    run->alone = threads == 1 || run->tasks % threads == 0 || run->tasks >= 4 * threads;
    run->work_floats = g.channels * tile;
    return (run->alone ? threads : 1) * run->work_floats + threads * 4 * tile + 2 * run->tasks + 2 * connections + 4 * kLanes;
}

void run_points(const Gather& g, i64 connections, int threads, PointsRun* run, float* memory) {
    run->work = memory;
    run->temporary = run->work + (run->alone ? threads : 1) * run->work_floats;
    run->counters = reinterpret_cast<i64*>(run->temporary + threads * 4 * run->tile);
    for (i64 i = 0; i < run->tasks; i++) run->counters[i] = 0;
    int32_t* offset = reinterpret_cast<int32_t*>(run->counters + run->tasks);
    float* weight = reinterpret_cast<float*>(offset + connections);
    for (i64 e = 0; e < connections; e++) {
        offset[e] = (int32_t)(g.source[e] * run->tile);
        weight[e] = g.weight[(g.position ? g.position[e] : e) * g.kernel + g.tap_weight[0]];
    }
    run->offset = offset;
    run->weight = weight;
    parallel(threads, points_thread, run);
}

// The transposed connections: for each input channel, the outputs that listen to it and where their weights lie.
void transpose_connections(const gossamer_conv& c, int32_t* begin, int32_t* output, int32_t* position) {
    for (i64 i = 0; i <= c.in_channels; i++) begin[i] = 0;
    const int32_t connections = c.indptr[c.out_channels];
    for (int32_t e = 0; e < connections; e++) begin[c.indices[e] + 1]++;
    for (i64 i = 0; i < c.in_channels; i++) begin[i + 1] += begin[i];
    for (int32_t o = 0; o < c.out_channels; o++)
        for (int32_t e = c.indptr[o]; e < c.indptr[o + 1]; e++) {
            const int32_t at = begin[c.indices[e]]++;
            output[at] = o;
            position[at] = e;
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
    g->begin = c.indptr;
    g->source = c.indices;
    g->position = nullptr;
    g->kernel = c.kernel_h * c.kernel_w;
}

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

// Runs one gather in `memory` or, where that is NULL, says how many floats it would need there.
i64 run_gather(const gossamer_conv& c, const Gather& g, const Plan& p, int threads, float* memory) {
    if (p.shape == kPoints) {
        PointsRun run;
        const i64 floats = points_scratch(g, p.points, c.indptr[c.out_channels], threads, &run);
        if (memory) run_points(g, c.indptr[c.out_channels], threads, &run, memory);
        return floats;
    }
    GatherRun run;
    const i64 floats = gather_scratch(g, p, threads, &run);
    if (memory) gather(g, p, threads, &run, memory);
    return floats;
}

int forward(const gossamer_conv& c, const float* input, const float* weight, const float* bias, bool relu, float* output, int threads) {
    threads = useful_threads(c, threads);
    Gather g;
    describe_forward(c, &g);
    g.src = input;
    g.weight = weight;
    g.bias = bias;
    g.relu = relu;
    g.dst = output;
    const i64 tables = round_up(3 * g.kernel, kLanes);
    i64 floats = 0;
    for (int pass = 0; pass < 2; pass++) {
        const bool sizing = pass == 0;  // scratch() may move, so the tables are made twice
        float* memory = scratch(tables + floats);
        if (!memory) return GOSSAMER_NO_MEMORY;
        g.tap_row = reinterpret_cast<int32_t*>(memory);
        g.tap_col = g.tap_row + g.kernel;
        g.tap_weight = g.tap_col + g.kernel;
        forward_taps(c, forward_joined(c), &g);
        const Plan p = make_plan(g, threads, false);
        if (p.shape != kRows) forward_taps(c, false, &g);
        floats = run_gather(c, g, p, threads, sizing ? nullptr : memory + tables);
    }
    return GOSSAMER_OK;
}

int input_grad(const gossamer_conv& c, const float* grad_output, const float* weight, float* grad_input, int threads) {
    threads = useful_threads(c, threads);
    const i64 connections = c.indptr[c.out_channels], kernel = c.kernel_h * c.kernel_w;
    const i64 lists = 2 * (c.kernel_h + c.kernel_w), graph = c.in_channels + 1 + 2 * connections;
    const i64 tables = round_up(graph + lists + 3 * kernel, kLanes);
    i64 floats = 0;
    for (int pass = 0; pass < 2; pass++) {
        const bool sizing = pass == 0;
        float* memory = scratch(tables + floats);
        if (!memory) return GOSSAMER_NO_MEMORY;
        int32_t* begin = reinterpret_cast<int32_t*>(memory);
        int32_t *output = begin + c.in_channels + 1, *position = output + connections, *list = position + connections;
        if (!sizing) transpose_connections(c, begin, output, position);
        const bool gaps = phases_reached(c.kernel_h, c.stride_h, c.dil_h) * phases_reached(c.kernel_w, c.stride_w, c.dil_w) <
                          c.stride_h * c.stride_w;  // some inputs are touched by no tap
        if (gaps && !sizing) fill_zero(grad_input, c.batch * c.in_channels * c.in_h * c.in_w);
        for (i64 y = 0; y < least(c.stride_h, c.in_h); y++)
            for (i64 x = 0; x < least(c.stride_w, c.in_w); x++) {
                Gather g;
                describe_input_grad(c, y, x, &g);
                g.src = grad_output;
                g.weight = weight;
                g.dst = grad_input;
                g.begin = begin;
                g.source = output;
                g.position = position;
                g.tap_row = list + lists;
                g.tap_col = g.tap_row + kernel;
                g.tap_weight = g.tap_col + kernel;
                input_grad_taps(c, y, x, true, list, &g);
                if (g.columns == 0) continue;
                const Plan p = make_plan(g, threads, false);
                if (p.shape != kRows) input_grad_taps(c, y, x, false, list, &g);
                floats = most(floats, run_gather(c, g, p, threads, sizing ? nullptr : memory + tables));
            }
    }
    return GOSSAMER_OK;
}

// ---------------------------------------------------------------------------------------------------------------------
// Weight gradient: for each connection and tap the dot product of an output-gradient plane with a shifted input plane.

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
        for (i64 i = 0; i < d.cols; i += kLanes) {
            const vec gv = load(g + i);
#pragma GCC unroll 8
            for (int k = 0; k < E; k++) acc[k] = fma(gv, load(x[k] + i), acc[k]);
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
    const i64 per_image = c.in_channels + c.out_channels, image = item / per_image;
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

void weight_grad_row(const WeightGrad& w, i64 o, i64 first, i64 last, i64 images, bool fresh) {
    const gossamer_conv& c = *w.c;
    float sums[64];
    Dot d;
    d.g = w.out_planes + o * w.out.plane;
    d.x_image = c.in_channels * w.in.plane;
    d.g_image = c.out_channels * w.out.plane;
    d.images = images;
    const bool run_on = w.shape == kFlat;  // rows follow each other, with zeros in the gaps of the output gradient
    d.rows = run_on ? 1 : w.out.rows;
    d.cols = run_on ? w.out.plane : w.ow * w.out.inner;
    d.pitch = w.in.pitch;
    d.g_pitch = w.out.pitch;
    if (w.kernel == 1) {
        d.offset = w.offset;
        d.sums = sums;
        for (i64 e = first; e < last;) {
            const int count = last - e >= 6 ? 6 : last - e >= 2 ? 2 : 1;
            const float* planes[6];
            for (int k = 0; k < count; k++) planes[k] = w.in_planes + c.indices[e + k] * w.in.plane;
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
        d.x = w.in_planes + c.indices[e] * w.in.plane;
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
    const i64 image_groups = divide_up(c.batch, w.group), channels = c.in_channels + c.out_channels;
    i64 items = 0;
    for (i64 block = 0; block < w.blocks; block++) {
        const i64 images = least(w.images, image_groups - block / w.bands * w.images);
        items = images * channels;
        for (i64 i = items * thread / threads; i < items * (thread + 1) / threads; i++) weight_grad_copy(w, block, i);
        if (thread == 0) *w.counter = 0;
        barrier();
        const i64 chunk = most(1, divide_up(c.out_channels, threads * 8));
        for (;;) {
            const i64 o0 = __atomic_fetch_add(w.counter, chunk, __ATOMIC_RELAXED), o1 = least(o0 + chunk, c.out_channels);
            if (o0 >= c.out_channels) break;
            for (i64 o = o0; o < o1; o++) w.cursor[o] = c.indptr[o];
            for (i64 channel = w.channel_block;; channel += w.channel_block) {
                for (i64 o = o0; o < o1; o++) {
                    i64 last = w.cursor[o];
                    while (last < c.indptr[o + 1] && c.indices[last] < channel) last++;
                    weight_grad_row(w, o, w.cursor[o], last, images, block == 0);
                    w.cursor[o] = (int32_t)last;
                }
                if (channel >= c.in_channels) break;
            }
        }
        barrier();
    }
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
        const bool joined = c.stride_h == 1 && c.dil_h == 1 && (c.kernel_h == 3 || c.kernel_h == 5 || c.kernel_h == 7);
        forward_taps(c, joined, &g);
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
        w.in_planes = memory + tables;
        w.out_planes = w.in_planes + w.images * c.in_channels * w.in.plane + kSlack;
        floats = w.images * (c.in_channels * w.in.plane + c.out_channels * w.out.plane) + 2 * kSlack;
    }
    fill_zero(w.out_planes - kSlack, kSlack);
    parallel(threads, weight_grad_thread, &w);
    return GOSSAMER_OK;
}

const char* kernel_name(const gossamer_conv&, char) { return "native"; }

}  // namespace

#define GOSSAMER_TABLE_(build) kernels_##build
#define GOSSAMER_TABLE(build) GOSSAMER_TABLE_(build)
extern const Kernels GOSSAMER_TABLE(GOSSAMER_BUILD);
const Kernels GOSSAMER_TABLE(GOSSAMER_BUILD) = {forward, input_grad, weight_grad, kernel_name};

}  // namespace gossamer
