// Operations that gather many numbers into one: pooling, reduction, normalisation, softmax.
#pragma once

#include "net/activation.h"
#include "net/rows.h"

namespace gossamer {
namespace {

struct Maximum {
    static constexpr float start = -__builtin_inff();
    static GS_INLINE float join(float a, float b) { return b > a || b != b ? b : a; }
    static GS_INLINE vec join(vec a, vec b) { return select(beats(b, a), b, a); }
};
struct Minimum {
    static constexpr float start = __builtin_inff();
    static GS_INLINE float join(float a, float b) { return b < a || b != b ? b : a; }
};
struct Total {
    static constexpr float start = 0;
    static GS_INLINE float join(float a, float b) { return a + b; }
    static GS_INLINE vec join(vec a, vec b) { return add(a, b); }
};

// Elements first, first + step, ... of a window's axis that lie in the source.
struct Inside {
    i64 first, count;
};
GS_INLINE Inside window_inside(i64 at, i64 kernel, i64 dilation, i64 size) {
    const i64 skipped = at < 0 ? divide_up(-at, dilation) : 0;
    return {at + skipped * dilation, most(0, least(kernel - skipped, divide_up(size - at, dilation) - skipped))};
}
// The rows of a window joined, with what padding counts as on both sides: line[x + left] for column x.
template <typename Join>
GS_INLINE void join_rows(const Step& s, const Worker& w, i64 c, Inside rows) {
    const View& in = s.in[0];
    const i64 reach = (s.out.width - 1) * s.stride_w + s.dilation_w * (s.kernel_w - 1) + 1 - s.left, step = s.dilation_h * in.pitch;
    const float* const from = row(in, w, c, rows.first);
    float* const line = w.own + s.left;
    for (i64 x = 0; x < in.width; x += kLanes) {
        vec joined = load(from + x);
        for (i64 i = 1; i < rows.count; i++) joined = Join::join(joined, load(from + i * step + x));
        store(line + x, joined);
    }
    for (i64 x = 0; x < s.left; x++) w.own[x] = Join::start;
    for (i64 x = in.width; x < reach; x++) line[x] = Join::start;
}

template <typename Join, typename Load>
GS_INLINE void join_columns(const Step& s, const Worker& w, float* to, float rows, Load load_strided) {
    const vec area = broadcast(rows);
    for (i64 x = 0; x < s.out.width; x += kLanes) {
        const float* from = w.own + x * s.stride_w;
        vec joined = load_strided(from);
        for (i64 k = 1; k < s.kernel_w; k++) joined = Join::join(joined, load_strided(from + k * s.dilation_w));
        if (s.columns) joined = quotient(joined, product(area, load(s.columns + x)));
        x + kLanes <= s.out.width ? store(to + x, joined) : store_first(to + x, joined, (int)(s.out.width - x));
    }
}

template <typename Join>
void pool_with(const Step& s, const Worker& w) {
    const View& in = s.in[0];
    each_row(s.out, w, [&](i64 c, i64 y, float* to) {
        const i64 at = y * s.stride_h - s.top;
        const Inside rows = window_inside(at, s.kernel_h, s.dilation_h, in.height);
        join_rows<Join>(s, w, c, rows);
        const float area = (float)(s.divisor ? s.divisor : s.count_padding ? least(at + s.kernel_h, in.height + s.bottom) - at : rows.count);
        if (s.stride_w == 1) {
            join_columns<Join>(s, w, to, area, [](const float* p) { return load(p); });
        } else if (s.stride_w == 2) {
            join_columns<Join>(s, w, to, area, [](const float* p) {
                vec even, odd;
                deinterleave(load(p), load(p + kLanes), even, odd);
                return even;
            });
        } else {
            join_columns<Join>(s, w, to, area, [&](const float* p) {
                float lanes[kLanes];
                for (int l = 0; l < kLanes; l++) lanes[l] = p[l * s.stride_w];
                return load(lanes);
            });
        }
        if (s.shift)
            for (i64 x = 0; x < s.out.width; x++) to[x] += s.shift[c];
        activate(s.activation, to, s.out.width);
    });
}

// An average of stride one whose source has its border: whole lines of positions, as a convolution reads them.
void average_lines(const Step& s, const Worker& w) {
    const Convolution& c = s.conv;
    const bool clamped = s.activation.function == Function::Clamp;
    const vec lowest = broadcast(clamped ? s.activation.a : -__builtin_inff()), highest = broadcast(clamped ? s.activation.b : __builtin_inff());
    const Share mine = share(w, s.out.channels);
    for (i64 channel = mine.first; channel < mine.last; channel++) {
        const float* const from = row(s.in[0], w, channel, 0) + c.start;
        float* const to = row_to(s.out, w, channel, 0);
        const vec shift = broadcast(s.shift ? s.shift[channel] : 0.0f);
        for (i64 q = 0; q < c.positions; q += kLanes) {
            vec total = zero();
            for (i64 r = 0; r < c.runs; r++)
                for (i64 k = 0; k < c.across; k++) total = add(total, load(from + q + c.run[r] + k));
            const vec value = smaller(highest, max(lowest, fma(total, load(s.columns + q), shift)));
            store(to + q, keep(value, c.inside + q));
        }
        for (i64 q = c.positions; q < s.out.plane; q++) to[q] = 0;
        if (channel == 0)
            for (i64 i = 1; i <= s.out.head; i++) to[-i] = 0;
    }
}

void pool(const Step& s, const Worker& w) {
    if (s.function == Function::Max) return pool_with<Maximum>(s, w);
    s.conv.lines ? average_lines(s, w) : pool_with<Total>(s, w);
}

template <typename Join>
void adaptive_with(const Step& s, const Worker& w) {
    const View& in = s.in[0];
    each_row(s.out, w, [&](i64 c, i64 y, float* to) {
        const i64 y0 = y * in.height / s.out.height, y1 = divide_up((y + 1) * in.height, s.out.height);
        for (i64 x = 0; x < s.out.width; x++) {
            const i64 x0 = x * in.width / s.out.width, x1 = divide_up((x + 1) * in.width, s.out.width);
            float joined = Join::start;
            for (i64 i = y0; i < y1; i++) {
                const float* line = row(in, w, c, i);
                for (i64 j = x0; j < x1; j++) joined = Join::join(joined, line[j]);
            }
            to[x] = s.function == Function::Max ? joined : joined / (float)((y1 - y0) * (x1 - x0));
        }
    });
}

void adaptive_pool(const Step& s, const Worker& w) {
    s.function == Function::Max ? adaptive_with<Maximum>(s, w) : adaptive_with<Total>(s, w);
}

// Joins n floats in kLanes strands.
template <typename Join>
GS_INLINE float join_row(const float* line, i64 n) {
    float strand[kLanes];
    for (int l = 0; l < kLanes; l++) strand[l] = Join::start;
    i64 x = 0;
    for (; x + kLanes <= n; x += kLanes)
        for (int l = 0; l < kLanes; l++) strand[l] = Join::join(strand[l], line[x + l]);
    float joined = Join::start;
    for (int l = 0; l < kLanes; l++) joined = Join::join(joined, strand[l]);
    for (; x < n; x++) joined = Join::join(joined, line[x]);
    return joined;
}

template <typename Join>
void reduce_with(const Step& s, const Worker& w) {
    const View& in = s.in[0];
    const i64 joined = in.channels * in.height * in.width / (s.out.channels * s.out.height * s.out.width);
    each_row(s.out, w, [&](i64 c, i64 y, float* to) {
        const i64 c0 = s.axes & 1 ? 0 : c, c1 = s.axes & 1 ? in.channels : c + 1, y0 = s.axes & 2 ? 0 : y, y1 = s.axes & 2 ? in.height : y + 1;
        for (i64 x = 0; x < s.out.width; x++) to[x] = Join::start;
        for (i64 i = c0; i < c1; i++)
            for (i64 j = y0; j < y1; j++) {
                const float* line = row(in, w, i, j);
                if (s.axes & 4)
                    *to = Join::join(*to, join_row<Join>(line, in.width));
                else
                    for (i64 x = 0; x < in.width; x++) to[x] = Join::join(to[x], line[x]);
            }
        if (s.function == Function::Mean)
            for (i64 x = 0; x < s.out.width; x++) to[x] /= (float)joined;
    });
}

void reduce(const Step& s, const Worker& w) {
    if (s.function == Function::Max) return reduce_with<Maximum>(s, w);
    if (s.function == Function::Min) return reduce_with<Minimum>(s, w);
    reduce_with<Total>(s, w);
}

GS_INLINE float sum_of_squares(const float* line, i64 n, float mean) {
    float strand[kLanes] = {}, total = 0;
    i64 x = 0;
    for (; x + kLanes <= n; x += kLanes)
        for (int l = 0; l < kLanes; l++) strand[l] += (line[x + l] - mean) * (line[x + l] - mean);
    for (int l = 0; l < kLanes; l++) total += strand[l];
    for (; x < n; x++) total += (line[x] - mean) * (line[x] - mean);
    return total;
}

void norm_group(const Step& s, const Worker& w) {
    const View& in = s.in[0];
    const Share groups = share(w, s.groups);
    const i64 size = in.channels / s.groups;
    const float count = (float)(size * in.height * in.width);
    for (i64 g = groups.first; g < groups.last; g++) {
        float mean = 0, square = 0;
        if (s.center)
            for (i64 c = g * size; c < (g + 1) * size; c++)
                for (i64 y = 0; y < in.height; y++) mean += join_row<Total>(row(in, w, c, y), in.width) / count;
        for (i64 c = g * size; c < (g + 1) * size; c++)
            for (i64 y = 0; y < in.height; y++) square += sum_of_squares(row(in, w, c, y), in.width, mean) / count;
        const float factor = 1.0f / sqrtf(square + s.epsilon);
        for (i64 c = g * size; c < (g + 1) * size; c++) {
            const float scale = factor * (s.scale ? s.scale[c] : 1.0f), shift = s.shift ? s.shift[c] : 0.0f;
            float* const plane = row_to(s.out, w, c, 0);
            for (i64 y = 0; y < in.height; y++) {
                const float* from = row(in, w, c, y);
                float* const to = plane + y * s.out.pitch;
                for (i64 x = 0; x < in.width; x++) to[x] = (from[x] - mean) * scale + shift;
                activate(s.activation, to, in.width);
                seal(s.out, plane, c, y);
            }
        }
    }
}

void norm_channel(const Step& s, const Worker& w) {
    const View& in = s.in[0];
    const i64 n = in.width;
    float *const mean = w.own, *const factor = w.own + n;
    const Share rows = share(w, in.height);
    for (i64 y = rows.first; y < rows.last; y++) {
        for (i64 x = 0; x < n; x++) mean[x] = factor[x] = 0;
        if (s.center) {
            for (i64 c = 0; c < in.channels; c++) {
                const float* line = row(in, w, c, y);
                for (i64 x = 0; x < n; x++) mean[x] += line[x];
            }
            for (i64 x = 0; x < n; x++) mean[x] /= (float)in.channels;
        }
        for (i64 c = 0; c < in.channels; c++) {
            const float* line = row(in, w, c, y);
            for (i64 x = 0; x < n; x++) factor[x] += (line[x] - mean[x]) * (line[x] - mean[x]);
        }
        for (i64 x = 0; x < n; x++) factor[x] = 1.0f / sqrtf(factor[x] / (float)in.channels + s.epsilon);
        for (i64 c = 0; c < in.channels; c++) {
            const float *line = row(in, w, c, y), scale = s.scale ? s.scale[c] : 1.0f, shift = s.shift ? s.shift[c] : 0.0f;
            float *const plane = row_to(s.out, w, c, 0), *const to = plane + y * s.out.pitch;
            for (i64 x = 0; x < n; x++) to[x] = (line[x] - mean[x]) * factor[x] * scale + shift;
            activate(s.activation, to, n);
            seal(s.out, plane, c, y);
        }
    }
}

void norm_width(const Step& s, const Worker& w) {
    const i64 n = s.out.width;
    each_row(s.out, w, [&](i64 c, i64 y, float* to) {
        const float* from = row(s.in[0], w, c, y);
        const float mean = s.center ? join_row<Total>(from, n) / (float)n : 0.0f;
        const float factor = 1.0f / sqrtf(sum_of_squares(from, n, mean) / (float)n + s.epsilon);
        for (i64 x = 0; x < n; x++) to[x] = (from[x] - mean) * factor;
        if (s.scale)
            for (i64 x = 0; x < n; x++) to[x] *= s.scale[x];
        if (s.shift)
            for (i64 x = 0; x < n; x++) to[x] += s.shift[x];
        activate(s.activation, to, n);
    });
}

void norm(const Step& s, const Worker& w) { s.axes == 0 ? norm_group(s, w) : s.axes == 1 ? norm_channel(s, w) : norm_width(s, w); }

void softmax_width(const Step& s, const Worker& w) {
    const i64 n = s.out.width;
    each_row(s.out, w, [&](i64 c, i64 y, float* to) {
        const float* from = row(s.in[0], w, c, y);
        const float highest = join_row<Maximum>(from, n);
        for (i64 x = 0; x < n; x++) to[x] = exponential(from[x] - highest);
        const float total = join_row<Total>(to, n), shift = highest + logf(total);
        if (s.logarithm)
            for (i64 x = 0; x < n; x++) to[x] = from[x] - shift;
        else
            for (i64 x = 0; x < n; x++) to[x] /= total;
    });
}

// Over channels or rows: line i of `count` is row(outer of i).
void softmax_lines(const Step& s, const Worker& w) {
    const View& in = s.in[0];
    const i64 n = in.width, count = s.axes == 0 ? in.channels : in.height;
    float *const highest = w.own, *const total = w.own + n;
    const Share mine = share(w, s.axes == 0 ? in.height : in.channels);
    for (i64 fixed = mine.first; fixed < mine.last; fixed++) {
        const auto line = [&](i64 i) { return s.axes == 0 ? row(in, w, i, fixed) : row(in, w, fixed, i); };
        for (i64 x = 0; x < n; x++) highest[x] = Maximum::start, total[x] = 0;
        for (i64 i = 0; i < count; i++) {
            const float* from = line(i);
            for (i64 x = 0; x < n; x++) highest[x] = Maximum::join(highest[x], from[x]);
        }
        for (i64 i = 0; i < count; i++) {
            const float* from = line(i);
            for (i64 x = 0; x < n; x++) total[x] += exponential(from[x] - highest[x]);
        }
        for (i64 x = 0; x < n; x++) total[x] = s.logarithm ? highest[x] + logf(total[x]) : 1.0f / total[x];
        for (i64 i = 0; i < count; i++) {
            const i64 c = s.axes == 0 ? i : fixed, y = s.axes == 0 ? fixed : i;
            const float* from = line(i);
            float *const plane = row_to(s.out, w, c, 0), *const to = plane + y * s.out.pitch;
            if (s.logarithm)
                for (i64 x = 0; x < n; x++) to[x] = from[x] - total[x];
            else
                for (i64 x = 0; x < n; x++) to[x] = exponential(from[x] - highest[x]) * total[x];
            seal(s.out, plane, c, y);
        }
    }
}

void softmax(const Step& s, const Worker& w) { s.axes == 2 ? softmax_width(s, w) : softmax_lines(s, w); }

}  // namespace
}  // namespace gossamer
