// Gather, driven over images, bands of rows and destination planes.
#pragma once

#include "base/arena.h"
#include "conv/place.h"
#include "conv/plan.h"

namespace gossamer {
namespace {

struct GatherRun {
    const Gather* g;       // [phases], which differ in their taps and destination places alone
    int phases;
    const Plan* plan;
    Column* column[kMaxPhases];  // [columns] of each phase; by position: [positions][columns]
    i64* taps;             // by position: [positions], how many
    int32_t *from, *to;   // stretches: the places of a source plane's lanes, and of a destination plane's floats
    float* work;          // [private ? threads : 1][planes]
    i64 work_floats;
    float* temporary;     // [threads][phases][temporary_floats]
    i64 temporary_floats;
    i64* counters;        // one for each task
    i64 tasks;
    bool alone;           // every thread takes whole tasks
};

// One destination plane of a band in one phase, into its place or temporary memory.
void gather_plane(const GatherRun& run, int phase, const float* planes, i64 o, i64 rows, float* to, i64 to_pitch) {
    const Gather& g = run.g[phase];
    const Plan& p = *run.plan;
    const Layout& l = p.layout;
    Tile t;
    t.plane = l.plane;
    t.pitch = l.pitch;
    t.odd = l.phases_x * l.phase;
    t.source = g.source;
    t.position = g.position;
    t.first = g.begin[o] * g.entry;
    t.last = g.begin[o + 1] * g.entry;
    t.entry = g.entry;
    t.weight = g.weight;
    t.kernel = g.kernel;
    t.weight_step = g.column > 1 ? (g.down.count > 1 ? g.down.index_step * g.kernel_w : g.along.index_step) : 0;
    t.columns = g.columns;
    t.column = run.column[phase];
    t.to_pitch = to_pitch;
    t.bias = g.bias ? g.bias[o] : 0.0f;
    t.floor = g.relu ? 0.0f : -__builtin_inff();
    t.stream = p.stream && p.arrangement == kRows;
    if (p.by_position) {
        for (i64 at = 0; at < rows * g.cols; at++) {
            t.columns = (int)run.taps[at];
            t.column = run.column[phase] + at * g.columns;
            t.planes = planes;
            t.to = to + at * l.inner;
            t.count = l.inner;
            find_tile(1, t.columns, 1, 1, (int)(l.inner / kLanes))(t);
        }
        return;
    }
    const bool run_on = p.arrangement == kFlat;  // rows of positions follow each other as one
    const i64 length = run_on ? (rows - 1) * l.pitch + g.cols : p.arrangement == kStretches ? kLanes : g.cols * l.inner;
    const i64 vectors = divide_up(length, kLanes), across = divide_up(vectors, most_vectors(g.column, g.step_y));
    const i64 wide = divide_up(vectors, across);
    const i64 down = run_on ? 1 : divide_up(rows, most_rows(wide)), high = run_on ? 1 : divide_up(rows, down);
    for (i64 y = 0; y < (run_on ? 1 : rows); y += high)
        for (i64 v = 0; v < vectors; v += wide) {
            t.planes = planes + y * l.pitch + v * kLanes;
            t.to = to + y * to_pitch + v * kLanes;
            t.count = length - v * kLanes;
            find_tile(g.column, g.columns, g.step_y, (int)(run_on ? 1 : least(high, rows - y)), (int)least(wide, vectors - v))(t);
        }
}

// Rows of one destination plane from the sums of all its phases, [phase][row], to their places.
void place_phases(const GatherRun& run, const float* sums, i64 pitch, i64 y0, float* plane) {
    const Gather& g = *run.g;
    for (i64 a = 0; a < g.dst_step_y; a++) {
        const i64 rows = least(run.plan->band, run.g[a * g.dst_step_x].rows - y0);
        const float* from = sums + a * g.dst_step_x * run.temporary_floats;
        for (i64 y = 0; y < rows; y++, from += pitch) {
            float* to = plane + ((y0 + y) * g.dst_step_y + a) * g.dst_w;
            if (g.dst_step_x == 2)
                copy_interleaved(to, from, from + run.temporary_floats, g.dst_w);
            else
                copy(to, from, g.dst_w);
        }
    }
}

void gather_outputs(const GatherRun& run, const float* planes, float* temporary, i64 task, i64 o0, i64 o1) {
    const Gather& g = *run.g;
    const Plan& p = *run.plan;
    const i64 n0 = task / p.bands * p.group, y0 = task % p.bands * p.band, rows = least(p.band, g.rows - y0);
    const i64 area = g.dst_h * g.dst_w;
    if (p.arrangement == kBatch) {
        const i64 plane = rows * g.cols * p.group;
        for (i64 o = o0; o < o1; o += p.block) {
            const i64 count = least(p.block, o1 - o);
            for (i64 k = 0; k < count; k++) gather_plane(run, 0, planes, o + k, rows, temporary + k * plane, g.cols * p.group);
            place_batch(g, temporary, p.group, n0, least(p.group, g.batch - n0), o, count, y0, rows, p.stream);
        }
        return;
    }
    for (i64 o = o0; o < o1; o++) {
        float* plane = g.dst + (n0 * g.outputs + o) * area;
        if (p.arrangement == kStretches) {
            gather_plane(run, 0, planes, o, p.stretches.length, temporary, kLanes);
            place_stretches(run.to, temporary, area, plane);
            continue;
        }
        const i64 pitch = p.arrangement == kRows ? round_up(g.cols, kLanes) : p.layout.pitch;
        if (run.phases > 1) {
            for (int i = 0; i < run.phases; i++) {
                const i64 rows_there = least(p.band, run.g[i].rows - y0);
                if (rows_there > 0) gather_plane(run, i, planes, o, rows_there, temporary + i * run.temporary_floats, pitch);
            }
            place_phases(run, temporary, pitch, y0, plane);
            continue;
        }
        if (p.arrangement == kRows ? g.dst_step_x == 1 : p.whole) {
            gather_plane(run, 0, planes, o, rows, plane + (y0 * g.dst_step_y + g.dst_y) * g.dst_w + g.dst_x, g.dst_step_y * g.dst_w);
        } else {
            gather_plane(run, 0, planes, o, rows, temporary, pitch);
            place_rows(g, temporary, pitch, y0, rows, plane);
        }
    }
}

void gather_copy(const GatherRun& run, float* planes, i64 task, i64 c0, i64 c1) {
    const Gather& g = *run.g;
    const Plan& p = *run.plan;
    const i64 n0 = task / p.bands * p.group, y0 = task % p.bands * p.band;
    const float* src = g.src + n0 * g.channels * g.height * g.width;
    if (p.arrangement == kBatch) {
        copy_batch(p.layout, p.by_position ? 1 : g.step_y, p.by_position ? 1 : g.step_x, src, least(p.group, g.batch - n0), g.channels, g.height, g.width, y0, c0, c1, planes);
        return;
    }
    for (i64 c = c0; c < c1; c++)
        if (p.arrangement == kStretches)
            copy_stretches(p.stretches, run.from, src + c * g.height * g.width, planes + c * p.layout.plane);
        else
            copy_plane(p.layout, g.step_y, g.step_x, src + c * g.height * g.width, g.height, g.width, y0, planes + c * p.layout.plane);
}

void gather_thread(void* argument, int thread, int threads) {
    const GatherRun& run = *static_cast<const GatherRun*>(argument);
    const Gather& g = *run.g;
    const Plan& p = *run.plan;
    float* temporary = run.temporary + thread * run.phases * run.temporary_floats;
    if (run.alone) {
        float* planes = run.work + thread * run.work_floats;
        fill_zero(planes + run.work_floats - kSlack, kSlack);
        for (;;) {
            const i64 task = __atomic_fetch_add(run.counters, 1, __ATOMIC_RELAXED);
            if (task >= run.tasks) break;
            gather_copy(run, planes, task, 0, g.channels);
            gather_outputs(run, planes, temporary, task, 0, g.outputs);
        }
        end_streams();
        return;
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
        end_streams();
        barrier();
    }
}

// The column whose first tap reads `source` floats from the plane's start, after a column that reads at `before`.
Column make_column(i64 source, i64 before, i64 weight) {
    return {(source - before) * (i64)sizeof(float), weight * (i64)sizeof(float)};
}

void list_columns(const Gather& g, const Layout& l, Column* column) {
    i64 before = 0;
    for (int j = 0; j < g.columns; j++) {
        const Tap tap = column_tap(g, j);
        const i64 source = tap_offset(l, g.step_y, g.step_x, tap.row, tap.col);
        *column++ = make_column(source, before, tap.weight);
        before = source;
    }
}

// For each position the taps that fall inside the image.
void list_taps(const Gather& g, const Layout& l, Column* column, i64* taps) {
    for (i64 y = 0; y < g.rows; y++)
        for (i64 x = 0; x < g.cols; x++, column += g.columns, taps++) {
            i64 before = *taps = 0;
            for (int j = 0; j < g.columns; j++) {
                const Tap tap = column_tap(g, j);
                const i64 sy = y * g.step_y + tap.row, sx = x * g.step_x + tap.col;
                if (sy < 0 || sy >= g.height || sx < 0 || sx >= g.width) continue;
                const i64 source = sy * l.pitch + sx * l.inner;
                column[(*taps)++] = make_column(source, before, tap.weight);
                before = source;
            }
        }
}

GatherRun lay_out_gather(const GatherPlan& plan, Arena* arena) {
    const Gather& g = plan.g[0];
    const Plan& p = plan.how;
    GatherRun run = {};
    run.g = plan.g;
    run.phases = plan.phases;
    run.plan = &p;
    run.tasks = p.groups * p.bands;
    run.alone = plan.threads == 1 || run.tasks % plan.threads == 0 || run.tasks >= 4 * plan.threads;
    run.work_floats = p.layout.plane * g.channels + kSlack;
    run.temporary_floats = round_up(p.block * p.band * most(p.layout.pitch, round_up(g.cols, kLanes) * p.layout.inner) + kSlack, kLanes);
    run.work = arena->take<float>((run.alone ? plan.threads : 1) * run.work_floats);
    run.temporary = arena->take<float>(plan.threads * plan.phases * run.temporary_floats);
    run.counters = arena->take<i64>(run.tasks);
    for (int i = 0; i < plan.phases; i++) run.column[i] = arena->take<Column>((p.by_position ? g.rows * g.cols : 1) * plan.g[i].columns);
    if (p.by_position) run.taps = arena->take<i64>(g.rows * g.cols);
    if (p.arrangement == kStretches) {
        run.from = arena->take<int32_t>(p.layout.plane);
        run.to = arena->take<int32_t>(g.rows * g.cols);
    }
    return run;
}

void gather(const GatherPlan& plan, GatherRun* run) {
    const Plan& p = plan.how;
    for (i64 i = 0; i < run->tasks; i++) run->counters[i] = 0;
    if (p.by_position)
        list_taps(*plan.g, p.layout, run->column[0], run->taps);
    else
        for (int i = 0; i < plan.phases; i++) list_columns(plan.g[i], p.layout, run->column[i]);
    if (p.arrangement == kStretches) list_places(*plan.g, p.stretches, run->from, run->to);
    parallel(plan.threads, gather_thread, run);
}

}  // namespace
}  // namespace gossamer
