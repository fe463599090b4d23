// Convolutions of a program: from layout to layout, blocks of outputs that share their inputs, everything else in the store.
//
// Positions lie in lanes along the source's plane as one line, border included, so that a tap is one constant offset; each loaded
// vector serves the sums of a whole block. Where source and output have the same pitch, sums are stored as they come, with
// zeros for the lanes between the rows; else row by row.
#pragma once

#include "net/activation.h"
#include "base/parallel.h"
#include "net/rows.h"

namespace gossamer {
namespace {

// The most vectors of positions whose sums, loaded values and one weight fit the registers.
constexpr int most_vectors(int block) {
    return kRegisters == 32 ? (block == 4 ? 5 : 8) : block == 4 ? 2 : block == 2 ? 4 : 6;
}

constexpr int kPointsAhead = 4;  // connections of a 1x1 kernel by which planes are fetched before they are read

struct Summing {
    const Step* step;
    const Convolution* conv;
    const float* source;    // of position 0 of channel 0
    float* out;
    const float* residual;  // or NULL
    float lowest, highest;
};

// Everything after the sums where they cannot be stored as they come: `sums` are `count` positions from q on, of output o.
void store_rows(const Summing& s, float* sums, i64 q, i64 count, i64 o) {
    const Convolution& c = *s.conv;
    const View& out = s.step->out;
    float* const to = s.out + o * out.plane;
    count = least(count, c.positions - q);
    const auto pieces = [&](auto body) {
        for (i64 y = q / c.pitch; y * c.pitch < q + count; y++) {
            const i64 first = most(0, q - y * c.pitch), last = least(out.width, q + count - y * c.pitch);
            if (first < last) body(y, first, last, sums + (y * c.pitch - q));
        }
    };
    const Function function = s.step->activation.function;
    if (!s.step->after && (function == Function::None || function == Function::Clamp)) {
        const vec lowest = broadcast(s.lowest), highest = broadcast(s.highest);
        pieces([&](i64 y, i64 first, i64 last, const float* values) {
            float* const line = to + y * out.pitch;
            const float* const other = s.residual ? s.residual + o * s.step->in[1].plane + y * s.step->in[1].pitch : nullptr;
            for (i64 x = first; x < last; x += kLanes) {
                vec value = load(values + x);
                if (other) value = add(value, load(other + x));
                value = smaller(highest, max(lowest, value));
                x + kLanes <= last ? store(line + x, value) : store_first(line + x, value, (int)(last - x));
            }
            if (last == out.width) seal(out, to, 1, y);
        });
        if (o == 0 && q == 0)
            for (i64 i = 1; i <= out.head; i++) to[-i] = 0;
        return;
    }
    const auto add_residual = [&](i64 y, i64 first, i64 last, float* values) {
        const float* from = s.residual + o * s.step->in[1].plane + y * s.step->in[1].pitch;
        for (i64 x = first; x < last; x++) values[x] += from[x];
    };
    if (s.residual && !s.step->after) pieces(add_residual);
    activate(s.step->activation, sums, count);
    if (s.residual && s.step->after) pieces(add_residual);
    pieces([&](i64 y, i64 first, i64 last, const float* values) {
        for (i64 x = first; x < last; x++) to[y * out.pitch + x] = values[x];
        if (last == out.width) seal(out, to, 1, y);
    });
    if (o == 0 && q == 0)
        for (i64 i = 1; i <= out.head; i++) to[-i] = 0;
}

// Outputs of one block, V vectors of positions from q on. W: taps of a run.
template <int B, int V, int W>
void sum_tile(const Summing& s, i64 q, const Block& b) {
    const Convolution& c = *s.conv;
    vec sum[B][V];
#pragma GCC unroll 4
    for (int o = 0; o < B; o++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) sum[o][v] = broadcast(c.bias[b.output[o]]);
    const float* const source = s.source + q;
    const int32_t *index = c.indices + b.index, *const end = index + b.inputs;
    const float* weight = c.weight + b.weight;
    const i64 *const first = c.run, *const last = first + c.runs;
    const int ahead = c.taps == 1 ? kPointsAhead : 1;
    for (; index < end; index++) {
        const float *const x = source + *index * c.plane, *const next = source + index[ahead] * c.plane;
        for (const i64* run = first; run < last; run++, weight += B * W) {
            const float* from = x + *run;
#pragma GCC unroll 9
            for (int v = 0; v <= (W > 1 ? V : V - 1); v++) __builtin_prefetch(next + *run + v * kLanes);
            pin(from);
#pragma GCC unroll 7
            for (int i = 0; i < W; i++) {
                vec value[V];
#pragma GCC unroll 8
                for (int v = 0; v < V; v++) value[v] = pin(load(from + i + v * kLanes));
#pragma GCC unroll 4
                for (int o = 0; o < B; o++) {
                    const vec factor = broadcast(weight[B * i + o]);
#pragma GCC unroll 8
                    for (int v = 0; v < V; v++) sum[o][v] = fma(value[v], factor, sum[o][v]);
                }
            }
        }
    }
    const View& out = s.step->out;
    if (!c.lines) {
        float spilt[B][(V + 1) * kLanes];  // rows end anywhere and are read in whole vectors
#pragma GCC unroll 4
        for (int o = 0; o < B; o++)
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) store(spilt[o] + v * kLanes, sum[o][v]);
        for (int o = 0; o < B; o++) store_rows(s, spilt[o], q, V * kLanes, b.output[o]);
        return;
    }
    const vec lowest = broadcast(s.lowest), highest = broadcast(s.highest);
#pragma GCC unroll 4
    for (int o = 0; o < B; o++) {
        float* const to = s.out + b.output[o] * out.plane + q;
        const float* const residual = s.residual ? s.residual + b.output[o] * s.step->in[1].plane + q : nullptr;
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            vec value = sum[o][v];
            if (residual) value = add(value, load(residual + v * kLanes));
            value = smaller(highest, max(lowest, value));
            store(to + v * kLanes, keep(value, c.inside + q + v * kLanes));
        }
        if (q + V * kLanes >= c.positions)
            for (i64 i = V * kLanes; i < out.plane - q; i++) to[i] = 0;
    }
    if (q == 0 && b.output[0] == 0)
        for (i64 i = 1; i <= out.head; i++) s.out[-i] = 0;
}

typedef void (*SumTile)(const Summing&, i64 q, const Block&);

template <int B, int V>
SumTile sum_tile_of(int across) {
    if constexpr (V > most_vectors(B)) {
        return nullptr;
    } else {
        return across == 3 ? sum_tile<B, V, 3> : across == 5 ? sum_tile<B, V, 5> : across == 7 ? sum_tile<B, V, 7> : sum_tile<B, V, 1>;
    }
}

template <int B>
SumTile sum_tile_of(i64 vectors, int across) {
    switch (vectors) {
        case 1: return sum_tile_of<B, 1>(across);
        case 2: return sum_tile_of<B, 2>(across);
        case 3: return sum_tile_of<B, 3>(across);
        case 4: return sum_tile_of<B, 4>(across);
        case 5: return sum_tile_of<B, 5>(across);
        case 6: return sum_tile_of<B, 6>(across);
        case 7: return sum_tile_of<B, 7>(across);
        default: return sum_tile_of<B, 8>(across);
    }
}

SumTile sum_tile_of(int width, i64 vectors, int across) {
    return width == 4 ? sum_tile_of<4>(vectors, across) : width == 2 ? sum_tile_of<2>(vectors, across) : sum_tile_of<1>(vectors, across);
}

constexpr uint32_t kOn = ~0u;
const uint32_t kWindow[48] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, kOn, kOn, kOn, kOn, kOn, kOn, kOn, kOn,
                              kOn, kOn, kOn, kOn, kOn, kOn, kOn, kOn, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};

// Lanes [first, last) of a; zero in the others.
GS_INLINE vec lanes_between(vec a, i64 first, i64 last) {
    const uint32_t* const all = kWindow + 16;
    return keep(keep(a, all + 16 - most(0, least(16, last))), all - most(0, least(16, first)));
}

// One row of a phase, or with `odd` of two phases next to each other: to[i] = from[(first + i) * stride] where that is in the source's row,
// else zero. `from` is the row's element 0, or that of the phase; `width` is counted from there.
void phase_row(float* to, float* odd, i64 count, const float* from, i64 width, i64 first, i64 stride) {
    const i64 at = first * stride;
    if (stride > 2) {
        for (i64 i = 0; i < count; i++) to[i] = at + i * stride >= 0 && at + i * stride < width ? from[at + i * stride] : 0.0f;
        return;
    }
    const i64 begin = -first;  // the first i that lies in the row
    const i64 end = divide_up(width, stride) - first, odd_end = width / 2 - first;
    from += at;
    for (i64 i = 0; i < count; i += kLanes, from += stride * kLanes) {
        const int lanes = (int)least(kLanes, count - i);
        const auto put = [&](float* p, vec value, i64 last) {
            if (i < begin || i + kLanes > last) value = lanes_between(value, begin - i, last - i);
            lanes == kLanes ? store(p + i, value) : store_first(p + i, value, lanes);
        };
        if (i + kLanes <= begin || i >= end) {
            put(to, zero(), end);
            if (odd) put(odd, zero(), odd_end);
        } else if (stride == 1) {
            put(to, load(from), end);
        } else {
            vec even_lanes, odd_lanes;
            deinterleave(load(from), load(from + kLanes), even_lanes, odd_lanes);
            put(to, even_lanes, end);
            if (odd) put(odd, odd_lanes, odd_end);
        }
    }
}

// Copies the source into padded planes, one for each phase of the stride, so that every tap is one constant offset.
void prepare(const Step& step, const Worker& w) {
    const Convolution& c = step.conv;
    const View& in = step.in[0];
    const Share mine = share(w, in.channels);
    for (i64 channel = mine.first; channel < mine.last; channel++)
        for (i64 p = 0; p < c.phases; p++) {
            const int32_t *phase = c.phase + 2 * p, row_phase = phase[0], column_phase = phase[1];
            const bool pair = step.stride_w == 2 && p + 1 < c.phases && phase[2] == row_phase && column_phase == 0;
            float* to = w.shared + channel * c.plane + p * c.phase_plane;
            for (i64 line = 0; line < c.phase_rows; line++, to += c.pitch) {
                const i64 y = (line + c.first_row) * step.stride_h + row_phase;
                float* const odd = pair ? to + c.phase_plane : nullptr;
                if (y >= 0 && y < in.height) {
                    phase_row(to, odd, c.pitch, row(in, w, channel, y) + column_phase, in.width - column_phase, c.first_column, step.stride_w);
                } else {
                    memset(to, 0, sizeof(float) * c.pitch);
                    if (odd) memset(odd, 0, sizeof(float) * c.pitch);
                }
            }
            p += pair;
        }
}

void convolution(const Step& step, const Worker& w) {
    const Convolution& c = step.conv;
    Summing s = {&step, &c, c.prepared ? w.shared : place(step.in[0], w) + c.start, w.arena + step.out.offset,
                 step.inputs > 1 ? place(step.in[1], w) : nullptr, -__builtin_inff(), __builtin_inff()};
    if (step.activation.function == Function::Clamp) s.lowest = step.activation.a, s.highest = step.activation.b;
    if (c.prepared) {
        prepare(step, w);
        if (w.threads > 1) barrier();
    }
    const i64 vectors = divide_up(c.positions, kLanes), stretches = divide_up(vectors, most_vectors(c.block[0].width));
    const auto stretch = [&](i64 i) { return vectors * i / stretches; };
    const Share mine = share(w, stretches * c.blocks);
    for (i64 u = mine.first; u < mine.last; u++) {
        const i64 i = c.outputs_outside ? u % stretches : u / c.blocks, b = c.outputs_outside ? u / stretches : u % c.blocks;
        const Block& block = c.block[b];
        i64 v = stretch(i);
        const i64 end = stretch(i + 1);
        while (v < end) {
            const i64 count = least(end - v, most_vectors(block.width));
            sum_tile_of(block.width, count, c.across)(s, v * kLanes, block);
            v += count;
        }
    }
}

}  // namespace
}  // namespace gossamer
