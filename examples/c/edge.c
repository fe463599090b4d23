/* A C program that uses Gossamer's library by itself: two output channels, each listening to one of three input channels.
 *
 *   cc examples/c/edge.c -I csrc -L DIR -lgossamer -Wl,-rpath,DIR -o edge && ./edge
 *
 * where DIR is the folder of libgossamer.so: `python -c "from gossamer.kernels import cpu; print(cpu.info()['library'])"`.
 */
#include <stdio.h>

#include "gossamer.h"

enum { HEIGHT = 4, WIDTH = 6 };

int main(void) {
    /* Channel 0 ramps to the right, channel 1 is not listened to, channel 2 has one bright pixel. */
    float image[3][HEIGHT][WIDTH] = {0};
    for (int y = 0; y < HEIGHT; y++)
        for (int x = 0; x < WIDTH; x++) image[0][y][x] = (float)x;
    image[2][1][2] = 1.0f;

    const int32_t indptr[] = {0, 1, 2};  /* output 0 has connection 0, output 1 has connection 1 */
    const int32_t indices[] = {0, 2};    /* they listen to inputs 0 and 2 */
    const float weight[2][3][3] = {
        {{0, 0, 0}, {-1, 0, 1}, {0, 0, 0}},  /* horizontal difference */
        {{1, 1, 1}, {1, 1, 1}, {1, 1, 1}},   /* blur */
    };
    const gossamer_conv conv = {
        .batch = 1, .in_channels = 3, .in_h = HEIGHT, .in_w = WIDTH, .out_channels = 2, .kernel_h = 3, .kernel_w = 3,
        .stride_h = 1, .stride_w = 1, .pad_h = 1, .pad_w = 1, .dil_h = 1, .dil_w = 1,
        .indptr = indptr, .indices = indices, .indptr_count = 3, .indices_count = 2,
    };

    float output[2][HEIGHT][WIDTH];
    const int status = gossamer_forward(&conv, &image[0][0][0], 3 * HEIGHT * WIDTH, &weight[0][0][0], 2 * 3 * 3, NULL, 0, 1,
                                        &output[0][0][0], 2 * HEIGHT * WIDTH, 2);
    if (status != GOSSAMER_OK) {
        fprintf(stderr, "gossamer: %s\n", gossamer_status_text(status));
        return 1;
    }
    printf("gossamer %s, %s\n", gossamer_version(), gossamer_isa());
    for (int o = 0; o < 2; o++)
        for (int y = 0; y < HEIGHT; y++)
            for (int x = 0; x < WIDTH; x++) printf("%g%c", output[o][y][x], x + 1 < WIDTH ? ' ' : '\n');

    /* The middle of the ramp rises by 2 from left to right neighbour; the pixel at (1, 2) spreads to 3 x 3. */
    return output[0][2][3] == 2.0f && output[1][0][1] == 1.0f && output[1][2][3] == 1.0f && output[1][3][3] == 0.0f ? 0 : 2;
}
