// One tap (1x1 kernels): a tile of a few vectors of positions of all channels is copied to the cache, and every output is
// summed over it, two or four side by side, so that enough sums are under way to hide the latency of the multiply-adds.
#pragma once

#include "padded.h"
#include "parallel.h"
#include "problem.h"

namespace gossamer {
namespace {

constexpr i64 kMaxPoints = 4;  // vectors in a tile: more gain nothing, since loads set the speed, and need more cache

struct PointsRun {
    const Gather* g;
    i64 run, runs;            // positions that follow each other: those of an image or, if they are few, of all images
    i64 vectors, tiles;       // of positions in a run, and how many tiles share them
    i64 tile;                 // floats of the widest tile
    i64 splits, tasks;        // tasks that share a tile, each with some of the outputs
    const float* weight;      // [connections] in order
    float *planes, *sums;     // [threads][channels][tile], [threads][outputs][tile]
    i64* counter;
};

struct PointsTile {
    const Gather* g;
    const float *planes, *weight;
    float* to;              // output o at to + o * to_pitch, `count` floats of it
    i64 to_pitch, count;
};

// Outputs [o, o + O).
template <int V, int O>
__attribute__((noinline)) void points(const PointsTile& t, i64 o) {
    const Gather& g = *t.g;
    vec acc[O][V];
    const int32_t* source[O];
    const float* weight[O];
    i64 length[O], common = 0;
#pragma GCC unroll 4
    for (int k = 0; k < O; k++) {
        source[k] = g.source + g.begin[o + k];
        weight[k] = t.weight + g.begin[o + k];
        length[k] = g.begin[o + k + 1] - g.begin[o + k];
        common = k == 0 ? length[0] : least(common, length[k]);
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) acc[k][v] = broadcast(g.bias ? g.bias[o + k] : 0.0f);
    }
    for (i64 i = 0; i < common; i++)
#pragma GCC unroll 4
        for (int k = 0; k < O; k++) {
            const float* x = t.planes + (i64)source[k][i] * (V * kLanes);
            const vec w = broadcast(weight[k][i]);
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) acc[k][v] = fma(w, load(x + v * kLanes), acc[k][v]);
        }
    const vec floor = broadcast(g.relu ? 0.0f : -__builtin_inff());
    const int last = (int)(t.count - (V - 1) * kLanes);  // floats wanted of each output's last vector
#pragma GCC unroll 4
    for (int k = 0; k < O; k++) {
        for (i64 i = common; i < length[k]; i++) {
            const float* x = t.planes + (i64)source[k][i] * (V * kLanes);
            const vec w = broadcast(weight[k][i]);
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) acc[k][v] = fma(w, load(x + v * kLanes), acc[k][v]);
        }
        float* to = t.to + (o + k) * t.to_pitch;
#pragma GCC unroll 8
        for (int v = 0; v < V - 1; v++) store(to + v * kLanes, max(floor, acc[k][v]));
        store_first(to + (V - 1) * kLanes, max(floor, acc[k][V - 1]), last);
    }
}

template <int V>
void points_outputs(const PointsTile& t, i64 o, i64 end) {
    constexpr int O = V <= 2 ? 4 : 2;
    for (; o + O <= end; o += O) points<V, O>(t, o);
    for (; o < end; o++) points<V, 1>(t, o);
}

void points_any(i64 vectors, const PointsTile& t, i64 o, i64 end) {
    switch (vectors) {
        case 1: return points_outputs<1>(t, o, end);
        case 2: return points_outputs<2>(t, o, end);
        case 3: return points_outputs<3>(t, o, end);
        default: return points_outputs<4>(t, o, end);
    }
}

// Part of a tile that lies in one image and one row (or one image, where rows follow each other without a gap).
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

// All channels at positions [begin, end), `tile` floats each.
void points_copy(const Gather& g, i64 begin, i64 end, i64 tile, float* planes) {
    const i64 row = g.tap_row[0], col = g.tap_col[0], area = g.height * g.width;
    const bool same = g.step_y == 1 && g.step_x == 1 && row == 0 && col == 0 && g.rows == g.height && g.cols == g.width;
    for (i64 p = begin; p < end;) {
        const Segment s = segment(g, same, p, end);
        const i64 y = s.y * g.step_y + row, x0 = s.x * g.step_x + col;
        const bool pairs = g.step_x == 2 && y >= 0 && y < g.height && x0 >= 0 && x0 + 2 * (s.count - 1) < g.width;
        float* to = planes + p - begin;
        const float* from = g.src + s.image * g.channels * area + y * g.width + x0;
        for (i64 c = 0; c < g.channels; c++, to += tile, from += area) {
            if (same) {
                copy(to, from, s.count);
                continue;
            }
            if (pairs) {
                copy_even(to, from, s.count);
                continue;
            }
            for (i64 i = 0; i < s.count; i++) {
                const i64 x = x0 + i * g.step_x;
                to[i] = y >= 0 && y < g.height && x >= 0 && x < g.width ? from[i * g.step_x] : 0.0f;
            }
        }
        p += s.count;
    }
    if (end - begin < tile)  // whatever lay there might be denormal numbers, which are slow
        for (i64 c = 0; c < g.channels; c++) fill_zero(planes + c * tile + end - begin, tile - (end - begin));
}

// Sums of outputs [o0, o1) at positions [begin, end) to their places.
void points_place(const Gather& g, i64 begin, i64 end, i64 o0, i64 o1, i64 tile, const float* sums) {
    const bool run_on = g.dst_step_y == 1 && g.dst_step_x == 1;
    for (i64 p = begin; p < end;) {
        const Segment s = segment(g, run_on, p, end);
        for (i64 o = o0; o < o1; o++) {
            float* to = g.dst + ((s.image * g.outputs + o) * g.dst_h + s.y * g.dst_step_y + g.dst_y) * g.dst_w + s.x * g.dst_step_x + g.dst_x;
            const float* from = sums + o * tile + p - begin;
            if (g.dst_step_x == 1)
                copy(to, from, s.count);
            else if (g.dst_step_x == 2)
                copy_spread(to, from, s.count);
            else
                for (i64 i = 0; i < s.count; i++) to[i * g.dst_step_x] = from[i];
        }
        p += s.count;
    }
}

void points_task(const PointsRun& run, i64 task, float* planes, float* sums) {
    const Gather& g = *run.g;
    const i64 split = task % run.splits, at = task / run.splits, tile_at = at % run.tiles, area = g.dst_h * g.dst_w;
    const i64 chunk = round_up(divide_up(g.outputs, run.splits), 4), o0 = split * chunk, o1 = least(o0 + chunk, g.outputs);
    const i64 v0 = run.vectors * tile_at / run.tiles, v1 = run.vectors * (tile_at + 1) / run.tiles, tile = (v1 - v0) * kLanes;
    const i64 start = at / run.tiles * run.run, begin = start + v0 * kLanes, end = start + least(v1 * kLanes, run.run);
    const bool run_on = g.dst_step_y == 1 && g.dst_step_x == 1;
    const Segment first = segment(g, run_on, begin, end);
    const bool in_place = run_on && first.count == end - begin;
    points_copy(g, begin, end, tile, planes);
    PointsTile t = {&g, planes, run.weight, sums, tile, tile};
    if (in_place) {
        t.to = g.dst + first.image * g.outputs * area + first.y * g.dst_w + first.x;
        t.to_pitch = area;
        t.count = end - begin;
    }
    points_any(v1 - v0, t, o0, o1);
    if (!in_place) points_place(g, begin, end, o0, o1, tile, sums);
}

void points_thread(void* argument, int thread, int) {
    const PointsRun& run = *static_cast<const PointsRun*>(argument);
    for (;;) {
        const i64 task = __atomic_fetch_add(run.counter, 1, __ATOMIC_RELAXED);
        if (task >= run.tasks) return;
        points_task(run, task, run.planes + thread * run.g->channels * run.tile, run.sums + thread * run.g->outputs * run.tile);
    }
}

i64 points_scratch(const Gather& g, i64 connections, int threads, PointsRun* run) {
    const i64 area = g.rows * g.cols;
    run->g = &g;
    run->run = area >= 8 * kLanes ? area : g.batch * area;
    run->runs = g.batch * area / run->run;
    run->vectors = divide_up(run->run, kLanes);
    run->tiles = divide_up(run->vectors, kMaxPoints);
    run->tile = divide_up(run->vectors, run->tiles) * kLanes;
    const i64 tiles = run->runs * run->tiles;
    run->splits = threads == 1 || tiles % threads == 0 || tiles >= 4 * threads ? 1 : least(divide_up(g.outputs, 4), divide_up(4 * threads, tiles));
    run->splits = divide_up(g.outputs, round_up(divide_up(g.outputs, run->splits), 4));
    run->tasks = tiles * run->splits;
    return threads * (g.channels + g.outputs) * run->tile + connections + 4 * kLanes;
}

void run_points(const Gather& g, i64 connections, int threads, PointsRun* run, float* memory) {
    run->planes = memory;
    run->sums = run->planes + threads * g.channels * run->tile;
    float* weight = run->sums + threads * g.outputs * run->tile;
    run->counter = reinterpret_cast<i64*>(weight + round_up(connections, kLanes));
    *run->counter = 0;
    const bool in_order = !g.position && g.kernel == 1;
    if (!in_order)
        for (i64 e = 0; e < connections; e++) weight[e] = g.weight[(g.position ? g.position[e] : e) * g.kernel + g.tap_weight[0]];
    run->weight = in_order ? g.weight : weight;
    parallel(threads, points_thread, run);
}

}  // namespace
}  // namespace gossamer
