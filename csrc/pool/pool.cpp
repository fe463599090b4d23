// Max-pooling of planes. Compiled once for each line of isa.inc, under the rules of conv/conv.cpp: no STL, everything in
// the anonymous namespace but the one table at the end.
//
// Rows are first copied with -inf around them and split by stride phase: phase (a, b) of a plane holds every stride-th row
// from a on and of it every stride-th column from b on. In that layout a tap of the window is one constant offset, whatever
// the stride, and vectors hold neighbouring outputs. A piece of work is as many planes, or rows of one, as stay in the
// level-1 cache.
#include "base/arena.h"
#include "kernels.h"

namespace gossamer {
namespace {

constexpr i64 kPieceFloats = 8 * 1024;  // 32 KiB: what a piece should fit in
constexpr i64 kMostTaps = 15 * 15;

GS_INLINE int lane(i64 x) { return (int)most(0, least(kLanes, x)); }

// One call, and the layout of one piece of it: floats lie at [phase_y][phase_x][plane][row][col].
struct Pool {
    i64 planes, height, width, kernel, stride, padding;
    const float* input;
    float* output;
    uint8_t* index;
    i64 out_h, out_w;
    i64 phases;              // of rows, and of columns: those that the window touches
    i64 reach;               // rows and columns of a phase that follow the last output's own
    i64 band;                // rows of outputs in a piece
    i64 group;               // planes in a piece; 1 where a piece is less than a plane
    i64 cols, rows;          // of a plane in each phase
    i64 phase;               // floats from phase to phase
    i64 offset[kMostTaps];   // of each tap, row by row
    bool failed;             // by some thread: no memory
};

void make_layout(Pool& p) {
    p.out_h = out_size(p.height, p.kernel, p.stride, p.padding, 1);
    p.out_w = out_size(p.width, p.kernel, p.stride, p.padding, 1);
    p.phases = least(p.stride, p.kernel);
    p.reach = (p.kernel - 1) / p.stride;
    p.cols = p.out_w + p.reach;
    const i64 row = p.phases * p.phases * p.cols;
    p.band = least(p.out_h, most(1, kPieceFloats / row - p.reach));
    p.rows = p.band + p.reach;
    p.group = p.band < p.out_h ? 1 : least(p.planes, most(1, kPieceFloats / (row * p.rows)));
    p.phase = (p.group * p.rows * p.cols + p.reach + 2 * kLanes - 1) / kLanes * kLanes;  // room for the last vector's overhang
    for (i64 i = 0; i < p.kernel; i++)
        for (i64 j = 0; j < p.kernel; j++)
            p.offset[i * p.kernel + j] = (i % p.stride * p.phases + j % p.stride) * p.phase + i / p.stride * p.cols + j / p.stride;
}

// Writes p.cols floats of each column phase, and up to kLanes more, which the next row overwrites.
GS_INLINE void split_row(const Pool& p, const float* row, float* to) {
    const vec outside = broadcast(-__builtin_inff());
    if (p.stride == 2 && p.phases == 2) {
        for (i64 q = 0, x = -p.padding; q < p.cols; q += kLanes, x += 2 * kLanes) {
            const bool inside = x >= 0 && x + 2 * kLanes <= p.width;
            const i64 y = x + kLanes;
            const vec a = inside ? load(row + x) : load_between(row + x, lane(-x), lane(p.width - x), outside);
            const vec b = inside ? load(row + y) : load_between(row + y, lane(-y), lane(p.width - y), outside);
            vec even, odd;
            deinterleave(a, b, even, odd);
            store(to + q, even);
            store(to + p.phase + q, odd);
        }
    } else if (p.stride == 1) {
        for (i64 q = 0, x = -p.padding; q < p.cols; q += kLanes, x += kLanes) {
            const bool inside = x >= 0 && x + kLanes <= p.width;
            store(to + q, inside ? load(row + x) : load_between(row + x, lane(-x), lane(p.width - x), outside));
        }
    } else {
        for (i64 b = 0; b < p.phases; b++, to += p.phase)
            for (i64 q = 0, x = b - p.padding; q < p.cols; q++, x += p.stride)
                to[q] = x >= 0 && x < p.width ? row[x] : -__builtin_inff();
    }
}

// Copies what the output rows from `y0` on of `planes` planes look at.
void split(const Pool& p, i64 plane, i64 planes, i64 y0, float* to) {
    for (i64 n = 0; n < planes; n++) {
        const float* from = p.input + (plane + n) * p.height * p.width;
        for (i64 r = 0; r < p.rows; r++, to += p.cols)
            for (i64 a = 0; a < p.phases; a++) {
                const i64 y = (y0 + r) * p.stride + a - p.padding;
                float* row = to + a * p.phases * p.phase;
                if (y >= 0 && y < p.height) {
                    split_row(p, from + y * p.width, row);
                    continue;
                }
                for (i64 b = 0; b < p.phases; b++)
                    for (i64 q = 0; q < p.cols; q += kLanes) store(row + b * p.phase + q, broadcast(-__builtin_inff()));
            }
    }
}

// For each position of a piece the first tap that lies inside the image: the winner where all of them are -inf.
void first_inside(const Pool& p, i64 planes, i64 y0, float* to) {
    for (i64 n = 0; n < planes; n++)
        for (i64 r = 0; r < p.rows; r++)
            for (i64 q = 0; q < p.cols; q++)
                *to++ = (float)(most(0, p.padding - (y0 + r) * p.stride) * p.kernel + most(0, p.padding - q * p.stride));
}

// `count` outputs that follow each other in the layout. TAPS = 0: as many as p.kernel says.
template <int TAPS, bool INDEX>
void pool(const Pool& p, const float* from, const float* first, i64 count, float* output, uint8_t* index) {
    const int taps = TAPS ? TAPS : (int)(p.kernel * p.kernel);
    i64 offset[TAPS ? TAPS : kMostTaps];  // our own copy: a store of bytes might change anyone else's
    for (int t = 0; t < taps; t++) offset[t] = p.offset[t];
    for (i64 x = 0; x < count; x += kLanes) {
        vec best = load(from + x), winner = INDEX && first ? load(first + x) : zero();
#pragma GCC unroll 9
        for (int t = 1; t < taps; t++) {
            const vec v = load(from + x + offset[t]);
            const mask m = beats(v, best);
            best = select(m, v, best);
            if (INDEX) winner = select(m, broadcast((float)t), winner);
        }
        const int lanes = lane(count - x);
        if (lanes == kLanes)
            store(output + x, best);
        else
            store_first(output + x, best, lanes);
        if (INDEX) store_bytes(index + x, winner, lanes);
    }
}

template <bool INDEX>
void pool_piece(const Pool& p, i64 plane, i64 planes, i64 y0, const float* from, const float* first) {
    const auto run = p.kernel == 2 ? pool<4, INDEX> : p.kernel == 3 ? pool<9, INDEX> : pool<0, INDEX>;
    const i64 rows = least(p.band, p.out_h - y0), whole = p.reach == 0;  // whole: the layout has the outputs without gaps
    const i64 lines = whole ? 1 : planes * rows, count = whole ? planes * rows * p.out_w : p.out_w;
    i64 to = (plane * p.out_h + y0) * p.out_w;
    for (i64 line = 0; line < lines; line++, to += count) {
        const i64 at = (line / rows * p.rows + line % rows) * p.cols;
        run(p, from + at, first ? first + at : nullptr, count, p.output + to, INDEX ? p.index + to : nullptr);
    }
}

void pool_planes(void* argument, int thread, int threads) {
    Pool& p = *static_cast<Pool*>(argument);
    float *work, *first_taps;
    const auto lay_out = [&](Arena* arena) {
        work = arena->take<float>(p.phases * p.phases * p.phase);
        first_taps = arena->take<float>(p.phase);
    };
    if (!in_scratch(lay_out).memory) {
        __atomic_store_n(&p.failed, true, __ATOMIC_RELAXED);
        return;
    }
    const i64 last = p.planes * (thread + 1) / threads;
    float* first = p.index && p.padding ? first_taps : nullptr;
    i64 first_y0 = -1;
    for (i64 plane = p.planes * thread / threads; plane < last; plane += p.group) {
        const i64 planes = least(p.group, last - plane);
        for (i64 y0 = 0; y0 < p.out_h; y0 += p.band) {
            split(p, plane, planes, y0, work);
            if (first && y0 != first_y0) first_inside(p, p.group, first_y0 = y0, first);
            (p.index ? pool_piece<true> : pool_piece<false>)(p, plane, planes, y0, work, first);
        }
    }
}

int max_pool(const gossamer_pool& given, const float* input, float* output, uint8_t* index, int threads) {
    Pool p = {};
    p.planes = given.planes, p.height = given.height, p.width = given.width;
    p.kernel = given.kernel, p.stride = given.stride, p.padding = given.padding;
    p.input = input, p.output = output, p.index = index;
    make_layout(p);
    parallel((int)least(threads, p.planes), pool_planes, &p);
    return p.failed ? GOSSAMER_NO_MEMORY : GOSSAMER_OK;
}

// ---------------------------------------------------------------------------------------------------------------------
// The gradient: each output's goes where its winner was.

struct Scatter {
    gossamer_pool p;
    const float* grad_output;
    const uint8_t* index;
    float* grad_input;
    i64 out_h, out_w;
    i64 offset[256];  // of each tap in the plane
    bool failed;      // some index points outside its plane
};

// N planes at once: neighbouring windows often share a winner, and adding to it again has to wait.
template <int N>
bool scatter(const Scatter& s, i64 plane) {
    const i64 area = s.p.height * s.p.width, outputs = s.out_h * s.out_w;
    const float* grad = s.grad_output + plane * outputs;
    const uint8_t* index = s.index + plane * outputs;
    float* to = s.grad_input + plane * area;
    i64 z = 0;
    for (; z + kLanes <= N * area; z += kLanes) store(to + z, zero());
    for (; z < N * area; z++) to[z] = 0;
    bool inside = true;
    for (i64 y = 0; y < s.out_h; y++) {
        i64 corner = (y * s.p.stride - s.p.padding) * s.p.width - s.p.padding;
        for (i64 x = 0; x < s.out_w; x++, grad++, index++, corner += s.p.stride)
#pragma GCC unroll 4
            for (int n = 0; n < N; n++) {
                const i64 at = corner + s.offset[index[n * outputs]];
                if ((uint64_t)at < (uint64_t)area)
                    to[n * area + at] += grad[n * outputs];
                else
                    inside = false;
            }
    }
    return inside;
}

void scatter_planes(void* argument, int thread, int threads) {
    Scatter& s = *static_cast<Scatter*>(argument);
    i64 plane = s.p.planes * thread / threads;
    const i64 last = s.p.planes * (thread + 1) / threads;
    bool inside = true;
    for (; plane + 4 <= last; plane += 4) inside &= scatter<4>(s, plane);
    for (; plane < last; plane++) inside &= scatter<1>(s, plane);
    if (!inside) __atomic_store_n(&s.failed, true, __ATOMIC_RELAXED);
}

int max_pool_grad(const gossamer_pool& p, const float* grad_output, const uint8_t* index, float* grad_input, int threads) {
    Scatter s = {};
    s.p = p, s.grad_output = grad_output, s.index = index, s.grad_input = grad_input;
    s.out_h = out_size(p.height, p.kernel, p.stride, p.padding, 1);
    s.out_w = out_size(p.width, p.kernel, p.stride, p.padding, 1);
    for (i64 t = 0; t < 256; t++) s.offset[t] = t < p.kernel * p.kernel ? t / p.kernel * p.width + t % p.kernel : INT64_MAX / 2;
    parallel((int)least(threads, p.planes), scatter_planes, &s);
    return s.failed ? GOSSAMER_BAD_INDEX : GOSSAMER_OK;
}

}  // namespace

#define GS_TABLE_(name) pool_##name
#define GS_TABLE(name) GS_TABLE_(name)
extern const PoolKernels GS_TABLE(GOSSAMER_BUILD);
const PoolKernels GS_TABLE(GOSSAMER_BUILD) = {max_pool, max_pool_grad};

}  // namespace gossamer
