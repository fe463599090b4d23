/* Loads and runs program files that come on standard input, each as 8 bytes of length (little-endian) and its bytes: what
 * tools/fuzz_program.py drives under the address sanitizer. Prints the number of each before it is read. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "net/gossamer_net.h"

static int run(const gossamer_net* net, int threads) {
    char error[512];
    gossamer_net_state* state;
    if (gossamer_net_state_new(net, threads, &state, error, sizeof error)) return 1;
    float *inputs[4096], *outputs[4096];
    for (int i = 0; i < gossamer_net_inputs(net); i++) {
        const int64_t floats = gossamer_net_input(net, i).floats;
        inputs[i] = malloc((size_t)floats * sizeof(float));
        for (int64_t k = 0; k < floats; k++) inputs[i][k] = (float)(k % 7) - 3;
    }
    for (int i = 0; i < gossamer_net_outputs(net); i++)
        outputs[i] = malloc((size_t)gossamer_net_output(net, i).floats * sizeof(float));
    const int status = gossamer_net_run(state, 1, (const float* const*)inputs, outputs, error, sizeof error);
    for (int i = 0; i < gossamer_net_inputs(net); i++) free(inputs[i]);
    for (int i = 0; i < gossamer_net_outputs(net); i++) free(outputs[i]);
    gossamer_net_state_free(state);
    return status;
}

int main(void) {
    uint64_t size;
    int refused = 0, ran = 0;
    for (int number = 0; fread(&size, sizeof size, 1, stdin) == 1; number++) {
        printf("%d\n", number);
        fflush(stdout);
        char* bytes = malloc(size ? size : 1);
        if (!bytes || fread(bytes, 1, size, stdin) != size) return 2;
        gossamer_net* net;
        char error[512] = "";
        const int status = gossamer_net_load(bytes, size, 64 << 20, &net, error, sizeof error);
        free(bytes);
        if (status) {
            if (!*error) return 3;
            refused++;
            continue;
        }
        for (int threads = 1; threads <= 2; threads++)
            if (run(net, threads)) return 4;
        gossamer_net_free(net);
        ran++;
    }
    printf("%d refused, %d ran\n", refused, ran);
    return 0;
}
