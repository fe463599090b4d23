// One-dimensional kernels on maps that fill vectors badly. The lines of a map follow each other with zeros between them, and
// that one long line is cut into as many stretches as a vector has lanes: lane l of vector t is place l * length + t. Taps
// next to each other are then whole vectors next to each other, and a kernel is one column of taps, like those of a square one.
//
// For AVX-512 alone: elsewhere lanes are filled one by one, which costs more than the columns gain.
#pragma once

#include "conv/layout.h"
#include "conv/problem.h"

namespace gossamer {
namespace {

struct Stretches {
    bool down;             // lines are columns of the map
    i64 taps, first;       // of a line's kernel, and the first one's offset along the line
    i64 across;            // the taps' offset across lines
    i64 lines, line;       // destination lines, and positions in each
    i64 pitch, length;     // places from line to line; places in a stretch
};

// Whether the taps are one column along rows or columns of the map; fills *s.
bool find_stretches(const Gather& g, Stretches* s) {
    const i64 taps = g.down.count * g.along.count;
    s->down = g.down.count > 1;
    s->taps = taps;
    s->first = s->down ? g.down.first : g.along.first;
    s->across = s->down ? g.along.first : g.down.first;
    const bool in_order = g.step_y == 1 && g.step_x == 1 && g.dst_step_y == 1 && g.dst_step_x == 1;
    if (kLanes < 16 || !in_order || !has_column(taps, 1)) return false;
    if ((g.down.count > 1 && g.along.count > 1) || (s->down ? g.down : g.along).step != 1) return false;
    s->lines = s->down ? g.cols : g.rows;
    s->line = s->down ? g.rows : g.cols;
    const i64 size = s->down ? g.height : g.width, last = s->first + taps - 1;
    const i64 before = most(0, -s->first), after = most(0, s->line - 1 + last - (size - 1));
    s->pitch = s->line + taps - 1 - least(least(before, after), taps - 1);  // the zeros between two lines belong to both
    s->length = divide_up((s->lines - 1) * s->pitch + s->line, kLanes);
    return true;
}

// All taps as one column.
void take_at_once(Gather* g) {
    g->column = (int)(g->down.count * g->along.count);
    g->columns = 1;
}

i64 stretch_vectors(const Stretches& s) { return s.length + s.taps - 1; }

// A plane of that many rows of one vector; the kernel's first tap is at its beginning.
Layout stretch_layout(const Gather& g, const Stretches& s) {
    Layout l;
    l.inner = l.phases_y = l.phases_x = 1;
    l.row_min = g.down.first;
    l.col_min = g.along.first;
    l.rows = stretch_vectors(s);
    l.cols = l.pitch = kLanes;
    l.phase = l.plane = l.rows * kLanes;
    return l;
}

// Where each lane of each vector comes from in a source plane, or -1 for a zero; where each destination float lies among
// the sums. Places are counted through, since a division for each would take as long as a sparse layer's sums.
void list_places(const Gather& g, const Stretches& s, int32_t* from, int32_t* to) {
    const i64 size = s.down ? g.height : g.width, others = s.down ? g.width : g.height;
    const i64 step = s.down ? g.width : 1, across = s.down ? 1 : g.width;  // floats along and across source lines
    for (i64 l = 0; l < kLanes; l++) {
        i64 line = l * s.length / s.pitch, at = l * s.length % s.pitch;
        for (i64 t = 0; t < stretch_vectors(s); t++, at++) {
            if (at == s.pitch) line++, at = 0;
            const i64 i = at + s.first, j = line + s.across;
            const bool inside = i >= 0 && i < size && j >= 0 && j < others && line < s.lines;
            from[t * kLanes + l] = inside ? (int32_t)(i * step + j * across) : -1;
        }
    }
    const i64 to_step = s.down ? g.cols : 1, to_across = s.down ? 1 : g.cols;
    i64 t = 0, l = 0;
    for (i64 line = 0; line < s.lines; line++)
        for (i64 i = 0; i < s.pitch; i++) {
            if (i < s.line) to[i * to_step + line * to_across] = (int32_t)(t * kLanes + l);
            if (++t == s.length) t = 0, l++;
        }
}

void copy_stretches(const Stretches& s, const int32_t* from, const float* src, float* to) {
    for (i64 i = 0; i < stretch_vectors(s) * kLanes; i += kLanes) store(to + i, pick(src, from + i, kLanes));
}

void place_stretches(const int32_t* from, const float* sums, i64 count, float* to) {
    for (i64 i = 0; i < count; i += kLanes) {
        const int lanes = (int)least(kLanes, count - i);
        store_first(to + i, pick(sums, from + i, lanes), lanes);
    }
}

}  // namespace
}  // namespace gossamer
