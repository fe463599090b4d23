// Outputs that share their inputs: B consecutive outputs (a block: 4, 2 or 1) listen to the same channels, so that each vector
// loaded from a source plane is used for B sums.
//
// This computes from layout to layout, without copying anything. The caller says where things lie:
//  - The source: plane c begins at source + c * plane, and whatever a tap reads outside the image is a zero that lies there
//    (a border). A tap is then one constant offset from a position, and positions lie in lanes along the plane, row after row as
//    one line. Phases of a stride, several images one after the other, or images in the lanes are all just other offsets.
//  - A Span is up to span_vectors(B) vectors of positions that follow each other in the source. Its results go to
//    to + o * to_plane + (what the span says). list_spans() makes the spans of a map: of any pitch in the destination, and with
//    `border` so that the zeros between its rows are written too, where source and destination have the same pitch.
//  - Taps are TapRuns: a span's `across` (1, 3, 5 or 7) neighbouring taps that begin `source` floats from the position, their weights
//    `weight` floats from the connection's first. across_of() and list_runs() make them.
//  - Connections are those of gossamer.h: output o has begin[o] .. begin[o + 1], its channels index[e], its weights
//    weight[e * kernel]. All outputs of a block have the same channels (block_of() finds the largest block for which that holds).
//  - In the store: bias, the residual (as the destination, with a plane stride of its own), then the activation's bounds.
//
// Every vector is read whole: up to kLanes - 1 floats after the last position and its taps must be readable, whatever they hold. A
// span with `tail` reads nothing outside its positions and their taps, which must come one by one then (across == 1).
//
// It takes spans outside and all blocks inside, so that what a span reads stays in the cache. Each output is summed in the order
// of its connections and their taps, whatever the spans and threads.
#pragma once

#include "base/arith.h"
#include "gossamer.h"

namespace gossamer {

struct TapRun {
    int64_t source, weight;
};

// Lanes of a vector of sums that go to places next to each other: lane l to `to` + l. `lanes` are written, and zero where not `inside`.
struct Piece {
    int64_t to;
    uint16_t lanes, inside;
    bool more;  // of the same vector
};

struct Span {
    int64_t source;      // of the first position
    int64_t to;          // whole: where that goes, and all others after it
    const Piece* piece;  // else: where each vector's lanes go
    const TapRun* run;
    int runs, across;
    int vectors;
    bool whole;
    int tail;            // positions in the last vector, which alone may be read; 0 if all of it may
};

struct Shared {
    const float* source;
    int64_t plane;
    int block;
    const int32_t *begin, *index;
    const float* weight;
    int64_t kernel;
    float* to;
    int64_t to_plane;
    bool stream;  // whole spans that lie on whole vectors are stored past the caches; the caller then calls end_streams()
    const float* bias;      // or NULL
    const float* residual;  // or NULL
    int64_t residual_plane;
    float floor, ceiling;   // of the results: -inf and inf for no activation, 0 and inf for ReLU
};

// Outputs [o0, o1), both multiples of the block, of spans [s0, s1). In shared.cpp, which is compiled for each instruction set.
void GOSSAMER_BUILT(shared)(const Shared& s, const Span* spans, int64_t s0, int64_t s1, int64_t o0, int64_t o1);

// The forward pass of eager layers, and which kernels it runs. In shared_forward.cpp.
int GOSSAMER_BUILT(shared_forward)(const gossamer_conv& c, const float* input, const float* weight, const float* bias, bool relu, float* output,
                                   int threads, int block, unsigned* ran);
unsigned GOSSAMER_BUILT(shared_forward_planned)(const gossamer_conv& c, int threads, int block);

namespace {

constexpr int kMostShared = 4;  // outputs: more gain nothing, since the sums of four fill the registers

// The most vectors of a span: with their sums the loaded vectors and a weight must find room in the registers.
constexpr int span_vectors(int block) {
    return kRegisters == 32 ? (block == 4 ? 5 : 8) : block == 4 ? (kLanes == 8 ? 3 : 2) : block == 2 ? 4 : 8;
}

// Whether all blocks of so many outputs listen to the same channels.
bool shares(const int32_t* begin, const int32_t* index, i64 outputs, int block) {
    if (outputs % block) return false;
    for (i64 o = 0; o < outputs; o += block) {
        const i64 count = begin[o + 1] - begin[o];
        const int32_t* const first = index + begin[o];
        for (int b = 1; b < block; b++) {
            if (begin[o + b + 1] - begin[o + b] != count) return false;
            const int32_t* const other = index + begin[o + b];
            int32_t different = 0;
            for (i64 k = 0; k < count; k++) different |= first[k] ^ other[k];
            if (different) return false;
        }
    }
    return true;
}

// The largest of 4, 2 and 1 for which they do.
int block_of(const int32_t* begin, const int32_t* index, i64 outputs) {
    return shares(begin, index, outputs, 4) ? 4 : shares(begin, index, outputs, 2) ? 2 : 1;
}

GS_INLINE uint16_t lane_bits(int first, int last) { return (uint16_t)((1u << last) - (1u << first)); }

// Where the positions of a map lie in the source and where their results go, in floats.
struct Map {
    i64 images, rows, cols;
    i64 image, pitch;        // in the source: from image to image, from row to row
    i64 to_image, to_pitch;  // in the destination
    bool border;             // same steps in both: the floats between rows and images are written as zeros
    bool exact;              // nothing outside the positions may be read
};

// How positions follow each other in lines: those of all images, of an image, or of a row, whatever fills vectors best.
struct Lines {
    i64 count, length, vectors;  // length: places from the first position to the last, vectors: of each line
    i64 rows, images;            // in a line
};

Map joined(Map m) {  // what has no gaps is one row
    if (m.pitch == m.cols && m.to_pitch == m.cols) m.cols *= m.rows, m.rows = 1;
    if (m.rows == 1 && m.image == m.cols && m.to_image == m.cols) m.cols *= m.images, m.images = 1;
    if (m.rows == 1) m.pitch = m.to_pitch = m.cols;
    return m;
}

Lines lines_of(const Map& m) {
    Lines best = {0, 0, 0, 0, 0};
    for (int kind = 0; kind < 3; kind++) {  // a row, an image, all images
        Lines l;
        l.images = kind == 2 ? m.images : 1;
        l.rows = kind ? m.rows : 1;
        l.count = m.images / l.images * (m.rows / l.rows);
        l.length = (l.images - 1) * m.image + (l.rows - 1) * m.pitch + m.cols;
        l.vectors = divide_up(l.length, kLanes);
        const bool short_rows = best.vectors < 3, better = l.count * l.vectors * 50 < best.count * best.vectors * 49;
        if (best.count == 0 || better || (short_rows && l.count * l.vectors <= best.count * best.vectors) || (m.border && kind)) best = l;
    }
    return best;
}

i64 most_spans(const Map& map, int block) {
    const Lines l = lines_of(joined(map));
    return l.count * divide_up(l.vectors, span_vectors(block));
}

i64 most_pieces(const Map& map) {
    const Map m = joined(map);
    const Lines l = lines_of(m);
    return l.count * (l.vectors + l.rows * l.images);
}

// The pieces of the vector at place `at` of the line that begins with row `row` of image `image`.
Piece* list_pieces(const Map& m, const Lines& l, i64 image, i64 row, i64 at, Piece* piece) {
    const i64 end = least(kLanes, l.length - at);
    Piece* const first = piece;
    if (m.border) *piece++ = {image * m.to_image + at, lane_bits(0, (int)end), 0, false};
    for (i64 lane = 0; lane < end;) {
        const i64 place = at + lane, n = l.images > 1 ? place / m.image : 0, in_image = place - n * m.image;
        const i64 y = l.rows > 1 ? least(in_image / m.pitch, m.rows - 1) : 0, x = in_image - y * m.pitch;
        if (x >= m.cols) {  // between rows
            lane++;
            continue;
        }
        const i64 last = least(end, lane + m.cols - x);
        if (m.border)
            first->inside |= lane_bits((int)lane, (int)last);
        else
            *piece++ = {(image + n) * m.to_image + (row + y) * m.to_pitch + x - lane, lane_bits((int)lane, (int)last), lane_bits(0, kLanes), true};
        lane = last;
    }
    if (piece == first) *piece++ = {0, 0, 0, false};
    piece[-1].more = false;
    return piece;
}

// The spans of a map for blocks of so many outputs; returns how many. There is room for most_spans() and most_pieces().
// Where nothing outside may be read (`exact`), the last ones take the taps one by one, from `single`.
i64 list_spans(const Map& map, int block, const TapRun* run, int runs, int across, const TapRun* single, int singles, Span* span, Piece* piece) {
    const Map m = joined(map);
    const Lines l = lines_of(m);
    const i64 spans = divide_up(l.vectors, span_vectors(block)), lines_down = m.rows / l.rows;
    for (i64 line = 0; line < l.count; line++) {
        const i64 image = line / lines_down * l.images, row = line % lines_down * l.rows;
        for (i64 i = 0; i < spans; i++, span++) {
            const i64 v0 = l.vectors * i / spans, v1 = l.vectors * (i + 1) / spans, at = v0 * kLanes;
            span->source = image * m.image + row * m.pitch + at;
            span->vectors = (int)(v1 - v0);
            span->run = run;
            span->runs = runs;
            span->across = across;
            span->tail = 0;
            if (m.exact && v1 == l.vectors && row + l.rows == m.rows && l.length % kLanes) {
                span->run = single;
                span->runs = singles;
                span->across = 1;
                span->tail = (int)(l.length % kLanes);
            }
            const i64 y = at / m.pitch, x = at - y * m.pitch;
            span->whole = l.images == 1 && x + (v1 - v0) * kLanes <= m.cols && (l.rows == 1 || y < m.rows);
            span->to = image * m.to_image + (row + y) * m.to_pitch + x;
            span->piece = piece;
            if (span->whole) continue;
            for (i64 v = v0; v < v1; v++) piece = list_pieces(m, l, image, row, v * kLanes, piece);
        }
    }
    return l.count * spans;
}

}  // namespace
}  // namespace gossamer
