// Operations that go through values row by row: affine, binary, copies of every kind, resampling.
#pragma once

#include "net/activation.h"
#include "net/rows.h"

namespace gossamer {
namespace {

void affine(const Step& s, const Worker& w) {
    each_row(s.out, w, [&](i64 c, i64 y, float* to) {
        const float* from = row(s.in[0], w, c, y);
        const float scale = s.scale ? s.scale[c] : 1.0f, shift = s.shift ? s.shift[c] : 0.0f;
        for (i64 x = 0; x < s.out.width; x++) to[x] = from[x] * scale + shift;
        activate(s.activation, to, s.out.width);
    });
}

template <typename Operator>
GS_INLINE void combine(float* to, const float* a, i64 step_a, const float* b, i64 step_b, i64 n, Operator f) {
    if (step_a && step_b)
        for (i64 x = 0; x < n; x++) to[x] = f(a[x], b[x]);
    else if (step_a)
        for (i64 x = 0; x < n; x++) to[x] = f(a[x], *b);
    else if (step_b)
        for (i64 x = 0; x < n; x++) to[x] = f(*a, b[x]);
    else
        for (i64 x = 0; x < n; x++) to[x] = f(*a, *b);
}

void binary(const Step& s, const Worker& w) {
    const View &a = s.in[0], &b = s.in[1];
    const i64 n = s.out.width, step_a = a.width > 1, step_b = b.width > 1;
    each_row(s.out, w, [&](i64 c, i64 y, float* to) {
        const float* p = row(a, w, a.channels > 1 ? c : 0, a.height > 1 ? y : 0);
        const float* q = row(b, w, b.channels > 1 ? c : 0, b.height > 1 ? y : 0);
#define COMBINE(RESULT)                                                                 \
    combine(to, p, step_a, q, step_b, n, [](float u, float v) { return (RESULT); });    \
    break;
        switch (s.function) {
            case Function::Add: COMBINE(u + v)
            case Function::Sub: COMBINE(u - v)
            case Function::Mul: COMBINE(u * v)
            case Function::Div: COMBINE(u / v)
            case Function::Maximum: COMBINE(u > v || u != u ? u : v)
            case Function::Minimum: COMBINE(u < v || u != u ? u : v)
            case Function::Pow: COMBINE(powf(u, v))
            default: COMBINE(u > 0 ? u : u * v)
        }
#undef COMBINE
        activate(s.activation, to, n);
    });
}

void copy_view(const Step& s, const Worker& w) {
    const float* const from = place(s.in[0], w);
    const i64 n = s.out.width;
    each_row(s.out, w, [&](i64 c, i64 y, float* to) {
        const i64 r = c * s.out.height + y;
        if (!s.step) {
            const int32_t* each = s.from + r * n;
            for (i64 x = 0; x < n; x++) to[x] = from[each[x]];
        } else if (s.step[r] == 1) {
            move(to, from + s.from[r], n);
        } else {
            const i64 step = s.step[r];
            const float* at = from + s.from[r];
            for (i64 x = 0; x < n; x++) to[x] = at[x * step];
        }
    });
}

void select_view(const Step& s, const Worker& w) {
    each_row(s.out, w, [&](i64 c, i64 y, float* to) {
        const i64 channel = s.channel_index ? s.channel_index[c] : c, line = s.row_index ? s.row_index[y] : y;
        if (channel < 0 || line < 0) {
            for (i64 x = 0; x < s.out.width; x++) to[x] = s.fill;
            return;
        }
        const float* from = row(s.in[0], w, channel, line);
        if (!s.column_index) return move(to, from, s.out.width);
        for (i64 x = 0; x < s.out.width; x++) to[x] = s.column_index[x] < 0 ? s.fill : from[s.column_index[x]];
    });
}

void resample(const Step& s, const Worker& w) {
    const View& in = s.in[0];
    each_row(s.out, w, [&](i64 c, i64 y, float* to) {
        const float* from = row(in, w, c, s.row_index ? 0 : y);
        if (s.row_index) {
            float* const mixed = s.column_index ? w.own : to;
            for (i64 x = 0; x < in.width; x++) mixed[x] = 0;
            for (i64 t = 0; t < s.row_taps; t++) {
                const float* line = from + s.row_index[y * s.row_taps + t] * in.pitch;
                const float factor = s.row_weight[y * s.row_taps + t];
                for (i64 x = 0; x < in.width; x++) mixed[x] += factor * line[x];
            }
            from = mixed;
        }
        if (s.column_index)
            for (i64 x = 0; x < s.out.width; x++) {
                float sum = 0;
                for (i64 t = 0; t < s.column_taps; t++) sum += s.column_weight[x * s.column_taps + t] * from[s.column_index[x * s.column_taps + t]];
                to[x] = sum;
            }
        else if (!s.row_index)
            move(to, from, s.out.width);
    });
}

void concat(const Step& s, const Worker& w) {
    each_row(s.out, w, [&](i64 c, i64 y, float* to) {
        i64 at = s.axes == 0 ? c : y;
        for (int i = 0; i < s.inputs; i++) {
            const View& in = s.in[i];
            if (s.axes == 2) {
                move(to, row(in, w, c, y), in.width);
                to += in.width;
                continue;
            }
            const i64 size = s.axes == 0 ? in.channels : in.height;
            if (at < size) {
                move(to, s.axes == 0 ? row(in, w, at, y) : row(in, w, c, at), in.width);
                return;
            }
            at -= size;
        }
    });
}

}  // namespace
}  // namespace gossamer
