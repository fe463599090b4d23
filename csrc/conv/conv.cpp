// All arithmetic of the native core. Compiled once for each line of isa.inc, with GOSSAMER_BUILD naming that line.
//
// The trap of such a file: anything with a weak symbol (an inline function or template outside the anonymous namespace,
// any part of the STL) may be linked from the newest build into all of them. So: no STL, no headers with inline
// functions, everything in the anonymous namespace but the one table at the end. A test looks with nm.
//
// docs/kernels.md says how the kernels work; the short form:
//  - forward and input gradient are both a Gather: destination plane o = sum over its connections and taps of a weight
//    times a shifted source plane. The input gradient gathers with transposed connections, in stride phases.
//  - source planes are first copied into a zero-padded Layout in which every tap is one constant offset.
//  - five shapes (gather.h, points.h): rows (vectors along the width), flat (rows run on, for widths that fill vectors
//    badly), stretches (stretches of the map in the lanes, for one-dimensional kernels there), batch (images in the lanes, for
//    small maps), points (one tap).
#include "conv/gather.h"
#include "conv/points.h"
#include "conv/weight_grad.h"

namespace gossamer {
namespace {

// Runs one gather, of one or more phases, in `memory` or, where that is NULL, says how many floats it would need there.
i64 run_gather(const gossamer_conv& c, const Gather* g, int phases, const Plan& p, int threads, float* memory) {
    if (p.shape == kPoints) {
        PointsRun run;
        const i64 floats = points_scratch(*g, c.indptr[c.out_channels], threads, &run);
        if (memory) run_points(*g, c.indptr[c.out_channels], threads, &run, memory);
        return floats;
    }
    GatherRun run;
    const i64 floats = gather_scratch(g, phases, p, threads, &run);
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
        if (p.shape == kStretches) join_taps(&g);
        floats = run_gather(c, &g, 1, p, threads, sizing ? nullptr : memory + tables);
    }
    return GOSSAMER_OK;
}

// What the gathers of an input gradient share.
struct InputGrad {
    const gossamer_conv& c;
    const float *grad_output, *weight;
    float* grad_input;
    int threads;
    Transposed transposed;
    int32_t *list, *taps;                // room for input_grad_taps, and for three tables of all taps
    float* memory;                       // of the gathers, or NULL to learn how much they need
};

// The gather of one phase, its taps in the tables from the used-th on.
Gather input_grad_phase(const InputGrad& r, i64 y, i64 x, bool allow_joined, i64 used) {
    const i64 kernel = r.c.kernel_h * r.c.kernel_w;
    Gather g;
    describe_input_grad(r.c, y, x, &g);
    g.src = r.grad_output;
    g.weight = kernel == 1 ? &r.transposed.listeners->weight : r.weight;
    g.dst = r.grad_input;
    g.begin = r.transposed.begin;
    g.source = &r.transposed.listeners->output;
    g.position = kernel == 1 ? nullptr : &r.transposed.listeners->position;
    g.entry = sizeof(Listener) / sizeof(int32_t);
    g.tap_row = r.taps + used;
    g.tap_col = g.tap_row + kernel;
    g.tap_weight = g.tap_col + kernel;
    input_grad_taps(r.c, y, x, allow_joined, r.list, &g);
    return g;
}

// Strides of two: one copy of the output gradient serves all phases, and their sums go to whole rows. False where the map
// has images in its lanes or a phase is missing.
bool input_grad_together(const InputGrad& r, i64* floats) {
    const gossamer_conv& c = r.c;
    const i64 phases = c.stride_h * c.stride_w;
    if (c.stride_h > 2 || c.stride_w > 2 || phases == 1 || c.kernel_h * c.kernel_w == 1 || c.in_h < c.stride_h || c.in_w < c.stride_w)
        return false;
    Gather g[kMaxPhases];
    const auto describe = [&](bool allow_joined) {
        i64 used = 0;
        for (i64 i = 0; i < phases; i++) {
            g[i] = input_grad_phase(r, i / c.stride_w, i % c.stride_w, allow_joined, used);
            used += g[i].column * g[i].columns;
        }
    };
    describe(false);
    Gather all = g[0];
    all.columns = (int)(c.kernel_h * c.kernel_w);  // every tap belongs to one phase
    const Plan p = make_plan(all, r.threads, false);
    if (p.shape != kRows && p.shape != kFlat) return false;
    if (p.shape == kRows) describe(true);
    *floats = run_gather(c, g, (int)phases, p, r.threads, r.memory);
    return true;
}

i64 input_grad_by_phase(const InputGrad& r) {
    const gossamer_conv& c = r.c;
    const bool gaps = phases_reached(c.kernel_h, c.stride_h, c.dil_h) * phases_reached(c.kernel_w, c.stride_w, c.dil_w) <
                      c.stride_h * c.stride_w;  // some inputs are touched by no tap
    // of a single tap, whose one phase then writes the zeros between its positions too
    const bool single = c.kernel_h * c.kernel_w == 1 && modulo(-c.pad_h, c.stride_h) < c.in_h && modulo(-c.pad_w, c.stride_w) < c.in_w;
    if (gaps && !single && r.memory) fill_zero(r.grad_input, c.batch * c.in_channels * c.in_h * c.in_w);
    i64 floats = 0;
    for (i64 y = 0; y < least(c.stride_h, c.in_h); y++)
        for (i64 x = 0; x < least(c.stride_w, c.in_w); x++) {
            Gather g = input_grad_phase(r, y, x, true, 0);
            if (g.columns == 0) continue;
            g.zeros = gaps && single;
            const Plan p = make_plan(g, r.threads, false);
            if (p.shape != kRows) input_grad_taps(c, y, x, false, r.list, &g);
            if (p.shape == kStretches) join_taps(&g);
            floats = most(floats, run_gather(c, &g, 1, p, r.threads, r.memory));
        }
    return floats;
}

int input_grad(const gossamer_conv& c, const float* grad_output, const float* weight, float* grad_input, int threads) {
    InputGrad r = {c, grad_output, weight, grad_input, useful_threads(c, threads), {}, nullptr, nullptr, nullptr};
    const i64 graph = transposed_floats(c), lists = 2 * (c.kernel_h + c.kernel_w);
    const i64 tables = round_up(graph + lists + 3 * c.kernel_h * c.kernel_w, kLanes);
    i64 floats = 0;
    for (int pass = 0; pass < 2; pass++) {
        const bool sizing = pass == 0;
        float* memory = scratch(tables + floats);
        if (!memory) return GOSSAMER_NO_MEMORY;
        r.transposed = transposed_at(c, memory);
        r.list = r.transposed.begin + graph;
        r.taps = r.list + lists;
        r.memory = sizing ? nullptr : memory + tables;
        if (!sizing) transpose_connections(c, weight, r.transposed);
        if (!input_grad_together(r, &floats)) floats = input_grad_by_phase(r);
    }
    return GOSSAMER_OK;
}

const char* kernel_name(const gossamer_conv& c, char pass) {
    const i64 kernel = c.kernel_h * c.kernel_w, lists = 2 * (c.kernel_h + c.kernel_w);
    float* memory = scratch(lists + 3 * kernel);
    if (!memory) return "none";
    int32_t* list = reinterpret_cast<int32_t*>(memory);
    Gather g;
    g.tap_row = list + lists;
    g.tap_col = g.tap_row + kernel;
    g.tap_weight = g.tap_col + kernel;
    g.dst = nullptr;
    if (pass == 'i') {
        describe_input_grad(c, 0, 0, &g);
        input_grad_taps(c, 0, 0, true, list, &g);
        if (g.columns == 0) return "none";
    } else {
        describe_forward(c, &g);
        forward_taps(c, pass == 'w' ? weight_grad_joined(c) : forward_joined(c), &g);
    }
    const Plan p = make_plan(g, 1, pass == 'w');
    switch (p.shape) {
        case kRows: return g.column > 1 ? "rows, taps in columns" : "rows";
        case kFlat: return "rows run together";
        case kBatch: return p.by_position ? "images in lanes, by position" : "images in lanes";
        case kStretches: return "stretches in lanes";
        case kPoints: return "points";
    }
    return "none";
}

}  // namespace

#define GOSSAMER_TABLE_(build) kernels_##build
#define GOSSAMER_TABLE(build) GOSSAMER_TABLE_(build)
extern const Kernels GOSSAMER_TABLE(GOSSAMER_BUILD);
const Kernels GOSSAMER_TABLE(GOSSAMER_BUILD) = {forward, input_grad, weight_grad, kernel_name};

}  // namespace gossamer
