// Padded copies: source planes laid out so that every tap is one constant offset.
#pragma once

#include "base/arith.h"

namespace gossamer {
namespace {

// Where source planes go: [channel][phase][row][col][inner]. A phase holds every step-th row and column.
struct Layout {
    i64 inner;                // floats at one position: 1, or images in the batch layout
    i64 row_min, col_min;     // source offset of padded position (0, 0)
    i64 phases_y, phases_x;
    i64 pitch, phase, plane;  // floats from row to row, phase to phase, channel to channel
    i64 rows, cols;           // rows copied and columns kept in each phase
};

i64 tap_offset(const Layout& l, i64 step_y, i64 step_x, i64 row, i64 col) {
    const i64 y = row - l.row_min, x = col - l.col_min;
    const i64 a = y % step_y, b = x % step_x;
    return (a * l.phases_x + b) * l.phase + (y / step_y) * l.pitch + (x / step_x) * l.inner;
}

enum Fit { kTight, kVectorRows, kUnshared };

// A layout for `rows` x `cols` positions whose taps lie in [row_lo, row_hi] x [col_lo, col_hi].
Layout make_layout(i64 rows, i64 cols, i64 step_y, i64 step_x, i64 row_lo, i64 row_hi, i64 col_lo, i64 col_hi,
                   i64 width, i64 inner, Fit fit) {
    Layout l;
    l.inner = inner;
    l.row_min = row_lo;
    l.col_min = col_lo;
    l.phases_y = least(step_y, row_hi - row_lo + 1);
    l.phases_x = least(step_x, col_hi - col_lo + 1);
    const i64 last = (col_hi - col_lo) / step_x;
    i64 shared = 0;  // zero columns that end one row and begin the next
    if (step_x == 1 && fit != kUnshared) {
        const i64 left = most(0, -col_lo), right = most(0, cols - 1 + col_hi - (width - 1));
        shared = least(least(left, right), last);
    }
    l.rows = rows + (row_hi - row_lo) / step_y;
    i64 pitch = cols + last - shared;
    if (fit == kVectorRows) pitch = round_up(pitch, kLanes) * 7 <= pitch * 8 ? round_up(pitch, kLanes) : round_up(pitch, 4);
    l.cols = pitch;
    l.pitch = pitch * inner;
    l.phase = l.rows * l.pitch;
    l.plane = round_up(l.phases_y * l.phases_x * l.phase + shared * inner, kLanes);
    return l;
}

GS_INLINE void fill_zero(float* p, i64 count) {
    i64 i = 0;
    for (; i + kLanes <= count; i += kLanes) store(p + i, zero());
    if (i < count) store_first(p + i, zero(), (int)(count - i));
}

GS_INLINE void copy(float* to, const float* from, i64 count) {
    i64 i = 0;
    for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
    if (i < count) store_first(to + i, load_first(from + i, (int)(count - i)), (int)(count - i));
}

// to[i] = from[2 i] for i < count; reads nothing after the last of them.
void copy_even(float* to, const float* from, i64 count) {
    vec even, odd;
    i64 i = 0;
    for (; i + kLanes < count; i += kLanes) {
        deinterleave(load(from + 2 * i), load(from + 2 * i + kLanes), even, odd);
        store(to + i, even);
    }
    if (i == count) return;
    const int left = (int)(2 * (count - i) - 1);
    deinterleave(load_first(from + 2 * i, (int)least(left, kLanes)), load_first(from + 2 * i + kLanes, (int)most(left - kLanes, 0)), even, odd);
    store_first(to + i, even, (int)(count - i));
}

// Lanes at .. at + kLanes of x, zero outside [first, last).
GS_INLINE vec load_inside(const float* x, i64 at, i64 first, i64 last) {
    if (at >= first && at + kLanes <= last) return load(x + at);
    const int from = (int)least(kLanes, most(0, first - at));
    return load_between(x + at, from, (int)most(from, least(kLanes, last - at)));
}

// even[i] = x[2 i] and odd[i] = x[2 i + 1] for i < count, zero where x is outside [first, last).
void copy_pairs(float* even, float* odd, const float* x, i64 count, i64 first, i64 last) {
    for (i64 i = 0; i < count; i += kLanes) {
        vec a, b;
        deinterleave(load_inside(x, 2 * i, first, last), load_inside(x, 2 * i + kLanes, first, last), a, b);
        if (i + kLanes <= count) {
            store(even + i, a);
            store(odd + i, b);
        } else {
            store_first(even + i, a, (int)(count - i));
            store_first(odd + i, b, (int)(count - i));
        }
    }
}

// The same of a row after a row: even and odd rows `pitch` floats apart, rows of x `step` floats. Which lanes are inside is found once.
void copy_pair_rows(float* even, float* odd, i64 pitch, const float* x, i64 step, i64 count, i64 first, i64 last, i64 rows) {
    constexpr int most_pairs = 16;
    const int pairs = (int)divide_up(count, kLanes);
    if (!kMasks || pairs > most_pairs) {
        for (i64 r = 0; r < rows; r++) copy_pairs(even + r * pitch, odd + r * pitch, x + r * step, count, first, last);
        return;
    }
    uint32_t inside[2 * most_pairs];
    for (int i = 0; i < 2 * pairs; i++) {
        const int from = (int)least(kLanes, most(0, first - i * kLanes)), to = (int)most(from, least(kLanes, last - i * kLanes));
        inside[i] = (1u << to) - (1u << from);
    }
    const uint32_t left = (1u << (count - (pairs - 1) * kLanes)) - 1;
    for (i64 r = 0; r < rows; r++, even += pitch, odd += pitch, x += step)
        for (int i = 0; i < pairs; i++) {
            vec a, b;
            deinterleave(load_lanes(x + 2 * i * kLanes, inside[2 * i]), load_lanes(x + (2 * i + 1) * kLanes, inside[2 * i + 1]), a, b);
            const uint32_t lanes = i + 1 < pairs ? (1u << kLanes) - 1 : left;
            store_lanes(even + i * kLanes, a, lanes);
            store_lanes(odd + i * kLanes, b, lanes);
        }
}

// to[2 i] = from[i] for i < count; the floats between stay.
void copy_spread(float* to, const float* from, i64 count) {
    for (i64 i = 0; i < count; i += kLanes) {
        const int lanes = (int)least(kLanes, count - i);
        store_spread(to + 2 * i, load_first(from + i, lanes), lanes);
    }
}

// to[2 i] = even[i], to[2 i + 1] = odd[i]; reads whole vectors.
void copy_interleaved(float* to, const float* even, const float* odd, i64 count) {
    for (i64 i = 0; i < count; i += 2 * kLanes) {
        vec a, b;
        interleave(load(even + i / 2), load(odd + i / 2), a, b);
        if (i + 2 * kLanes <= count) {
            store(to + i, a);
            store(to + i + kLanes, b);
        } else {
            store_first(to + i, a, (int)least(kLanes, count - i));
            if (i + kLanes < count) store_first(to + i + kLanes, b, (int)(count - i - kLanes));
        }
    }
}

// to[0..length) = from, zero outside [first, last).
GS_INLINE void copy_row(float* to, i64 length, const float* from, i64 first, i64 last) {
    fill_zero(to, first);
    copy(to + first, from + first, last - first);
    fill_zero(to + last, length - last);
}

// Rows of `length` floats one after the other, each as copy_row makes it, `step` floats of `from` apart. A row's last vector may
// reach over the next row's floats, which are written later; the last row is exact. Not for four lanes, whose masks are loops.
void copy_rows(float* to, i64 length, const float* from, i64 step, i64 first, i64 last, i64 rows) {
    const i64 tail = (divide_up(length, kLanes) - 1) * kLanes;
    if (kLanes < 8 || first > kLanes || last < tail || length < kLanes) {
        for (i64 r = 0; r < rows; r++) copy_row(to + r * length, length, from + r * step, first, last);
        return;
    }
    const int begin = (int)(tail ? 0 : first), left = (int)(last - tail);
    for (i64 r = 0; r < rows; r++, to += length, from += step) {
        if (tail) {
            store(to, load_between(from, (int)first, kLanes, zero()));
            for (i64 i = kLanes; i < tail; i += kLanes) store(to + i, load(from + i));
        }
        const vec v = load_between(from + tail, begin, left, zero());
        if (r + 1 < rows)
            store(to + tail, v);
        else
            store_first(to + tail, v, (int)(length - tail));
    }
}

// Copies one source plane; position row 0 is grid row y0.
void copy_plane(const Layout& l, i64 step_y, i64 step_x, const float* src, i64 height, i64 width, i64 y0, float* to) {
    float* const end = to + l.plane;
    const bool pairs = step_x == 2 && l.phases_x == 2;
    for (i64 a = 0; a < l.phases_y; a++)
        for (i64 b = 0; b < l.phases_x; b += pairs ? 2 : 1) {
            const i64 x0 = b + l.col_min;
            const i64 first = least(l.cols, x0 >= 0 ? 0 : divide_up(-x0, step_x));
            const i64 last = most(first, least(l.cols, x0 >= width ? 0 : divide_up(width - x0, step_x)));
            i64 rows = 1;
            for (i64 r = 0; r < l.rows; r += rows, to += rows * l.pitch) {
                const i64 y = (y0 + r) * step_y + a + l.row_min;
                rows = 1;
                if (y < 0 || y >= height) {
                    fill_zero(to, l.pitch);
                    if (pairs) fill_zero(to + l.phase, l.pitch);
                    continue;
                }
                const float* from = src + y * width + x0;
                if (step_x == 1) {
                    rows = least(l.rows - r, divide_up(height - y, step_y));
                    copy_rows(to, l.cols, from, step_y * width, first, last, rows);
                } else if (pairs) {
                    rows = least(l.rows - r, divide_up(height - y, step_y));
                    copy_pair_rows(to, to + l.phase, l.pitch, from, step_y * width, l.cols, -x0, width - x0, rows);
                } else {
                    for (i64 q = 0; q < first; q++) to[q] = 0;
                    if (step_x == 2)
                        copy_even(to + first, from + 2 * first, last - first);
                    else
                        for (i64 q = first; q < last; q++) to[q] = from[q * step_x];
                    for (i64 q = last; q < l.cols; q++) to[q] = 0;
                }
            }
            if (pairs) to += l.phase;
        }
    fill_zero(to, end - to);
}

// Copies all channels of up to l.inner images into the batch layout; lanes past `images` are zero.
void copy_batch(const Layout& l, i64 step_y, i64 step_x, const float* src, i64 images, i64 channels, i64 height,
                i64 width, i64 y0, i64 c0, i64 c1, float* to) {
    const i64 area = height * width, stride = channels * area;
    for (i64 c = c0; c < c1; c++) fill_zero(to + c * l.plane, l.plane);
    // for every source pixel its place in the layout, kLanes consecutive pixels (of all channels in turn) at once
    const i64 total = (c1 - c0) * area;
    const i64 a0 = modulo(-l.row_min, step_y), r0 = floor_divide(-l.row_min, step_y) - y0;
    const i64 b0 = modulo(-l.col_min, step_x), q0 = floor_divide(-l.col_min, step_x);
    i64 y = 0, a = a0, r = r0, x = 0, b = b0, q = q0;  // a pixel, and the phase, row and column it has there
    float* plane = to + c0 * l.plane;
    for (i64 m = 0; m < total; m += kLanes) {
        const int pixels = (int)least(kLanes, total - m);
        float* place[kLanes];
        bool any = false;
        for (int k = 0; k < pixels; k++) {
            const bool kept = a < l.phases_y && b < l.phases_x && r >= 0 && r < l.rows && q >= 0 && q < l.cols;
            place[k] = kept ? plane + (a * l.phases_x + b) * l.phase + r * l.pitch + q * l.inner : nullptr;
            any |= kept;
            if (++b == step_x) b = 0, q++;
            if (++x < width) continue;
            x = 0, b = b0, q = q0;
            if (++a == step_y) a = 0, r++;
            if (++y < height) continue;
            y = 0, a = a0, r = r0;
            plane += l.plane;
        }
        if (!any) continue;
        for (i64 n = 0; n < images; n += kLanes) {
            vec v[kLanes];
            const float* from = src + n * stride + c0 * area + m;
            for (int k = 0; k < kLanes; k++)
                v[k] = n + k >= images ? zero() : pixels == kLanes ? load(from + k * stride) : load_first(from + k * stride, pixels);
            transpose(v);
            for (int k = 0; k < pixels; k++)
                if (place[k]) store(place[k] + n, v[k]);
        }
    }
}

}  // namespace
}  // namespace gossamer
