// How a gather is done: which shape, in what layout, and in which pieces.
#pragma once

#include "conv/layout.h"
#include "conv/problem.h"
#include "conv/stretch.h"
#include "conv/tile.h"

namespace gossamer {
namespace {

enum Shape { kRows, kFlat, kBatch, kStretches, kPoints };

struct Plan {
    Shape shape;
    Layout layout;
    i64 band, bands;     // rows of positions in a band
    i64 group, groups;   // images in a task
    bool whole;          // rows follow each other without a gap, in source and destination
    i64 block;           // destination planes computed before they are stored (batch shape)
    bool stream;         // destination planes are stored past the caches
    bool by_position;    // batch shape: each position has its own list of taps, those that fall inside the image
    Stretches stretches;
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

// Whether the destination is so large that it leaves the caches before it is read, and every `run` floats of it are aligned
// to vectors.
bool fits_streaming(const Gather& g, i64 run) {
    return g.batch * g.outputs * g.dst_h * g.dst_w >= kStreamFloats && run % kLanes == 0 &&
           reinterpret_cast<uintptr_t>(g.dst) % (kLanes * sizeof(float)) == 0;
}

// Whether destination planes are stored past the caches: rows as they are computed, or runs of planes of a whole batch.
bool streams(const Gather& g, const Plan& p) {
    const i64 area = g.dst_h * g.dst_w;
    if (p.shape == kRows) return g.dst_step_x == 1 && fits_streaming(g, g.dst_w);
    const bool whole = p.bands == 1 && g.dst_step_y == 1 && g.dst_step_x == 1 && g.outputs * area % kLanes == 0;
    return p.shape == kBatch && whole && fits_streaming(g, p.block * area);
}

constexpr i64 kLeastStretch = 8;  // vectors: fewer sums than that do not hide the latency of a multiply-add

// `weights` plans the layout for the weight gradient, which needs whole planes.
Plan make_plan(const Gather& g, int threads, bool weights) {
    Plan p;
    p.group = p.block = 1;
    p.by_position = false;
    i64 row_lo, row_hi, col_lo, col_hi;
    bounds(g.tap_row, g.columns, g.column - 1, &row_lo, &row_hi);
    bounds(g.tap_col, g.columns, 0, &col_lo, &col_hi);
    const i64 lanes = round_up(g.cols, kLanes), taps = g.column * g.columns;
    const bool narrow = g.cols * 16 < lanes * 13;
    p.shape = taps == 1 && !weights ? kPoints : taps == 1 ? kFlat : g.cols * 8 >= lanes * 5 ? kRows : kFlat;
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
    if (!weights && (p.shape == kFlat || (p.shape == kRows && g.column == 1)) && find_stretches(g, &p.stretches)) {
        const Layout layout = stretch_layout(g, p.stretches);
        if (p.stretches.length >= kLeastStretch && layout.plane * g.channels <= kCacheFloats) {
            p.shape = kStretches;
            p.layout = layout;
            p.band = p.stretches.length;
            p.bands = 1;
            p.groups = g.batch;
            p.whole = p.stream = false;
            return p;
        }
    }
    const Fit fit = p.shape == kRows ? kVectorRows : p.shape == kBatch ? kUnshared : kTight;
    const i64 least_rows = p.shape == kBatch ? 2 : kMaxRows, budget = p.shape == kBatch ? kCacheFloats * 7 / 4 : kCacheFloats;
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
    p.stream = streams(g, p);
    return p;
}

}  // namespace
}  // namespace gossamer
