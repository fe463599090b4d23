// The arithmetic of shared.h: B outputs of a span, their sums in registers over all connections. Compiled as conv.cpp is.
#include "conv/shared.h"

namespace gossamer {
namespace {

GS_INLINE vec finish(const Shared& s, const float* residual, unsigned lanes, vec sum) {
    if (residual) sum = add(sum, load_lanes(residual, lanes));
    return min(broadcast(s.ceiling), max(broadcast(s.floor), sum));
}

template <int B, int V>
GS_INLINE void store_shared(const Shared& s, const Span& span, i64 o, const vec (&sum)[B][V]) {
    float* const to = s.to + o * s.to_plane;
    const float* const residual = s.residual ? s.residual + o * s.residual_plane : nullptr;
    if (span.whole) {
        const bool past = s.stream && reinterpret_cast<uintptr_t>(to + span.to) % sizeof(vec) == 0 && s.to_plane % kLanes == 0;
#pragma GCC unroll 4
        for (int b = 0; b < B; b++)
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) {
                const i64 at = span.to + v * kLanes;
                const vec value = finish(s, residual ? residual + b * s.residual_plane + at : nullptr, lane_bits(0, kLanes), sum[b][v]);
                past ? stream(to + b * s.to_plane + at, value) : store(to + b * s.to_plane + at, value);
            }
        return;
    }
    const Piece* piece = span.piece;
#pragma GCC unroll 8
    for (int v = 0; v < V; v++)
        for (bool more = true; more; piece++) {
            more = piece->more;
#pragma GCC unroll 4
            for (int b = 0; b < B; b++) {
                const vec value = finish(s, residual ? residual + b * s.residual_plane + piece->to : nullptr, piece->lanes, sum[b][v]);
                store_lanes(to + b * s.to_plane + piece->to, keep_lanes(value, piece->inside), piece->lanes);
            }
        }
}

// Outputs [o, o + B) of one span, whose runs are W taps across; with `single` there is one run.
template <int B, int V, int W, bool single, bool tail>
void shared_span(const Shared& s, const Span& span, i64 o) {
    vec sum[B][V];
#pragma GCC unroll 4
    for (int b = 0; b < B; b++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) sum[b][v] = broadcast(s.bias ? s.bias[o + b] : 0.0f);
    const i64 count = s.begin[o + 1] - s.begin[o], plane = s.plane, kernel = s.kernel;
    const int32_t *index = s.index + s.begin[o], *const end = span.runs ? index + count : index;
    const float *const source = s.source + span.source, *weight = s.weight + s.begin[o] * kernel;
    const i64 row = count * kernel;  // weights of an output
    const TapRun *const first = span.run, *const last = first + span.runs;
    const float* x = count ? source + *index * plane : source;
    before_loads();  // what the store needs is read after the loop, not kept in registers over it
    for (; index < end; weight += kernel) {
        const float* const next = ++index < end ? source + *index * plane : x;
        const TapRun* run = first;
        do {
            const float *from = x + run->source, *ahead = next + run->source, *w = weight + run->weight;
            pin(from), pin(ahead), pin(w);
#pragma GCC unroll 16
            for (int v = 0; v <= V; v++) __builtin_prefetch(ahead + v * kLanes);
#pragma GCC unroll 7
            for (int i = 0; i < W; i++) {
                vec value[V];
#pragma GCC unroll 8
                for (int v = 0; v < V; v++)
                    value[v] = tail && v == V - 1 ? load_first(from + v * kLanes, span.tail) : pin(load(from + i + v * kLanes));
#pragma GCC unroll 4
                for (int b = 0; b < B; b++) {
                    const vec factor = broadcast(w[b * row + i]);
#pragma GCC unroll 8
                    for (int v = 0; v < V; v++) sum[b][v] = fma(value[v], factor, sum[b][v]);
                }
            }
        } while (!single && ++run < last);
        x = next;
    }
    before_loads();
    store_shared<B, V>(s, span, o, sum);
}

typedef void (*SharedFunction)(const Shared&, const Span&, i64 o);

template <int B, int V>
SharedFunction shared_function(const Span& span) {
    if constexpr (V > span_vectors(B)) {
        return nullptr;
    } else {
        if (span.across == 3) return shared_span<B, V, 3, false, false>;
        if (span.across == 5) return shared_span<B, V, 5, false, false>;
        if (span.across == 7) return shared_span<B, V, 7, false, false>;
        if (span.tail) return span.runs == 1 ? shared_span<B, V, 1, true, true> : shared_span<B, V, 1, false, true>;
        return span.runs == 1 ? shared_span<B, V, 1, true, false> : shared_span<B, V, 1, false, false>;
    }
}

template <int B>
SharedFunction shared_function(const Span& span) {
    switch (span.vectors) {
        case 1: return shared_function<B, 1>(span);
        case 2: return shared_function<B, 2>(span);
        case 3: return shared_function<B, 3>(span);
        case 4: return shared_function<B, 4>(span);
        case 5: return shared_function<B, 5>(span);
        case 6: return shared_function<B, 6>(span);
        case 7: return shared_function<B, 7>(span);
        default: return shared_function<B, 8>(span);
    }
}

}  // namespace

void GOSSAMER_BUILT(shared)(const Shared& s, const Span* spans, int64_t s0, int64_t s1, int64_t o0, int64_t o1) {
    for (i64 i = s0; i < s1; i++) {
        const Span& span = spans[i];
        const SharedFunction function = s.block == 4   ? shared_function<4>(span)
                                        : s.block == 2 ? shared_function<2>(span)
                                                       : shared_function<1>(span);
        for (i64 o = o0; o < o1; o += s.block) function(s, span, o);
    }
}

}  // namespace gossamer
