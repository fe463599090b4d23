// How a gather is done: which arrangement of lanes, in what layout, and in which pieces.
#pragma once

#include "conv/layout.h"
#include "conv/problem.h"
#include "conv/stretch.h"
#include "conv/tile.h"

namespace gossamer {
namespace {

enum Arrangement { kRows, kFlat, kBatch, kStretches, kPoints };

struct Plan {
    Arrangement arrangement;
    Layout layout;
    i64 band, bands;     // rows of positions in a band
    i64 group, groups;   // images in a task
    bool whole;          // rows follow each other without a gap, in source and destination
    i64 block;           // destination planes computed before they are stored (images in lanes)
    bool stream;         // destination planes are stored past the caches
    bool by_position;    // images in lanes: each position has its own list of taps, those that fall inside the image
    Stretches stretches;
};

// How far the taps of a gather, or of all its phases, reach.
struct Reach {
    i64 taps, row_lo, row_hi, col_lo, col_hi;
};

Reach reach_of(const Gather& g) {
    if (g.columns == 0) return {0, 0, 0, 0, 0};
    return {g.down.count * g.along.count, g.down.first, g.down.first + (g.down.count - 1) * g.down.step, g.along.first,
            g.along.first + (g.along.count - 1) * g.along.step};
}

Reach joined(const Reach& a, const Reach& b) {
    if (a.taps == 0 || b.taps == 0) return a.taps ? a : b;
    return {a.taps + b.taps, least(a.row_lo, b.row_lo), most(a.row_hi, b.row_hi), least(a.col_lo, b.col_lo), most(a.col_hi, b.col_hi)};
}

// How many of `count` positions a tap at `offset` finds inside [0, size).
i64 count_inside(i64 count, i64 step, i64 offset, i64 size) {
    i64 inside = 0;
    for (i64 i = 0; i < count; i++) inside += i * step + offset >= 0 && i * step + offset < size;
    return inside;
}

// The same of all taps along an axis.
i64 count_inside(i64 count, i64 step, const Axis& a, i64 size) {
    i64 inside = 0;
    for (i64 i = 0; i < a.count; i++) inside += count_inside(count, step, a.first + i * a.step, size);
    return inside;
}

// Whether the destination is so large that it leaves the caches before it is read, and every `run` floats of it are aligned
// to vectors.
bool fits_streaming(const Gather& g, i64 run) {
    return g.batch * g.outputs * g.dst_h * g.dst_w >= kStreamFloats && run % kLanes == 0 &&
           reinterpret_cast<uintptr_t>(g.dst) % (kLanes * sizeof(float)) == 0;  // planning for a name, NULL is
}

// Whether destination planes are stored past the caches: rows as they are computed, or runs of planes of a whole batch.
bool streams(const Gather& g, const Plan& p) {
    const i64 area = g.dst_h * g.dst_w;
    if (p.arrangement == kRows) return g.dst_step_x == 1 && fits_streaming(g, g.dst_w);
    const bool whole = p.bands == 1 && g.dst_step_y == 1 && g.dst_step_x == 1 && g.outputs * area % kLanes == 0;
    return p.arrangement == kBatch && whole && fits_streaming(g, p.block * area);
}

constexpr i64 kLeastStretch = 8;  // vectors: fewer sums than that do not hide the latency of a multiply-add

// `weights` plans the layout for the weight gradient, which needs whole planes.
Plan make_plan(const Gather& g, const Reach& r, int threads, bool weights) {
    Plan p;
    p.group = p.block = 1;
    p.by_position = false;
    const i64 lanes = round_up(g.cols, kLanes), taps = r.taps;
    const bool narrow = g.cols * 16 < lanes * 13;
    p.arrangement = taps == 1 ? kPoints : g.cols * 8 >= lanes * 5 ? kRows : kFlat;
    if (taps > 1 && g.batch * 2 >= kLanes && g.cols <= 8 && narrow) {
        p.arrangement = kBatch;
        const i64 positions = g.rows * g.cols, wanted = divide_up(g.batch, kLanes * divide_up(8, positions));
        p.group = weights ? kLanes : round_up(divide_up(g.batch, most(wanted, least(threads, divide_up(g.batch, 4 * kLanes)))), kLanes);
        if (!weights && positions <= 64 && positions * taps <= 16384) {
            const i64 inside = count_inside(g.rows, g.step_y, g.down, g.height) * count_inside(g.cols, g.step_x, g.along, g.width);
            const i64 groups = most(divide_up(g.batch, 8 * kLanes), least(threads, divide_up(g.batch, 4 * kLanes)));
            const i64 group = round_up(divide_up(g.batch, groups), kLanes);
            p.by_position = inside * most(1, divide_up(4 * kLanes, group)) * 10 < positions * taps * 6;
            if (p.by_position) p.group = group;
        }
        p.block = least(g.outputs, most(1, divide_up(kLanes * 2, positions)));
    }
    p.band = g.rows;
    if (!weights && (p.arrangement == kFlat || (p.arrangement == kRows && !joinable(g))) && find_stretches(g, &p.stretches)) {
        const Layout layout = stretch_layout(g, p.stretches);
        if (p.stretches.length >= kLeastStretch && layout.plane * g.channels <= kCacheFloats) {
            p.arrangement = kStretches;
            p.layout = layout;
            p.band = p.stretches.length;
            p.bands = 1;
            p.groups = g.batch;
            p.whole = p.stream = false;
            return p;
        }
    }
    const Fit fit = p.arrangement == kRows ? kVectorRows : p.arrangement == kBatch ? kUnshared : kTight;
    const i64 least_rows = p.arrangement == kBatch ? 2 : kMaxRows, budget = p.arrangement == kBatch ? kCacheFloats * 7 / 4 : kCacheFloats;
    if (p.by_position) {  // the source as it is: no padding, no phases
        p.layout = make_layout(g.height, g.width, 1, 1, 0, 0, 0, 0, g.width, p.group, kUnshared);
    } else {
        for (;;) {
            p.layout = make_layout(p.band, g.cols, g.step_y, g.step_x, r.row_lo, r.row_hi, r.col_lo, r.col_hi, g.width, p.group, fit);
            if (p.band <= least_rows || p.layout.plane * g.channels <= budget || (weights && p.arrangement == kBatch)) break;
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

constexpr int kMaxPhases = 4;

// A gather of one phase, or of all phases of a stride of two from one copy of the source, and how it is done: what a call runs,
// and where its kernel's name is read from.
struct GatherPlan {
    Gather g[kMaxPhases];  // which differ in their taps and destination places alone
    int phases, threads;
    Plan how;
    i64 connections;
    int block;             // points: so many outputs have the same inputs
};

void plan_gather(GatherPlan* p, int threads, bool weights, bool in_columns) {
    Gather& g = p->g[0];
    p->phases = p->block = 1;
    p->threads = threads;
    p->how = make_plan(g, reach_of(g), threads, weights);
    take_one_by_one(&g);
    if (p->how.arrangement == kRows && in_columns) take_in_columns(&g);
    if (p->how.arrangement == kStretches) take_at_once(&g);
}

// As bits of enum Kernel.
unsigned kernel_of(const GatherPlan& p) {
    unsigned columns = 0;
    for (int i = 0; i < p.phases; i++) columns |= p.g[i].column > 1;
    const unsigned together = p.phases > 1 ? kTogether : 0u;
    switch (p.how.arrangement) {
        case kRows: return together | (columns ? kKernelColumns : kKernelRows);
        case kFlat: return together | kKernelFlat;
        case kBatch: return p.how.by_position ? kKernelByPosition : kKernelBatch;
        case kStretches: return kKernelStretches;
        case kPoints: return kKernelPoints | (p.block == 4 ? kSharedBy4 : p.block == 2 ? kSharedBy2 : 0u);
    }
    return 0;
}

}  // namespace
}  // namespace gossamer
