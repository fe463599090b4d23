// Values as rows: where they lie, the zeros around them, and how a team shares them.
#pragma once

#include <string.h>

#include "base/arith.h"
#include "net/lanes.h"
#include "net/step.h"

namespace gossamer {
namespace {

GS_INLINE const float* place(const View& v, const Worker& w) { return v.constant ? v.constant : w.arena + v.offset; }
GS_INLINE const float* row(const View& v, const Worker& w, i64 c, i64 y) { return place(v, w) + c * v.plane + y * v.pitch; }
GS_INLINE float* row_to(const View& v, const Worker& w, i64 c, i64 y) { return w.arena + v.offset + c * v.plane + y * v.pitch; }

// Zeros of a plane's border that follow row y, and before the first row of the value.
GS_INLINE void seal(const View& v, float* plane, i64 c, i64 y) {
    float* const end = plane + y * v.pitch + v.width;
    if (v.plane > 1) {
        const i64 zeros = y + 1 < v.height ? v.pitch - v.width : v.plane - y * v.pitch - v.width;
        for (i64 i = 0; i < zeros; i++) end[i] = 0;
    }
    if (c == 0 && y == 0)
        for (i64 i = 1; i <= v.head; i++) plane[-i] = 0;
}

struct Share {
    i64 first, last;
};
GS_INLINE Share share(const Worker& w, i64 all) { return {all * w.thread / w.threads, all * (w.thread + 1) / w.threads}; }

// body(c, y, to) for this thread's rows of the output, and the zeros after each.
template <typename Body>
GS_INLINE void each_row(const View& out, const Worker& w, Body body) {
    const Share mine = share(w, out.channels * out.height);
    i64 c = mine.first / out.height, y = mine.first % out.height;
    for (i64 r = mine.first; r < mine.last; r++) {
        float* const plane = row_to(out, w, c, 0);
        body(c, y, plane + y * out.pitch);
        seal(out, plane, c, y);
        if (++y == out.height) y = 0, c++;
    }
}

GS_INLINE void move(float* to, const float* from, i64 n) {
    i64 i = 0;
    for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
    for (; i < n; i++) to[i] = from[i];
}

}  // namespace
}  // namespace gossamer
