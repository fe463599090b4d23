// The forward pass of layers whose outputs share inputs: how the source is prepared for shared.h, in pieces that fit the cache.
//
//  - in place: nothing is padded and no stride taken, so that the input is read where it lies;
//  - lines: padded copies (layout.h) of a band of rows, or of several small images one after the other in one line;
//  - images in lanes: copies of small maps with 16 images at a position, and where the kernel mostly falls outside the map, without
//    padding and with a list of taps for each position.
#include "base/arena.h"
#include "conv/place.h"
#include "conv/shared.h"

namespace gossamer {
namespace {

enum Prepared { kInPlace, kLines, kLanesOfImages };

struct SpanList {
    Span* span;
    i64 count;
};

struct SharedForward {
    const gossamer_conv* conv;
    const float* input;
    Shared shared;         // its source and destination are those of a task
    float* output;
    Prepared prepared;
    bool by_position;      // images in lanes: each position has its own taps
    i64 rows, cols, area;  // of the output
    Layout layout;         // of an image's plane, or of a group's with images in lanes
    i64 image, plane;      // from image to image in a line, from channel to channel
    i64 band, bands, group, groups;
    i64 at_once;           // images in lanes: outputs computed before they are stored
    int across, runs;
    TapRun *run, *single;
    SpanList list[2][2];   // of a full band or the last, of a full group or the last
    Span* spans;
    Piece* pieces;
    float *planes, *sums;  // [threads or 1][planes], [threads][sums]
    i64 planes_floats, sums_floats;
    i64* counters;
    i64 tasks, split;      // in place: how many tasks share the outputs of the same spans
    bool alone;            // every thread takes whole tasks
};

i64 first_row(const gossamer_conv& c) { return -c.pad_h; }
i64 last_row(const gossamer_conv& c) { return -c.pad_h + (c.kernel_h - 1) * c.dil_h; }
i64 first_col(const gossamer_conv& c) { return -c.pad_w; }
i64 last_col(const gossamer_conv& c) { return -c.pad_w + (c.kernel_w - 1) * c.dil_w; }

Layout shared_layout(const SharedForward& f, i64 rows, i64 inner, Fit fit) {
    const gossamer_conv& c = *f.conv;
    return make_layout(rows, f.cols, c.stride_h, c.stride_w, first_row(c), last_row(c), first_col(c), last_col(c), c.in_w, inner, fit);
}

// From image to image in a line: the zero rows below one are those above the next.
i64 image_step(const SharedForward& f, const Layout& l) {
    const gossamer_conv& c = *f.conv;
    if (c.stride_h > 1 || c.stride_w > 1) return l.plane;
    const i64 above = most(0, -first_row(c)), below = most(0, f.rows - 1 + last_row(c) - (c.in_h - 1));
    return (l.rows - least(least(above, below), last_row(c) - first_row(c))) * l.pitch;
}

Map map_of(const SharedForward& f, i64 rows, i64 images) {
    const gossamer_conv& c = *f.conv;
    const i64 image = c.out_channels * f.area;
    if (f.prepared == kInPlace) return {images, rows, f.cols, c.in_channels * c.in_h * c.in_w, c.in_w, image, f.cols, false, true};
    if (f.prepared == kLines) return {images, rows, f.cols, f.image, f.layout.pitch, image, f.cols, false, false};
    return {1, rows, f.cols * f.group, 0, f.layout.pitch, 0, f.cols * f.group, false, false};
}

i64 vectors_of(const Map& m) {
    const Lines l = lines_of(joined(m));
    return l.count * l.vectors;
}

// Images in a line where one image's positions fill vectors badly.
void plan_lines(SharedForward* f, int threads) {
    const gossamer_conv& c = *f->conv;
    const i64 budget = kCacheFloats * 3 / 4;
    f->prepared = kLines;
    f->group = 1;
    for (f->band = f->rows;;) {
        f->layout = shared_layout(*f, f->band, 1, kTight);
        f->image = image_step(*f, f->layout);
        const i64 vectors = vectors_of(map_of(*f, f->band, 1));
        const Layout tight = f->layout;
        f->layout = shared_layout(*f, f->band, 1, kVectorRows);
        if (vectors_of(map_of(*f, f->band, 1)) > vectors) f->layout = tight;
        if (f->band <= 4 || f->layout.plane * c.in_channels <= budget) break;
        const i64 parts = divide_up(f->rows, f->band) + 1;
        f->band = most(4, least(f->band - 1, divide_up(f->rows, parts)));
    }
    f->bands = divide_up(f->rows, f->band);
    if (f->bands == 1 && vectors_of(map_of(*f, f->rows, 1)) <= 32) {
        f->layout = shared_layout(*f, f->rows, 1, kTight);
        f->image = image_step(*f, f->layout);
        const i64 room = most(1, budget / (f->layout.plane * c.in_channels));
        f->group = least(divide_up(c.batch, threads), least(room, 64));
        f->group = divide_up(c.batch, divide_up(c.batch, most(1, f->group)));
    }
    f->image = image_step(*f, f->layout);
    f->plane = round_up((f->group - 1) * f->image + f->layout.plane + kLanes, kLanes);
}

// False where few images or wide maps make lines the better choice.
bool plan_lanes(SharedForward* f, int threads) {
    const gossamer_conv& c = *f->conv;
    const i64 taps = c.kernel_h * c.kernel_w, positions = f->rows * f->cols;
    const i64 room = kCacheFloats * 3 / 2 / (most(c.in_h * c.in_w, positions) * c.in_channels) / kLanes;  // vectors of images
    if (taps == 1 || c.batch * 2 < kLanes || f->cols > 8 || positions > 64 || room < 1) return false;
    f->prepared = kLanesOfImages;
    const i64 groups = most(divide_up(c.batch, least(room, 4) * kLanes), least(threads, divide_up(c.batch, kLanes)));
    f->group = round_up(divide_up(c.batch, groups), kLanes);
    f->by_position = positions * taps <= 4096 && f->group >= 3 * kLanes;
    f->band = f->rows;
    f->bands = 1;
    f->layout = f->by_position ? make_layout(c.in_h, c.in_w, 1, 1, 0, 0, 0, 0, c.in_w, f->group, kUnshared)
                               : shared_layout(*f, f->rows, f->group, kUnshared);
    f->plane = f->layout.plane;
    f->at_once = least(c.out_channels, round_up(divide_up(kLanes * 2, positions), f->shared.block));
    return true;
}

SharedForward plan_shared(const gossamer_conv& c, int block, int threads) {
    SharedForward f = {};
    f.conv = &c;
    f.shared.block = block;
    f.rows = out_size(c.in_h, c.kernel_h, c.stride_h, c.pad_h, c.dil_h);
    f.cols = out_size(c.in_w, c.kernel_w, c.stride_w, c.pad_w, c.dil_w);
    f.area = f.rows * f.cols;
    f.at_once = 1;
    f.layout.inner = 1;
    const bool plain = c.stride_h == 1 && c.stride_w == 1 && c.pad_h == 0 && c.pad_w == 0;
    if (plain && (c.batch == 1 || f.area >= 8 * kLanes)) {
        f.prepared = kInPlace;
        f.band = f.rows;
        f.bands = f.group = 1;
        f.layout.pitch = c.in_w;
        f.plane = c.in_h * c.in_w;
    } else if (!plan_lanes(&f, threads)) {
        plan_lines(&f, threads);
    }
    f.groups = divide_up(c.batch, f.group);
    f.tasks = f.groups * f.bands;
    const bool adjacent = c.stride_w == 1 && c.dil_w == 1 && f.layout.inner == 1 && f.prepared != kLanesOfImages;
    f.across = adjacent && (c.kernel_w == 3 || c.kernel_w == 5 || c.kernel_w == 7) ? (int)c.kernel_w : 1;
    f.runs = (int)(c.kernel_h * c.kernel_w / f.across);
    return f;
}

// Runs of `across` taps each.
TapRun* list_runs(const SharedForward& f, int across, TapRun* run) {
    const gossamer_conv& c = *f.conv;
    for (i64 i = 0; i < c.kernel_h; i++)
        for (i64 j = 0; j < c.kernel_w; j += across) {
            const i64 row = i * c.dil_h - c.pad_h, col = j * c.dil_w - c.pad_w;
            const i64 source = f.prepared == kInPlace ? row * c.in_w + col : tap_offset(f.layout, c.stride_h, c.stride_w, row, col);
            *run++ = {source, i * c.kernel_w + j};
        }
    return run;
}

// A span for each position, of all vectors of images, with the taps that fall inside the map.
i64 list_positions(const SharedForward& f, TapRun* run, Span* span) {
    const gossamer_conv& c = *f.conv;
    Span* const first = span;
    for (i64 y = 0; y < f.rows; y++)
        for (i64 x = 0; x < f.cols; x++) {
            TapRun* const begin = run;
            for (i64 i = 0; i < c.kernel_h; i++)
                for (i64 j = 0; j < c.kernel_w; j++) {
                    const i64 row = y * c.stride_h + i * c.dil_h - c.pad_h, col = x * c.stride_w + j * c.dil_w - c.pad_w;
                    if (row < 0 || row >= c.in_h || col < 0 || col >= c.in_w) continue;
                    *run++ = {row * f.layout.pitch + col * f.layout.inner, i * c.kernel_w + j};
                }
            const i64 vectors = f.group / kLanes, parts = divide_up(vectors, span_vectors(f.shared.block));
            for (i64 k = 0; k < parts; k++, span++) {
                const i64 v0 = vectors * k / parts, v1 = vectors * (k + 1) / parts;
                *span = {v0 * kLanes, (y * f.cols + x) * f.group + v0 * kLanes, nullptr, begin, (int)(run - begin), 1, (int)(v1 - v0), true, 0};
            }
        }
    return span - first;
}

// How many spans, pieces and runs there may be, of all lists.
void count_lists(const SharedForward& f, i64* spans, i64* pieces, i64* runs) {
    const i64 taps = f.conv->kernel_h * f.conv->kernel_w;
    if (f.by_position) {
        *spans = f.area * divide_up(f.group / kLanes, span_vectors(f.shared.block));
        *pieces = 0;
        *runs = f.area * taps;
        return;
    }
    const Map m = map_of(f, f.band, f.group);
    const int lists = (f.bands > 1 ? 2 : 1) * (f.groups > 1 ? 2 : 1);
    *spans = lists * most_spans(m, f.shared.block);
    *pieces = lists * most_pieces(m);
    *runs = taps;
}

void make_lists(SharedForward* f) {
    TapRun* const single = f->single;
    if (f->by_position) {
        f->list[0][0] = {f->spans, list_positions(*f, f->run, f->spans)};
        return;
    }
    list_runs(*f, f->across, f->run);
    list_runs(*f, 1, single);
    Span* span = f->spans;
    Piece* piece = f->pieces;
    for (int b = 0; b < (f->bands > 1 ? 2 : 1); b++)
        for (int g = 0; g < (f->groups > 1 && f->prepared != kLanesOfImages ? 2 : 1); g++) {
            const i64 rows = b ? f->rows - (f->bands - 1) * f->band : f->band;
            const Map m = map_of(*f, rows, g ? f->conv->batch - (f->groups - 1) * f->group : f->group);
            const i64 count = list_spans(m, f->shared.block, f->run, f->runs, f->across, single, (int)(f->conv->kernel_h * f->conv->kernel_w), span, piece);
            f->list[b][g] = {span, count};
            span += count;
            piece += most_pieces(m);
        }
}

// Channels [c0, c1) of a task.
void shared_copy(const SharedForward& f, float* planes, i64 task, i64 c0, i64 c1) {
    const gossamer_conv& c = *f.conv;
    const i64 n0 = task / f.bands * f.group, y0 = task % f.bands * f.band, images = least(f.group, c.batch - n0), plane = c.in_h * c.in_w;
    const float* from = f.input + n0 * c.in_channels * plane;
    if (f.prepared == kLanesOfImages) {
        const i64 step_y = f.by_position ? 1 : c.stride_h, step_x = f.by_position ? 1 : c.stride_w;
        copy_batch(f.layout, step_y, step_x, from, images, c.in_channels, c.in_h, c.in_w, y0, c0, c1, planes);
        return;
    }
    for (i64 channel = c0; channel < c1; channel++) {
        float* to = planes + channel * f.plane;
        for (i64 n = 0; n < images; n++)
            copy_plane(f.layout, c.stride_h, c.stride_w, from + (n * c.in_channels + channel) * plane, c.in_h, c.in_w, y0, to + n * f.image);
        fill_zero(to + (images - 1) * f.image + f.layout.plane, kLanes);  // what lay there might be denormal numbers, which are slow
    }
}

// Outputs [o0, o1) of a task, whose source lies in `planes`.
void shared_outputs(const SharedForward& f, const float* planes, float* sums, i64 task, i64 o0, i64 o1) {
    const gossamer_conv& c = *f.conv;
    const i64 n = task / f.bands, b = task % f.bands;
    const bool last_band = f.bands > 1 && b == f.bands - 1, last_group = f.groups > 1 && n == f.groups - 1 && f.prepared != kLanesOfImages;
    const SpanList& list = f.list[last_band][last_group];
    Shared s = f.shared;
    s.source = planes;
    if (f.prepared != kLanesOfImages) {
        s.to = f.output + n * f.group * c.out_channels * f.area + b * f.band * f.cols;
        GOSSAMER_BUILT(shared)(s, list.span, 0, list.count, o0, o1);
        return;
    }
    Gather g;
    describe_forward(c, &g);
    g.dst = f.output;
    for (i64 o = o0; o < o1; o += f.at_once) {
        const i64 count = least(f.at_once, o1 - o);
        s.to_plane = f.area * f.group;
        s.to = sums - o * s.to_plane;
        GOSSAMER_BUILT(shared)(s, list.span, 0, list.count, o, o + count);
        place_batch(g, sums, f.group, n * f.group, least(f.group, c.batch - n * f.group), o, count, 0, f.rows, false);
    }
}

void shared_thread(void* argument, int thread, int threads) {
    const SharedForward& f = *static_cast<const SharedForward*>(argument);
    const gossamer_conv& c = *f.conv;
    float* const sums = f.sums + thread * f.sums_floats;
    float* const planes = f.planes + (f.alone ? thread : 0) * f.planes_floats;
    if (f.prepared == kInPlace) {
        const i64 chunk = round_up(divide_up(c.out_channels, f.split), f.shared.block);
        for (;;) {
            const i64 task = __atomic_fetch_add(f.counters, 1, __ATOMIC_RELAXED), n = task / f.split, o = task % f.split * chunk;
            if (n >= f.tasks) break;
            if (o < c.out_channels) shared_outputs(f, f.input + n * c.in_channels * c.in_h * c.in_w, sums, n, o, least(o + chunk, c.out_channels));
        }
        end_streams();
        return;
    }
    if (f.alone || thread == 0) fill_zero(planes + f.planes_floats - kSlack, kSlack);
    if (f.alone) {
        for (;;) {
            const i64 task = __atomic_fetch_add(f.counters, 1, __ATOMIC_RELAXED);
            if (task >= f.tasks) break;
            shared_copy(f, planes, task, 0, c.in_channels);
            shared_outputs(f, planes, sums, task, 0, c.out_channels);
        }
        end_streams();
        return;
    }
    const i64 step = most(f.at_once, f.shared.block), chunk = round_up(most(1, divide_up(c.out_channels, threads * 8)), step);
    for (i64 task = 0; task < f.tasks; task++) {
        shared_copy(f, planes, task, c.in_channels * thread / threads, c.in_channels * (thread + 1) / threads);
        barrier();
        for (;;) {
            const i64 o = __atomic_fetch_add(f.counters + task, chunk, __ATOMIC_RELAXED);
            if (o >= c.out_channels) break;
            shared_outputs(f, planes, sums, task, o, least(o + chunk, c.out_channels));
        }
        end_streams();
        barrier();
    }
}

void lay_out_shared(SharedForward* f, int threads, Arena* arena) {
    const gossamer_conv& c = *f->conv;
    f->alone = threads == 1 || f->tasks % threads == 0 || f->tasks >= 4 * threads;
    f->split = f->alone ? 1 : most(1, least(c.out_channels / f->shared.block, divide_up(4 * threads, f->tasks)));
    f->planes_floats = f->prepared == kInPlace ? 0 : round_up(f->plane * c.in_channels + kSlack, kLanes);
    f->sums_floats = f->prepared == kLanesOfImages ? f->at_once * f->area * f->group : 0;
    i64 spans, pieces, runs;
    count_lists(*f, &spans, &pieces, &runs);
    f->planes = arena->take<float>((f->alone ? threads : 1) * f->planes_floats);
    f->sums = arena->take<float>(threads * f->sums_floats);
    f->spans = arena->take<Span>(spans);
    f->pieces = arena->take<Piece>(pieces);
    f->run = arena->take<TapRun>(runs);
    f->single = arena->take<TapRun>(c.kernel_h * c.kernel_w);
    f->counters = arena->take<i64>(f->tasks);
}

void connect(SharedForward* f, const float* weight, const float* bias, bool relu) {
    const gossamer_conv& c = *f->conv;
    Shared& s = f->shared;
    s.plane = f->plane;
    s.begin = c.indptr;
    s.index = c.indices;
    s.weight = weight;
    s.kernel = c.kernel_h * c.kernel_w;
    s.to_plane = f->area;
    const bool whole_vectors = f->cols % kLanes == 0 || (f->layout.pitch == f->cols && f->area % kLanes == 0);
    s.stream = f->prepared != kLanesOfImages && whole_vectors && c.batch * c.out_channels * f->area >= kStreamFloats;
    s.bias = bias;
    s.residual = nullptr;
    s.floor = relu ? 0.0f : -__builtin_inff();
    s.ceiling = __builtin_inff();
}

unsigned kernels_of(const SharedForward& f) {
    const unsigned shared = f.shared.block == 4 ? kSharedBy4 : f.shared.block == 2 ? kSharedBy2 : 0u;
    if (f.prepared == kInPlace) return shared | kKernelInPlace;
    if (f.prepared == kLines) return shared | kKernelLines;
    return shared | (f.by_position ? kKernelByPosition : kKernelBatch);
}

}  // namespace

int GOSSAMER_BUILT(shared_forward)(const gossamer_conv& c, const float* input, const float* weight, const float* bias, bool relu, float* output,
                                   int threads, int block, unsigned* ran) {
    SharedForward f = plan_shared(c, block, threads);
    *ran = kernels_of(f);
    f.input = input;
    f.output = output;
    if (!in_scratch([&](Arena* arena) { lay_out_shared(&f, threads, arena); }).memory) return GOSSAMER_NO_MEMORY;
    connect(&f, weight, bias, relu);
    make_lists(&f);
    for (i64 i = 0; i < f.tasks; i++) f.counters[i] = 0;
    parallel(threads, shared_thread, &f);
    return GOSSAMER_OK;
}

unsigned GOSSAMER_BUILT(shared_forward_planned)(const gossamer_conv& c, int threads, int block) {
    return kernels_of(plan_shared(c, block, threads));
}

}  // namespace gossamer
