// Convolution: its passes, each planned (a value, no memory) and then run. Compiled once for each line of isa.inc, with
// GOSSAMER_BUILD naming that line.
//
// The trap of such a file: anything with a weak symbol (an inline function or template outside the anonymous namespace,
// any part of the STL) may be linked from the newest build into all of them. So: no STL, no headers with inline
// functions, everything in the anonymous namespace but the one table at the end. A test looks with nm.
//
// docs/kernels.md says how the kernels work; the short form:
//  - forward and input gradient are both a Gather: destination plane o = sum over its connections and taps of a weight
//    times a shifted source plane. The input gradient gathers with transposed connections, in stride phases.
//  - source planes are first copied into a zero-padded Layout in which every tap is one constant offset.
//  - five arrangements of lanes (gather.h, points.h): rows (vectors along the width), flat (rows run on, for widths that fill vectors
//    badly), stretches (stretches of the map in the lanes, for one-dimensional kernels there), batch (images in the lanes, for
//    small maps), points (one tap).
#include "conv/gather.h"
#include "conv/points.h"
#include "conv/shared.h"
#include "conv/shared_grad.h"
#include "conv/weight_grad.h"

namespace gossamer {
namespace {

// The pieces of one gather, and what it runs.
struct Run {
    PointsRun points;
    GatherRun gather;
};

void lay_out(const GatherPlan& p, Arena* arena, Run* run) {
    if (p.how.arrangement == kPoints)
        run->points = lay_out_points(p, arena);
    else
        run->gather = lay_out_gather(p, arena);
}

void run_gather(const GatherPlan& p, Run* run, unsigned* ran) {
    *ran |= kernel_of(p);
    if (p.how.arrangement == kPoints)
        run_points(&run->points);
    else
        gather(p, &run->gather);
}

// Whether outputs that share inputs are computed from tiles of positions of all channels (points.h): of single taps, where positions
// do not follow each other in the input, or are few in each of many images.
bool shared_in_points(const gossamer_conv& c) {
    const bool plain = c.stride_h == 1 && c.stride_w == 1 && c.pad_h == 0 && c.pad_w == 0;
    return c.kernel_h * c.kernel_w == 1 && (!plain || (c.batch > 1 && c.in_h * c.in_w < 8 * kLanes));
}

GatherPlan plan_forward(const gossamer_conv& c, const float* output, int threads, int block) {
    GatherPlan p;
    Gather& g = p.g[0];
    describe_forward(c, &g);
    g.dst = const_cast<float*>(output);
    p.connections = c.indptr[c.out_channels];
    plan_gather(&p, threads, false, joinable(g));
    p.block = block;
    return p;
}

int forward(const gossamer_conv& c, const float* input, const float* weight, const float* bias, bool relu, float* output, int threads,
            unsigned* ran) {
    const int block = block_of(c.indptr, c.indices, c.out_channels);
    if (block > 1 && !shared_in_points(c))
        return GOSSAMER_BUILT(shared_forward)(c, input, weight, bias, relu, output, useful_threads(c, threads), block, ran);
    GatherPlan p = plan_forward(c, output, useful_threads(c, threads), block);
    Gather& g = p.g[0];
    g.src = input;
    g.weight = weight;
    g.bias = bias;
    g.relu = relu;
    Run run;
    if (!in_scratch([&](Arena* arena) { lay_out(p, arena, &run); }).memory) return GOSSAMER_NO_MEMORY;
    *ran = 0;
    run_gather(p, &run, ran);
    return GOSSAMER_OK;
}

// An input gradient is one gather of all phases together, or one gather after the other.
struct InputGradPlan {
    bool together;
    GatherPlan all;   // together
    i64 rows, cols;   // phases
    bool gaps;        // some inputs are touched by no tap
    bool single;      // a single tap, whose one phase then writes the zeros between its positions too
};

void describe_phase(const gossamer_conv& c, i64 y, i64 x, const float* grad_input, GatherPlan* p, int i) {
    describe_input_grad(c, y, x, &p->g[i]);
    p->g[i].entry = sizeof(Listener) / sizeof(int32_t);
    p->g[i].dst = const_cast<float*>(grad_input);
    p->connections = c.indptr[c.out_channels];
}

// Strides of two: one copy of the output gradient serves all phases, and their sums go to whole rows. False where the map
// has images in its lanes or a phase is missing.
bool plan_together(const gossamer_conv& c, const float* grad_input, int threads, GatherPlan* p) {
    const i64 phases = c.stride_h * c.stride_w;
    if (c.stride_h > 2 || c.stride_w > 2 || phases == 1 || c.kernel_h * c.kernel_w == 1 || c.in_h < c.stride_h || c.in_w < c.stride_w)
        return false;
    Reach reach = {0, 0, 0, 0, 0};
    for (int i = 0; i < phases; i++) {
        describe_phase(c, i / c.stride_w, i % c.stride_w, grad_input, p, i);
        reach = joined(reach, reach_of(p->g[i]));
    }
    p->phases = (int)phases;
    p->threads = threads;
    p->how = make_plan(p->g[0], reach, threads, false);
    if (p->how.arrangement != kRows && p->how.arrangement != kFlat) return false;
    for (int i = 0; i < phases; i++)
        if (p->how.arrangement == kRows && joinable(p->g[i])) take_in_columns(&p->g[i]);
    return true;
}

InputGradPlan plan_input_grad(const gossamer_conv& c, const float* grad_input, int threads) {
    InputGradPlan p;
    p.together = plan_together(c, grad_input, threads, &p.all);
    p.rows = least(c.stride_h, c.in_h);
    p.cols = least(c.stride_w, c.in_w);
    p.gaps = phases_reached(c.kernel_h, c.stride_h, c.dil_h) * phases_reached(c.kernel_w, c.stride_w, c.dil_w) < c.stride_h * c.stride_w;
    p.single = c.kernel_h * c.kernel_w == 1 && modulo(-c.pad_h, c.stride_h) < c.in_h && modulo(-c.pad_w, c.stride_w) < c.in_w;
    return p;
}

// step(plan) for each gather of an input gradient.
template <class Step>
void each_gather(const gossamer_conv& c, InputGradPlan& p, const float* grad_input, int threads, const Step& step) {
    if (p.together) return step(p.all);
    for (i64 y = 0; y < p.rows; y++)
        for (i64 x = 0; x < p.cols; x++) {
            GatherPlan phase;
            describe_phase(c, y, x, grad_input, &phase, 0);
            phase.g[0].zeros = p.gaps && p.single;
            if (phase.g[0].columns == 0) continue;
            plan_gather(&phase, threads, false, joinable(phase.g[0]));
            step(phase);
        }
}

int input_grad(const gossamer_conv& c, const float* grad_output, const float* weight, float* grad_input, int threads, unsigned* ran) {
    threads = useful_threads(c, threads);
    if (GOSSAMER_BUILT(takes_shared_input_grad)(c)) return GOSSAMER_BUILT(shared_input_grad)(c, grad_output, weight, grad_input, threads, ran);
    InputGradPlan p = plan_input_grad(c, grad_input, threads);
    const i64 kernel = c.kernel_h * c.kernel_w;
    Transposed t;
    i64 tables = 0;  // the gathers, which follow each other, share what comes after these
    Run run;
    const auto set = [&](Gather& g) {
        g.src = grad_output;
        g.weight = kernel == 1 ? &t.listeners->weight : weight;
        g.begin = t.begin;
        g.source = &t.listeners->output;
        g.position = kernel == 1 ? nullptr : &t.listeners->position;
    };
    const auto lay_out_step = [&](const GatherPlan& step, Arena* arena) {
        arena->used = tables;
        lay_out(step, arena, &run);
    };
    Arena arena = in_scratch([&](Arena* pieces) {
        t = take_transposed(c, pieces);
        tables = pieces->used;
        if (!pieces->memory) each_gather(c, p, grad_input, threads, [&](GatherPlan& step) { lay_out_step(step, pieces); });
    });
    if (!arena.memory) return GOSSAMER_NO_MEMORY;
    transpose_connections(c, weight, t);
    if (!p.together && p.gaps && !p.single) fill_zero(grad_input, c.batch * c.in_channels * c.in_h * c.in_w);
    *ran = 0;
    each_gather(c, p, grad_input, threads, [&](GatherPlan& step) {
        for (int i = 0; i < step.phases; i++) set(step.g[i]);
        lay_out_step(step, &arena);
        run_gather(step, &run, ran);
    });
    return GOSSAMER_OK;
}

unsigned planned(const gossamer_conv& c, char pass, int threads) {
    threads = useful_threads(c, threads);
    const int block = block_of(c.indptr, c.indices, c.out_channels);
    if (pass == 'f' && block > 1 && !shared_in_points(c)) return GOSSAMER_BUILT(shared_forward_planned)(c, threads, block);
    if (pass == 'f') return kernel_of(plan_forward(c, nullptr, threads, block));
    if (pass == 'w') return c.kernel_h * c.kernel_w == 1 ? GOSSAMER_BUILT(shared_weight_grad_planned)(c) : kernel_of(plan_weight_grad(c));
    if (GOSSAMER_BUILT(takes_shared_input_grad)(c)) return GOSSAMER_BUILT(shared_input_grad_planned)(c);
    InputGradPlan p = plan_input_grad(c, nullptr, threads);
    unsigned all = 0;
    each_gather(c, p, nullptr, threads, [&](GatherPlan& step) { all |= kernel_of(step); });
    return all;
}

}  // namespace

#define GOSSAMER_TABLE_(build) kernels_##build
#define GOSSAMER_TABLE(build) GOSSAMER_TABLE_(build)
extern const Kernels GOSSAMER_TABLE(GOSSAMER_BUILD);
const Kernels GOSSAMER_TABLE(GOSSAMER_BUILD) = {forward, input_grad, weight_grad, planned};

}  // namespace gossamer
