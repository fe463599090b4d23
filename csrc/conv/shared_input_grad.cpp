// Input gradient where outputs share their inputs, seen from the other side: the planes of a block are read for several of its
// inputs at once. All inputs' sums lie in scratch memory, a stretch of positions at a time, and every block adds its share to
// those that it listens to, so that connections need no transposing and a vector loaded serves several sums.
#include "base/arena.h"
#include "conv/place.h"
#include "conv/shared.h"
#include "conv/shared_grad.h"

namespace gossamer {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// 1x1 kernels: a block's vectors stay in registers for all its inputs, each of which is loaded, added to B times and stored.

constexpr int most_point_vectors(int block) { return kRegisters == 32 || block == 2 ? 4 : 2; }
constexpr i64 kPointTile = 4 * kLanes;

struct SharedPoints {
    const gossamer_conv* c;
    const float *grad_output, *weight;
    float* grad_input;
    int block;
    i64 area, run;           // positions of an image, and how many follow each other: those or, where they are few, those of all images
    i64 vectors, tiles;      // of a run
    bool stream;
    float *planes, *sums;    // [threads][channels][kPointTile]
    i64* counter;
};

// One tile of a block's output gradients, B planes `pitch` apart, of which `last` floats of the last vector count.
template <int B, int V>
void add_points(const SharedPoints& p, i64 o, const float* from, i64 pitch, int last, float* sums) {
    const gossamer_conv& c = *p.c;
    vec g[B][V];
    const float* weight[B];
#pragma GCC unroll 4
    for (int b = 0; b < B; b++) {
        weight[b] = p.weight + c.indptr[o + b];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            const float* const x = from + b * pitch + v * kLanes;
            g[b][v] = v < V - 1 || last == kLanes ? load(x) : load_first(x, last);
            __builtin_prefetch(x + V * kLanes);  // of the next tile
        }
    }
    const int32_t* const index = c.indices + c.indptr[o];
    const i64 count = c.indptr[o + 1] - c.indptr[o];
    for (i64 k = 0; k < count; k++) {
        float* const to = sums + index[k] * (V * kLanes);
        vec sum[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sum[v] = load(to + v * kLanes);
#pragma GCC unroll 4
        for (int b = 0; b < B; b++) {
            const vec w = broadcast(weight[b][k]);
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sum[v] = fma(w, g[b][v], sum[v]);
        }
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) store(to + v * kLanes, sum[v]);
    }
}

typedef void (*PointsFunction)(const SharedPoints&, i64 o, const float* from, i64 pitch, int last, float* sums);

template <int B>
PointsFunction points_function(i64 vectors) {
    if (vectors == 1) return add_points<B, 1>;
    if constexpr (most_point_vectors(B) == 4) {
        if (vectors == 3) return add_points<B, 3>;
        if (vectors == 4) return add_points<B, 4>;
    }
    return add_points<B, 2>;
}

// Calls body(image, where it begins in the image, where it begins in the tile, floats) for each image's part of positions [begin, end).
template <class Body>
GS_INLINE void each_image(i64 area, i64 begin, i64 end, Body body) {
    for (i64 at = begin; at < end;) {
        const i64 image = at / area, count = least(end - at, (image + 1) * area - at);
        body(image, at - image * area, at - begin, count);
        at += count;
    }
}

void shared_points_tile(const SharedPoints& p, i64 task, float* planes, float* sums) {
    const gossamer_conv& c = *p.c;
    const i64 at = task % p.tiles, v0 = p.vectors * at / p.tiles, v1 = p.vectors * (at + 1) / p.tiles, tile = (v1 - v0) * kLanes;
    const i64 start = task / p.tiles * p.run, begin = start + v0 * kLanes, end = start + least(v1 * kLanes, p.run);
    const float* from = p.grad_output + begin / p.area * c.out_channels * p.area + begin % p.area;
    i64 pitch = p.area;
    int last = (int)(end - begin - (tile - kLanes));
    if (p.run != p.area) {
        each_image(p.area, begin, end, [&](i64 image, i64 place, i64 to, i64 count) {
            for (i64 o = 0; o < c.out_channels; o++)
                copy(planes + o * tile + to, p.grad_output + (image * c.out_channels + o) * p.area + place, count);
        });
        from = planes;
        pitch = tile;
        if (last < kLanes)
            for (i64 o = 0; o < c.out_channels; o++) fill_zero(planes + o * tile + end - begin, kLanes - last);
        last = kLanes;
    }
    fill_zero(sums, c.in_channels * tile);
    const PointsFunction add = p.block == 4 ? points_function<4>(v1 - v0) : points_function<2>(v1 - v0);
    for (i64 o = 0; o < c.out_channels; o += p.block) add(p, o, from + o * pitch, pitch, last, sums);
    each_image(p.area, begin, end, [&](i64 image, i64 place, i64 from, i64 count) {
        for (i64 i = 0; i < c.in_channels; i++) {
            float* const to = p.grad_input + (image * c.in_channels + i) * p.area + place;
            const float* const sum = sums + i * tile + from;
            if (!p.stream)
                copy(to, sum, count);
            else
                for (i64 x = 0; x < count; x += kLanes) stream(to + x, load(sum + x));
        }
    });
}

void shared_points_thread(void* argument, int thread, int) {
    const SharedPoints& p = *static_cast<const SharedPoints*>(argument);
    float* const planes = p.planes + thread * p.c->out_channels * kPointTile;
    float* const sums = p.sums + thread * p.c->in_channels * kPointTile;
    const i64 tasks = p.c->batch * p.area / p.run * p.tiles;
    for (;;) {
        const i64 task = __atomic_fetch_add(p.counter, 1, __ATOMIC_RELAXED);
        if (task >= tasks) break;
        shared_points_tile(p, task, planes, sums);
    }
    end_streams();
}

int run_points(const gossamer_conv& c, int block, const float* grad_output, const float* weight, float* grad_input, int threads) {
    SharedPoints p = {&c, grad_output, weight, grad_input, block, c.in_h * c.in_w, 0, 0, 0, false, nullptr, nullptr, nullptr};
    p.run = p.area >= 8 * kLanes ? p.area : c.batch * p.area;
    p.vectors = divide_up(p.run, kLanes);
    const i64 vectors = block == 4 ? most_point_vectors(4) : most_point_vectors(2), wanted = divide_up(threads * p.run, c.batch * p.area);
    p.tiles = most(divide_up(p.vectors, vectors), least(p.vectors, wanted));
    p.stream = c.batch * c.in_channels * p.area >= kStreamFloats && p.area % kLanes == 0 &&
               reinterpret_cast<uintptr_t>(grad_input) % sizeof(vec) == 0;
    const auto lay_out = [&](Arena* arena) {
        p.counter = arena->take<i64>(1);
        p.planes = arena->take<float>(threads * c.out_channels * kPointTile);
        p.sums = arena->take<float>(threads * c.in_channels * kPointTile);
    };
    if (!in_scratch(lay_out).memory) return GOSSAMER_NO_MEMORY;
    *p.counter = 0;
    parallel(threads, shared_points_thread, &p);
    return GOSSAMER_OK;
}

// ---------------------------------------------------------------------------------------------------------------------
// Larger kernels: a tile of a few vectors of positions of several inputs at once is loaded, added to by all taps of all planes
// of a block, and stored. Lanes hold positions, rows following each other with the zeros between them, or images where maps are
// small; then the taps that fall outside the map are left out.

constexpr int kMostInputs = 4, kMostVectors = kRegisters == 32 ? 4 : 2;  // of a tile: the sums fill the registers

struct SharedTap {
    i64 source, weight;  // in bytes, from a position and from the connection's first weight
};

struct SharedTile {
    i64 source, sum;     // floats from the begin of each plane
    i64 sum_plane;       // from one input's sums to the next's
    int vectors, taps;
    const SharedTap* tap;
};

struct SharedGrad {
    const gossamer_conv* c;
    int block;
    const float *grad_output, *weight;
    float* grad_input;
    Gather g[4];                    // by phase
    int phases;
    bool lanes;                     // of images
    Layout layout;
    i64 band, bands, group, groups;
    i64 sum_plane;                  // of the largest phase of one input
    const SharedTile* tile;         // [bands][tiles] of all phases
    i64* tiles;                     // [bands + 1]: where a band's begin
    float* work;                    // of each thread or of all: planes, then sums
    i64 work_floats;
    i64* counters;
    bool alone;                     // every thread takes whole tasks
};

template <int B, int D, int V>
void add_inputs(const SharedGrad& s, const SharedTile& t, const float* planes, i64 o, i64 first, float* sums) {
    const gossamer_conv& c = *s.c;
    const i64 kernel = c.kernel_h * c.kernel_w, count = c.indptr[o + 1] - c.indptr[o];
    const int32_t* const index = c.indices + c.indptr[o] + first;
    vec sum[D][V];
    float* to[D];
#pragma GCC unroll 4
    for (int d = 0; d < D; d++) {
        to[d] = sums + index[d] * t.sum_plane + t.sum;
        __builtin_prefetch(sums + index[first + D + d < count ? D + d : d] * t.sum_plane + t.sum, 1);
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sum[d][v] = load(to[d] + v * kLanes);
    }
    const char* from = reinterpret_cast<const char*>(planes + o * s.layout.plane + t.source);
    const char* weight = reinterpret_cast<const char*>(s.weight + (c.indptr[o] + first) * kernel);
    const SharedTap* const last = t.tap + t.taps;
    const i64 step = kernel * (i64)sizeof(float);
    for (int b = 0; b < B; b++, from += s.layout.plane * sizeof(float), weight += count * step)
        for (const SharedTap* tap = t.tap; tap < last; tap++) {
            const float* const x = reinterpret_cast<const float*>(from + tap->source);
            const char* const w = weight + tap->weight;
            vec in[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) in[v] = pin(load(x + v * kLanes));
#pragma GCC unroll 4
            for (int d = 0; d < D; d++) {
                const vec factor = broadcast(*reinterpret_cast<const float*>(w + d * step));
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) sum[d][v] = fma(factor, in[v], sum[d][v]);
            }
        }
#pragma GCC unroll 4
    for (int d = 0; d < D; d++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) store(to[d] + v * kLanes, sum[d][v]);
}

template <int B, int V, int D = kMostInputs>
void add_block(const SharedGrad& s, const SharedTile& t, const float* planes, i64 o, i64 first, i64 last, float* sums) {
    for (; first + D <= last; first += D) add_inputs<B, D, V>(s, t, planes, o, first, sums);
    if constexpr (D > 1) add_block<B, V, D - 1>(s, t, planes, o, first, last, sums);
}

template <int B>
void add_tile(const SharedGrad& s, const SharedTile& t, const float* planes, float* sums) {
    const gossamer_conv& c = *s.c;
    for (i64 i = 0; i < c.in_channels; i++) fill_zero(sums + i * t.sum_plane + t.sum, t.vectors * kLanes);
    for (i64 o = 0; o < c.out_channels && t.taps; o += B) {
        const i64 count = c.indptr[o + 1] - c.indptr[o];
        if (t.vectors == 1) add_block<B, 1>(s, t, planes, o, 0, count, sums);
        if (t.vectors == 2) add_block<B, 2>(s, t, planes, o, 0, count, sums);
        if constexpr (kMostVectors == 4) {
            if (t.vectors == 3) add_block<B, 3>(s, t, planes, o, 0, count, sums);
            if (t.vectors == 4) add_block<B, 4>(s, t, planes, o, 0, count, sums);
        }
    }
}

// From one input's sums of a phase to the next's.
i64 sum_plane(const SharedGrad& s, int phase) { return s.lanes ? s.g[phase].rows * s.g[phase].cols * s.group : s.sum_plane; }

// Sums of the inputs [first, last) of a band, [phase][input], to their places.
void place_sums(const SharedGrad& s, i64 n, i64 images, i64 y0, i64 first, i64 last, const float* sums) {
    const gossamer_conv& c = *s.c;
    const i64 pitch = s.layout.pitch, phase_floats = c.in_channels * s.sum_plane;
    if (s.lanes) {
        for (int i = 0; i < s.phases; i++)
            place_batch(s.g[i], sums + i * phase_floats + first * sum_plane(s, i), s.group, n, images, first, last - first, 0, s.g[i].rows, false);
        return;
    }
    for (i64 k = first; k < last; k++) {
        float* const plane = s.grad_input + (n * c.in_channels + k) * c.in_h * c.in_w;
        for (int i = 0; i < s.phases; i++) {
            const float* from = sums + i * phase_floats + k * s.sum_plane;
            const i64 rows = least(s.band, s.g[i].rows - y0);
            if (s.g[i].dst_step_x == 1 || s.phases == 1 || c.in_w == 1) {
                place_rows(s.g[i], from, pitch, y0, rows, plane);
                continue;
            }
            for (i64 y = 0; y < rows; y++, from += pitch)  // with the phase that follows
                copy_interleaved(plane + ((y0 + y) * s.g[i].dst_step_y + s.g[i].dst_y) * c.in_w, from, from + phase_floats, c.in_w);
            i++;
        }
    }
}

// A task's share of a member of a team, which waits for the others where they are several.
void shared_grad_task(const SharedGrad& s, i64 task, float* planes, int member, int members, i64* counters) {
    const gossamer_conv& c = *s.c;
    const Gather& g = s.g[0];
    float* const sums = planes + c.out_channels * s.layout.plane + kSlack;
    const i64 n = task / s.bands * s.group, images = least(s.group, c.batch - n), band = task % s.bands, y0 = band * s.band;
    const float* const from = s.grad_output + n * g.channels * g.height * g.width;
    const i64 c0 = g.channels * member / members, c1 = g.channels * (member + 1) / members;
    if (s.lanes)
        copy_batch(s.layout, 1, 1, from, images, g.channels, g.height, g.width, 0, c0, c1, planes);
    else
        for (i64 o = c0; o < c1; o++) copy_plane(s.layout, 1, 1, from + o * g.height * g.width, g.height, g.width, y0, planes + o * s.layout.plane);
    if (members > 1) barrier();
    for (i64 t = s.tiles[band]; t < s.tiles[band + 1]; t++) {
        if (members > 1) {
            t = s.tiles[band] + __atomic_fetch_add(counters, 1, __ATOMIC_RELAXED);
            if (t >= s.tiles[band + 1]) break;
        }
        s.block == 4 ? add_tile<4>(s, s.tile[t], planes, sums) : add_tile<2>(s, s.tile[t], planes, sums);
    }
    if (members > 1) barrier();
    place_sums(s, n, images, y0, c.in_channels * member / members, c.in_channels * (member + 1) / members, sums);
    if (members > 1) barrier();
}

void shared_grad_thread(void* argument, int thread, int threads) {
    const SharedGrad& s = *static_cast<const SharedGrad*>(argument);
    const i64 tasks = s.groups * s.bands;
    float* const planes = s.work + (s.alone ? thread * s.work_floats : 0);
    if (s.alone || thread == 0) fill_zero(planes + s.c->out_channels * s.layout.plane, kSlack);
    if (s.alone)
        for (i64 task; (task = __atomic_fetch_add(s.counters, 1, __ATOMIC_RELAXED)) < tasks;) shared_grad_task(s, task, planes, 0, 1, nullptr);
    else
        for (i64 task = 0; task < tasks; task++) shared_grad_task(s, task, planes, thread, threads, s.counters + task);
    end_streams();
}

// The tiles of all phases of the band that begins at row y0, in places after `tile` and `tap`, or only counted where those are NULL.
i64 list_tiles(const SharedGrad& s, i64 y0, SharedTile*& tile, SharedTap*& tap) {
    const i64 inner = s.layout.inner, pitch = s.layout.pitch;
    const i64 phase_floats = s.c->in_channels * s.sum_plane;
    i64 count = 0;
    for (int i = 0; i < s.phases; i++) {
        const Gather& g = s.g[i];
        const i64 rows = least(s.band, g.rows - y0);
        if (rows <= 0) continue;
        const i64 lines = s.lanes ? rows : 1;
        const i64 vectors = s.lanes ? g.cols * inner / kLanes : divide_up((rows - 1) * pitch + g.cols, kLanes);
        const i64 whole = inner / kLanes >= 2 ? inner / kLanes : kMostVectors;  // a tile is one position where images fill vectors
        const i64 parts = divide_up(vectors, least(whole, kMostVectors));
        count += lines * parts;
        for (i64 line = 0; tile && line < lines; line++)
            for (i64 part = 0; part < parts; part++) {
                const i64 v0 = vectors * part / parts, v1 = vectors * (part + 1) / parts;
                *tile = {line * pitch + v0 * kLanes, i * phase_floats + (s.lanes ? line * g.cols * inner : 0) + v0 * kLanes,
                         sum_plane(s, i), (int)(v1 - v0), 0, tap};
                for (int j = 0; j < g.columns; j++) {
                    const Tap t = column_tap(g, j);
                    if (s.lanes) {
                        const i64 y = line + t.row, x0 = v0 * kLanes / inner + t.col, x1 = (v1 * kLanes - 1) / inner + t.col;
                        if (y < 0 || y >= g.height || x1 < 0 || x0 >= g.width) continue;
                    }
                    *tap++ = {tap_offset(s.layout, 1, 1, t.row, t.col) * (i64)sizeof(float), t.weight * (i64)sizeof(float)};
                    tile->taps++;
                }
                tile++;
            }
    }
    return count;
}

// How sums are made, but not where they lie.
SharedGrad plan_grad(const gossamer_conv& c, int block) {
    SharedGrad s = {};
    s.c = &c;
    s.block = block;
    i64 row_lo = 0, row_hi = 0, col_lo = 0, col_hi = 0;  // of all phases' taps
    bool any = false;
    for (i64 y = 0; y < least(c.stride_h, c.in_h); y++)
        for (i64 x = 0; x < least(c.stride_w, c.in_w); x++) {
            Gather& g = s.g[s.phases++];
            describe_input_grad(c, y, x, &g);
            for (int j = 0; j < g.columns; j++, any = true) {
                const Tap t = column_tap(g, j);
                row_lo = any ? least(row_lo, t.row) : t.row;
                row_hi = any ? most(row_hi, t.row) : t.row;
                col_lo = any ? least(col_lo, t.col) : t.col;
                col_hi = any ? most(col_hi, t.col) : t.col;
            }
        }
    const Gather& g = s.g[0];
    s.lanes = c.batch * 2 >= kLanes && g.cols <= 8;
    s.groups = s.lanes ? divide_up(c.batch, kMostVectors * kLanes) : c.batch;
    s.band = g.rows;
    for (;;) {
        s.group = s.lanes ? round_up(divide_up(c.batch, s.groups), kLanes) : 1;
        if (s.lanes)  // taps outside are left out, so no rows are needed there
            s.layout = make_layout(g.height, g.cols, 1, 1, 0, 0, col_lo, col_hi, g.width, s.group, kTight);
        else
            s.layout = make_layout(s.band, g.cols, 1, 1, row_lo, row_hi, col_lo, col_hi, g.width, 1, kTight);
        s.sum_plane = s.lanes ? g.rows * g.cols * s.group : round_up(s.band * s.layout.pitch, kLanes) + kLanes;
        const i64 used = c.out_channels * s.layout.plane + s.phases * c.in_channels * s.sum_plane;
        if (used <= (s.lanes ? kCacheFloats * 3 / 2 : kCacheFloats) || (s.lanes ? s.group == kLanes : s.band <= 4)) break;
        if (s.lanes)
            s.groups++;
        else
            s.band = most(4, least(s.band - 1, divide_up(g.rows, divide_up(g.rows, s.band) + 1)));
    }
    s.groups = divide_up(c.batch, s.group);
    s.bands = divide_up(g.rows, s.band);
    return s;
}

void lay_out_grad(SharedGrad* s, int threads, Arena* arena) {
    const gossamer_conv& c = *s->c;
    const i64 tasks = s->groups * s->bands;
    s->alone = threads == 1 || tasks % threads == 0 || tasks >= 4 * threads;
    s->work_floats = round_up(c.out_channels * s->layout.plane + kSlack + s->phases * c.in_channels * s->sum_plane + kSlack, kLanes);
    i64 tiles = 0, taps = 0;
    SharedTile* tile = nullptr;
    SharedTap* tap = nullptr;
    for (i64 band = 0; band < s->bands; band++) tiles += list_tiles(*s, band * s->band, tile, tap);
    for (int i = 0; i < s->phases; i++) taps = most(taps, s->g[i].columns);
    s->work = arena->take<float>((s->alone ? threads : 1) * s->work_floats);
    s->counters = arena->take<i64>(tasks);
    s->tiles = arena->take<i64>(s->bands + 1);
    s->tile = tile = arena->take<SharedTile>(tiles);
    tap = arena->take<SharedTap>(tiles * taps);
    if (!arena->memory) return;
    for (i64 i = 0; i < tasks; i++) s->counters[i] = 0;
    s->tiles[0] = 0;
    for (i64 band = 0; band < s->bands; band++) s->tiles[band + 1] = s->tiles[band] + list_tiles(*s, band * s->band, tile, tap);
}

unsigned kernels_of(const gossamer_conv& c) {
    const int block = block_of(c.indptr, c.indices, c.out_channels);
    const unsigned shared = block == 4 ? kSharedBy4 : kSharedBy2;
    if (c.kernel_h * c.kernel_w == 1) return shared | kKernelPoints;
    return shared | (plan_grad(c, block).lanes ? kKernelBatch : kKernelLines);
}

}  // namespace

// Maps of rows that fill vectors badly, and strides of one and two. On others the tiles of tile.h, which use each vector for three
// rows, are as fast.
bool GOSSAMER_BUILT(takes_shared_input_grad)(const gossamer_conv& c) {
    if (!shares(c.indptr, c.indices, c.out_channels, 2)) return false;
    const i64 cols = divide_up(c.in_w, c.stride_w);
    if (c.kernel_h * c.kernel_w > 1) return c.stride_h <= 2 && c.stride_w <= 2 && cols * 16 < round_up(cols, kLanes) * 13;
    if (c.stride_h > 1 || c.stride_w > 1 || c.pad_h || c.pad_w) return false;
    // storing the sums of many inputs takes longer than adding two shares to them, where the planes' vectors are whole
    return c.in_channels <= c.out_channels || c.in_h * c.in_w % kLanes || shares(c.indptr, c.indices, c.out_channels, 4);
}

unsigned GOSSAMER_BUILT(shared_input_grad_planned)(const gossamer_conv& c) { return kernels_of(c); }

int GOSSAMER_BUILT(shared_input_grad)(const gossamer_conv& c, const float* grad_output, const float* weight, float* grad_input, int threads,
                                      unsigned* ran) {
    const int block = block_of(c.indptr, c.indices, c.out_channels);
    *ran = kernels_of(c);
    if (c.kernel_h * c.kernel_w == 1) return run_points(c, block, grad_output, weight, grad_input, threads);
    SharedGrad s = plan_grad(c, block);
    s.grad_output = grad_output;
    s.weight = weight;
    s.grad_input = grad_input;
    for (int i = 0; i < s.phases; i++) s.g[i].dst = grad_input;
    if (!in_scratch([&](Arena* arena) { lay_out_grad(&s, threads, arena); }).memory) return GOSSAMER_NO_MEMORY;
    parallel(threads, shared_grad_thread, &s);
    return GOSSAMER_OK;
}

}  // namespace gossamer
