// One tap (1x1 kernels): a tile of a few vectors of positions of all channels is copied to the cache, and every output is
// summed over it, two or four side by side, so that enough sums are under way to hide the latency of the multiply-adds.
//
// Where positions do not follow each other in the destination (the input gradient of a stride), they do in planes of their
// own, from which whole planes are written, some images at a time: memory is fast only on long runs.
#pragma once

#include "conv/gather.h"
#include "conv/shared.h"

namespace gossamer {
namespace {

constexpr i64 kMaxPoints = 4;  // vectors in a tile: more gain nothing, since loads set the speed, and need more cache
constexpr i64 kMaxTile = kMaxPoints * kLanes;

struct PointsRun {
    const Gather* g;
    int threads;
    i64 connections;
    int shared;               // so many outputs have the same inputs
    bool stream;              // destination planes are stored past the caches
    bool placed;              // sums go to planes of their own first
    float* destination;       // placed: those, [images][outputs][area]
    float* whole;             // placed and streamed: [threads][dst_h * dst_w], zeros between the positions
    i64 images;               // at once
    i64 first;                // image at hand
    Gather block;             // the images at hand; positions follow each other in its destination
    i64 run;                  // positions that follow each other: those of an image or, if they are few, of all images
    i64 vectors, tiles;       // of positions in a run, and how many tiles share them
    i64 splits, tasks;        // tasks that share a tile, each with some of the outputs
    float* copied;            // [connections * entry], where the weights do not lie in order
    const float* weight;      // of connection e: weight[e * entry]
    float *planes, *sums;     // [threads][channels][kMaxTile], [threads][outputs][kMaxTile]
    i64* counter;
};

struct PointsTile {
    const Gather* g;
    const float *planes, *weight;
    float* to;              // output o at to + o * to_pitch, `count` floats of it
    i64 to_pitch, count;
    bool stream;            // past the caches; all of `to` is aligned then
};

// Outputs [o, o + O).
template <int V, int O>
__attribute__((noinline)) void points(const PointsTile& t, i64 o) {
    const Gather& g = *t.g;
    vec acc[O][V];
    const int32_t* source[O];
    const float* weight[O];
    const i64 entry = g.entry;
    i64 length[O], common = 0;
#pragma GCC unroll 4
    for (int k = 0; k < O; k++) {
        source[k] = g.source + g.begin[o + k] * entry;
        weight[k] = t.weight + g.begin[o + k] * entry;
        length[k] = (g.begin[o + k + 1] - g.begin[o + k]) * entry;
        common = k == 0 ? length[0] : least(common, length[k]);
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) acc[k][v] = broadcast(g.bias ? g.bias[o + k] : 0.0f);
    }
    for (i64 i = 0; i < common; i += entry)
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
        for (i64 i = common; i < length[k]; i += entry) {
            const float* x = t.planes + (i64)source[k][i] * (V * kLanes);
            const vec w = broadcast(weight[k][i]);
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) acc[k][v] = fma(w, load(x + v * kLanes), acc[k][v]);
        }
        float* to = t.to + (o + k) * t.to_pitch;
#pragma GCC unroll 8
        for (int v = 0; v < V; v++)
            if (t.stream)
                stream(to + v * kLanes, max(floor, acc[k][v]));
            else if (v < V - 1)
                store(to + v * kLanes, max(floor, acc[k][v]));
            else
                store_first(to + v * kLanes, max(floor, acc[k][v]), last);
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

// Outputs that share their inputs, over the same tile.
void points_shared(int block, i64 vectors, const PointsTile& t, i64 o, i64 end) {
    const TapRun tap = {0, 0};
    Span span[kMaxPoints];
    Piece piece[kMaxPoints];
    for (i64 v = 0; v < vectors; v++)
        piece[v] = {v * kLanes, lane_bits(0, (int)most(0, least(kLanes, t.count - v * kLanes))), lane_bits(0, kLanes), false};
    const i64 spans = divide_up(vectors, span_vectors(block));
    for (i64 i = 0; i < spans; i++) {
        const i64 v0 = vectors * i / spans, v1 = vectors * (i + 1) / spans;
        span[i] = {v0 * kLanes, v0 * kLanes, piece + v0, &tap, 1, 1, (int)(v1 - v0), v1 * kLanes <= t.count, 0};
    }
    Shared s = {};
    s.source = t.planes;
    s.plane = vectors * kLanes;
    s.block = block;
    s.begin = t.g->begin;
    s.index = t.g->source;
    s.weight = t.weight;
    s.kernel = 1;
    s.to = t.to;
    s.to_plane = t.to_pitch;
    s.stream = t.stream;
    s.bias = t.g->bias;
    s.floor = t.g->relu ? 0.0f : -__builtin_inff();
    s.ceiling = __builtin_inff();
    GOSSAMER_BUILT(shared)(s, span, 0, spans, o, end);
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
    const i64 row = g.down.first, col = g.along.first, area = g.height * g.width;
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
    const i64 area = g.rows * g.cols;
    for (i64 p = begin; p < end;) {
        const Segment s = segment(g, true, p, end);
        float* to = g.dst + s.image * g.outputs * area + p % area;
        for (i64 o = o0; o < o1; o++) copy(to + o * area, sums + o * tile + p - begin, s.count);
        p += s.count;
    }
}

void points_task(const PointsRun& run, i64 task, float* planes, float* sums) {
    const Gather& g = run.block;
    const i64 split = task % run.splits, at = task / run.splits, tile_at = at % run.tiles, area = g.rows * g.cols;
    const i64 chunk = round_up(divide_up(g.outputs, run.splits), 4), o0 = split * chunk, o1 = least(o0 + chunk, g.outputs);
    const i64 v0 = run.vectors * tile_at / run.tiles, v1 = run.vectors * (tile_at + 1) / run.tiles, tile = (v1 - v0) * kLanes;
    const i64 start = at / run.tiles * run.run, begin = start + v0 * kLanes, end = start + least(v1 * kLanes, run.run);
    const bool in_place = begin / area == (end - 1) / area;  // of one image
    points_copy(g, begin, end, tile, planes);
    PointsTile t = {&g, planes, run.weight, sums, tile, tile, false};
    if (in_place) {
        t.to = g.dst + begin / area * g.outputs * area + begin % area;
        t.to_pitch = area;
        t.count = end - begin;
        t.stream = run.stream && !run.placed;
    }
    run.shared > 1 ? points_shared(run.shared, v1 - v0, t, o0, o1) : points_any(v1 - v0, t, o0, o1);
    if (!in_place) points_place(g, begin, end, o0, o1, tile, sums);
}

void points_thread(void* argument, int thread, int) {
    const PointsRun& run = *static_cast<const PointsRun*>(argument);
    for (;;) {
        const i64 task = __atomic_fetch_add(run.counter, 1, __ATOMIC_RELAXED);
        if (task >= run.tasks) break;
        points_task(run, task, run.planes + thread * run.g->channels * kMaxTile, run.sums + thread * run.g->outputs * kMaxTile);
    }
    end_streams();
}

// From planes of their own to where they belong, plane by plane.
void place_planes(void* argument, int thread, int threads) {
    const PointsRun& run = *static_cast<const PointsRun*>(argument);
    const Gather& g = *run.g;
    const i64 area = g.rows * g.cols, plane = g.dst_h * g.dst_w, planes = run.block.batch * g.outputs;
    float* const whole = run.whole ? run.whole + thread * plane : nullptr;
    if (whole) fill_zero(whole, plane);
    for (i64 i = planes * thread / threads; i < planes * (thread + 1) / threads; i++) {
        float* to = g.dst + (run.first * g.outputs + i) * plane;
        if (g.zeros && !whole) fill_zero(to, plane);
        place_rows(g, run.destination + i * area, g.cols, 0, g.rows, whole ? whole : to);
        for (i64 x = 0; whole && x < plane; x += kLanes) stream(to + x, load(whole + x));
    }
    end_streams();
}

// The block of `images` images from the first-th on.
void plan_block(PointsRun* run, i64 first, i64 images, int threads) {
    const Gather& g = *run->g;
    const i64 area = g.rows * g.cols;
    run->first = first;
    run->block = g;
    run->block.batch = images;
    run->block.src = g.src + first * g.channels * g.height * g.width;
    run->block.dst = run->placed ? run->destination : g.dst + first * g.outputs * area;
    run->run = area >= 8 * kLanes ? area : images * area;
    run->vectors = divide_up(run->run, kLanes);
    run->tiles = divide_up(run->vectors, kMaxPoints);
    const i64 tiles = images * area / run->run * run->tiles;
    run->splits = threads == 1 || tiles % threads == 0 || tiles >= 4 * threads ? 1 : least(divide_up(g.outputs, 4), divide_up(4 * threads, tiles));
    run->splits = divide_up(g.outputs, round_up(divide_up(g.outputs, run->splits), 4));
    run->tasks = tiles * run->splits;
    *run->counter = 0;
}

PointsRun lay_out_points(const GatherPlan& plan, Arena* arena) {
    const Gather& g = plan.g[0];
    const i64 area = g.rows * g.cols;
    PointsRun run = {};
    run.g = &g;
    run.threads = plan.threads;
    run.connections = plan.connections;
    run.shared = plan.block;
    run.placed = g.dst_step_y != 1 || g.dst_step_x != 1;
    run.stream = (g.zeros || !run.placed) && fits_streaming(g, g.dst_h * g.dst_w);
    run.images = run.placed ? least(g.batch, most(divide_up(8 * kLanes, area), run.threads * kCacheFloats / (g.outputs * area))) : g.batch;
    run.planes = arena->take<float>(run.threads * g.channels * kMaxTile);
    run.sums = arena->take<float>(run.threads * g.outputs * kMaxTile);
    if (run.placed) run.destination = arena->take<float>(run.images * g.outputs * area);
    if (run.placed && run.stream) run.whole = arena->take<float>(run.threads * g.dst_h * g.dst_w);
    if (g.kernel > 1) run.copied = arena->take<float>(run.connections * g.entry);
    run.counter = arena->take<i64>(1);
    return run;
}

void run_points(PointsRun* run) {
    const Gather& g = *run->g;
    const i64 weight = tap_at(g, 0, 0).weight;
    for (i64 e = 0; run->copied && e < run->connections * g.entry; e += g.entry)
        run->copied[e] = g.weight[(g.position ? g.position[e] : e) * g.kernel + weight];
    run->weight = run->copied ? run->copied : g.weight;
    for (i64 first = 0; first < g.batch; first += run->images) {
        plan_block(run, first, least(run->images, g.batch - first), run->threads);
        parallel(run->threads, points_thread, run);
        if (run->placed) parallel(run->threads, place_planes, run);
    }
}

}  // namespace
}  // namespace gossamer
