// Shared inputs from layout to layout (csrc/conv/shared.h) against loops written from the formula: maps of any pitch, several images,
// borders that are written or left alone, residual and bounds. Compiled with one instruction set, which runs.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "conv/shared.cpp"

using namespace gossamer;

namespace {

constexpr float kUntouched = 77;

float* numbers(i64 count, int range) {  // small whole numbers: sums are exact
    float* p = static_cast<float*>(malloc(sizeof(float) * count));
    for (i64 i = 0; i < count; i++) p[i] = (float)(rand() % (2 * range + 1) - range);
    return p;
}

bool agrees(int round) {
    srand(round);
    const int images = 1 + rand() % 3, rows = 1 + rand() % 12, cols = 1 + rand() % 40, channels = 1 + rand() % 5;
    const int block = 1 << rand() % 3, outputs = block * (1 + rand() % 3), edge = rand() % 3, kernel = 2 * edge + 1;
    const bool border = rand() % 2, exact = edge == 0 && !border && rand() % 2, residual = rand() % 2;
    const i64 pitch = cols + (edge ? edge + rand() % (edge + 1) : 0), image = (rows + 2 * edge) * pitch + rand() % 5;
    const i64 plane = images * image + 4 * edge + kLanes, to_pitch = border ? pitch : cols + rand() % 4;
    const i64 to_image = border ? image : rows * to_pitch + rand() % 3, to_plane = images * to_image + kLanes;
    int32_t begin[13] = {0}, index[61] = {0};
    for (int o = 0; o < outputs; o++) {
        begin[o + 1] = begin[o];
        if (o % block)
            for (int e = begin[o - 1]; e < begin[o]; e++) index[begin[o + 1]++] = index[e];
        else
            for (int c = 0; c < channels; c++)
                if (rand() % 2) index[begin[o + 1]++] = c;
    }
    float *source = numbers(channels * plane, 0), *weight = numbers(60 * kernel * kernel, 2), *bias = numbers(outputs, 2);
    float *added = numbers(outputs * to_plane, 3), *out = numbers(outputs * to_plane, 0), *wanted = numbers(outputs * to_plane, 0);
    for (int c = 0; c < channels; c++)
        for (int n = 0; n < images; n++)
            for (int y = 0; y < rows; y++)
                for (int x = 0; x < cols; x++) source[c * plane + n * image + (y + edge) * pitch + x + edge] = (float)(rand() % 7 - 3);
    for (i64 i = 0; i < outputs * to_plane; i++) out[i] = wanted[i] = kUntouched;
    for (int o = 0; o < outputs; o++) {
        const i64 length = (images - 1) * to_image + (rows - 1) * to_pitch + cols;
        for (i64 i = 0; border && i < length; i++)
            if (image == rows * pitch || i % image < (rows - 1) * pitch + cols) wanted[o * to_plane + i] = 0;
        for (int n = 0; n < images; n++)
            for (int y = 0; y < rows; y++)
                for (int x = 0; x < cols; x++) {
                    const i64 at = o * to_plane + n * to_image + y * to_pitch + x;
                    float sum = bias[o] + (residual ? added[at] : 0);
                    for (int e = begin[o]; e < begin[o + 1]; e++)
                        for (int i = 0; i < kernel; i++)
                            for (int j = 0; j < kernel; j++)
                                sum += weight[(e * kernel + i) * kernel + j] * source[index[e] * plane + n * image + (y + i) * pitch + x + j];
                    wanted[at] = fminf(6, fmaxf(-5, sum));
                }
    }
    TapRun run[25], single[25];
    const int across = kernel, runs = kernel;
    for (int i = 0; i < kernel; i++) run[i] = {i * pitch, i * kernel};
    for (int i = 0; i < kernel * kernel; i++) single[i] = {i / kernel * pitch + i % kernel, i};
    const Map map = {images, rows, cols, image, pitch, to_image, to_pitch, border, exact};
    Span* span = static_cast<Span*>(malloc(sizeof(Span) * most_spans(map, block)));
    Piece* piece = static_cast<Piece*>(malloc(sizeof(Piece) * most_pieces(map)));
    const i64 spans = list_spans(map, block, run, runs, across, single, kernel * kernel, span, piece);
    const Shared s = {source, plane, block_of(begin, index, outputs) < block ? 0 : block, begin, index, weight, kernel * kernel, out, to_plane,
                      false, bias, residual ? added : nullptr, to_plane, -5, 6};
    GOSSAMER_BUILT(shared)(s, span, 0, spans, 0, outputs);
    i64 wrong = 0;
    for (i64 i = 0; i < outputs * to_plane; i++) {
        const bool between = border && wanted[i] == kUntouched && out[i] == 0;  // zeros between images may be written too
        wrong += !between && out[i] != wanted[i];
    }
    if (wrong) printf("round %d: %ld floats differ\n", round, (long)wrong);
    void* every[] = {source, weight, bias, added, out, wanted, span, piece};
    for (void* p : every) free(p);
    return wrong == 0;
}

}  // namespace

int main() {
    for (int round = 0; round < 1000; round++)
        if (!agrees(round)) return 1;
    printf("1000 maps agree\n");
    return 0;
}
