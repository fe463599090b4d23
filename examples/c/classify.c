/* Classifies a picture with a compiled network, in C alone.
 *
 *   cc examples/c/classify.c -I csrc -L DIR -lgossamer -Wl,-rpath,DIR -o classify && ./classify net.gossamer picture.ppm
 *
 * where DIR is the folder of libgossamer.so (see edge.c). The picture is a binary PGM or PPM (P5, P6) of 8 bits; it is scaled to
 * what the network takes, [1 or 3, height, width], pixels from 0 to 1. Prints the best five classes and their scores.
 */
#include <stdio.h>
#include <stdlib.h>

#include "net/gossamer_net.h"

typedef struct {
    int width, height, channels;
    unsigned char* pixels;
} picture;

static int read_picture(const char* path, picture* p) {
    FILE* file = fopen(path, "rb");
    char kind;
    int most;
    if (!file) return 0;
    int good = fscanf(file, "P%c %d %d %d", &kind, &p->width, &p->height, &most) == 4 && (kind == '5' || kind == '6') && most == 255 &&
               p->width > 0 && p->height > 0 && p->width <= 1 << 14 && p->height <= 1 << 14 && fgetc(file) != EOF;
    if (good) {
        p->channels = kind == '6' ? 3 : 1;
        const size_t bytes = (size_t)p->width * (size_t)p->height * (size_t)p->channels;
        p->pixels = malloc(bytes);
        good = p->pixels && fread(p->pixels, 1, bytes, file) == bytes;
    }
    fclose(file);
    return good;
}

int main(int count, char** arguments) {
    char error[512];
    gossamer_net* net;
    gossamer_net_state* state;
    picture p;
    if (count != 3) return fprintf(stderr, "usage: %s NET PICTURE\n", arguments[0]), 2;
    if (!read_picture(arguments[2], &p)) return fprintf(stderr, "%s is no binary PGM or PPM of 8 bits\n", arguments[2]), 1;
    if (gossamer_net_load_file(arguments[1], 0, &net, error, sizeof error) || gossamer_net_state_new(net, 1, &state, error, sizeof error))
        return fprintf(stderr, "%s: %s\n", arguments[1], error), 1;
    const gossamer_net_port in = gossamer_net_input(net, 0), out = gossamer_net_output(net, 0);
    if (gossamer_net_inputs(net) != 1 || in.rank != 3 || (in.shape[0] != 1 && in.shape[0] != 3))
        return fprintf(stderr, "%s does not take one picture\n", arguments[1]), 1;

    float* image = malloc((size_t)in.floats * sizeof(float));
    float* scores = malloc((size_t)out.floats * sizeof(float));
    float* to = image;
    for (int c = 0; c < in.shape[0]; c++)
        for (int y = 0; y < in.shape[1]; y++)
            for (int x = 0; x < in.shape[2]; x++) {
                const size_t row = (size_t)(y * (int64_t)p.height / in.shape[1]), column = (size_t)(x * (int64_t)p.width / in.shape[2]);
                *to++ = (float)p.pixels[(row * (size_t)p.width + column) * (size_t)p.channels + (size_t)(p.channels == 3 ? c : 0)] / 255.0f;
            }

    const float* inputs[] = {image};
    float* outputs[] = {scores};
    if (gossamer_net_run(state, 1, inputs, outputs, error, sizeof error)) return fprintf(stderr, "%s\n", error), 1;
    for (int place = 0; place < 5 && place < out.floats; place++) {
        int64_t best = -1;
        for (int64_t i = 0; i < out.floats; i++)
            if (scores[i] == scores[i] && (best < 0 || scores[i] > scores[best])) best = i;
        if (best < 0) break;
        printf("%lld %g\n", (long long)best, scores[best]);
        scores[best] = -1.0f / 0.0f;
    }
    free(image), free(scores), free(p.pixels);
    gossamer_net_state_free(state);
    gossamer_net_free(net);
    return 0;
}
