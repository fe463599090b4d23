// Linear layers and products of matrices.
#pragma once

#include "net/activation.h"
#include "base/parallel.h"
#include "net/rows.h"

namespace gossamer {
namespace {

constexpr int kDots = 4;  // rows of weights that meet a loaded vector of inputs

// to[i] = row i of `weight` times x, for `rows` (at most kDots) rows of n floats, `pitch` apart.
GS_INLINE void dots(const float* weight, i64 pitch, int rows, const float* x, i64 n, float* to) {
    if (rows < kDots) {
        for (int r = 0; r < rows; r++) {
            vec total = zero();
            i64 i = 0;
            for (; i + kLanes <= n; i += kLanes) total = fma(load(weight + r * pitch + i), load(x + i), total);
            if (i < n) total = fma(load_first(weight + r * pitch + i, (int)(n - i)), load_first(x + i, (int)(n - i)), total);
            to[r] = sum(total);
        }
        return;
    }
    vec total[kDots];
    for (int r = 0; r < kDots; r++) total[r] = zero();
    i64 i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        const vec value = load(x + i);
#pragma GCC unroll 4
        for (int r = 0; r < kDots; r++) total[r] = fma(load(weight + r * pitch + i), value, total[r]);
    }
    if (i < n) {
        const vec value = load_first(x + i, (int)(n - i));
        for (int r = 0; r < kDots; r++) total[r] = fma(load_first(weight + r * pitch + i, (int)(n - i)), value, total[r]);
    }
    for (int r = 0; r < kDots; r++) to[r] = sum(total[r]);
}

// Adds bias and residual to outputs [first, last) of a row and applies the activation.
GS_INLINE void finish(const Step& s, float* to, const float* residual, i64 first, i64 last) {
    if (s.bias)
        for (i64 i = first; i < last; i++) to[i] += s.bias[i];
    if (residual && !s.after)
        for (i64 i = first; i < last; i++) to[i] += residual[i];
    activate(s.activation, to + first, last - first);
    if (residual && s.after)
        for (i64 i = first; i < last; i++) to[i] += residual[i];
}

void linear_rows(const Step& s, const Worker& w) {
    const i64 outputs = s.out.width, features = s.in[0].width;
    each_row(s.out, w, [&](i64 c, i64 y, float* to) {
        const float* x = row(s.in[0], w, c, y);
        for (i64 o = 0; o < outputs; o += kDots) dots(s.weight + o * features, features, (int)least(kDots, outputs - o), x, features, to + o);
        finish(s, to, s.inputs > 1 ? row(s.in[1], w, c, y) : nullptr, 0, outputs);
    });
}

// The whole source is one vector. Groups of kDots outputs are shared among the team, so that results do not depend on it.
void linear_vector(const Step& s, const Worker& w) {
    const View &in = s.in[0], &out = s.out;
    const i64 features = in.channels * in.height * in.width, outputs = out.channels * out.height * out.width;
    const float* x = place(in, w);
    if (in.plane != in.height * in.width || in.pitch != in.width) {
        if (in.channels * in.height > 1) {
            const Share rows = share(w, in.channels * in.height);
            for (i64 r = rows.first; r < rows.last; r++)
                move(w.shared + r * in.width, row(in, w, r / in.height, r % in.height), in.width);
            if (w.threads > 1) barrier();
            x = w.shared;
        }
    }
    const Share mine = share(w, divide_up(outputs, kDots));
    for (i64 g = mine.first; g < mine.last; g++) {
        float made[kDots];
        const i64 first = g * kDots;
        const int count = (int)least(kDots, outputs - first);
        dots(s.weight + first * features, features, count, x, features, made);
        for (int i = 0; i < count; i++) {
            const i64 o = first + i, line = o / out.width, column = o % out.width, c = line / out.height, y = line % out.height;
            float value = made[i] + (s.bias ? s.bias[o] : 0.0f);
            const float residual = s.inputs > 1 ? row(s.in[1], w, c, y)[column] : 0.0f;
            if (!s.after) value += residual;
            activate(s.activation, &value, 1);
            if (s.after) value += residual;
            float* const plane = row_to(out, w, c, 0);
            plane[y * out.pitch + column] = value;
            if (column + 1 == out.width) seal(out, plane, 1, y);
            if (o == 0)
                for (i64 h = 1; h <= out.head; h++) plane[-h] = 0;
        }
    }
}

void linear(const Step& s, const Worker& w) { s.rows ? linear_rows(s, w) : linear_vector(s, w); }

void matmul(const Step& s, const Worker& w) {
    const View &a = s.in[0], &b = s.in[1];
    const i64 k = s.transpose_a ? a.height : a.width, p = s.out.width;
    const i64 step_a = s.transpose_a ? a.pitch : 1;
    each_row(s.out, w, [&](i64 n, i64 m, float* to) {
        const float* left = s.transpose_a ? row(a, w, n, 0) + m : row(a, w, n, m);
        const float* right = row(b, w, b.channels > 1 ? n : 0, 0);
        if (s.transpose_b && step_a == 1) {
            for (i64 i = 0; i < p; i += kDots) dots(right + i * b.pitch, b.pitch, (int)least(kDots, p - i), left, k, to + i);
            for (i64 i = 0; i < p; i++) to[i] *= s.factor;
            return;
        }
        const i64 step_k = s.transpose_b ? 1 : b.pitch, step_p = s.transpose_b ? b.pitch : 1;
        for (i64 i = 0; i < p; i++) to[i] = 0;
        for (i64 j = 0; j < k; j++) {
            const float factor = left[j * step_a] * s.factor;
            const float* from = right + j * step_k;
            if (step_p == 1)
                for (i64 i = 0; i < p; i++) to[i] += factor * from[i];
            else
                for (i64 i = 0; i < p; i++) to[i] += factor * from[i * step_p];
        }
    });
}

}  // namespace
}  // namespace gossamer
