/* The C API of programs: a compiled network in one file (docs/program.md), run without Python and without PyTorch.
 *
 *   gossamer_net* net;
 *   char error[512];
 *   if (gossamer_net_load_file("net.gossamer", 0, &net, error, sizeof error)) { puts(error); return 1; }
 *   gossamer_net_state* state;
 *   gossamer_net_state_new(net, 2, &state, error, sizeof error);
 *   const float* inputs[] = {image};
 *   float* outputs[] = {logits};
 *   gossamer_net_run(state, 1, inputs, outputs, error, sizeof error);
 *   gossamer_net_state_free(state);
 *   gossamer_net_free(net);
 *
 * A net is only read once it is loaded: any number of threads may run it at once, each with a state of its own. A state is used by
 * one thread at a time. Functions that can fail return 0 or GOSSAMER_NET_FAILED and then leave one sentence in `error`
 * (cut to `error_size` bytes, always ended by a zero; NULL with size 0 is allowed).
 */
#ifndef GOSSAMER_NET_H
#define GOSSAMER_NET_H

#include <stddef.h>
#include <stdint.h>

#include "gossamer.h"

#ifdef __cplusplus
extern "C" {
#endif

#define GOSSAMER_NET_FAILED 1
#define GOSSAMER_NET_MAX_RANK 8

typedef struct gossamer_net gossamer_net;
typedef struct gossamer_net_state gossamer_net_state;

/* One input or output: what the caller's array of n images holds is [n, shape[0], ..., shape[rank - 1]] floats, row-major. */
typedef struct {
    const char* name;
    int rank;
    int64_t shape[GOSSAMER_NET_MAX_RANK];
    int64_t floats; /* of one image */
} gossamer_net_port;

typedef struct {
    const char* kind;   /* docs/program.md */
    const char* name;   /* the layer it came from */
    const char* kernel; /* how it runs here */
    int64_t madds;      /* multiply-adds of one image; 0 where there are none to speak of */
    int64_t bytes;      /* read and written by one image: values and weights, each once */
} gossamer_net_operation;

/* Reads and checks a program. `memory_limit` bounds the bytes of everything the net and one state of one thread take (0: 4 GiB);
 * it is compared before anything is allocated. The bytes may go once the call returns. */
GOSSAMER_API int gossamer_net_load(const void* bytes, size_t size, size_t memory_limit, gossamer_net** net, char* error,
                                   size_t error_size);
GOSSAMER_API int gossamer_net_load_file(const char* path, size_t memory_limit, gossamer_net** net, char* error, size_t error_size);
GOSSAMER_API void gossamer_net_free(gossamer_net* net);

GOSSAMER_API int gossamer_net_batch(const gossamer_net* net); /* the largest batch */
GOSSAMER_API int gossamer_net_inputs(const gossamer_net* net);
GOSSAMER_API int gossamer_net_outputs(const gossamer_net* net);
GOSSAMER_API int gossamer_net_operations(const gossamer_net* net);
/* Index out of range: zeros and null pointers. Names live as long as the net. */
GOSSAMER_API gossamer_net_port gossamer_net_input(const gossamer_net* net, int index);
GOSSAMER_API gossamer_net_port gossamer_net_output(const gossamer_net* net, int index);
GOSSAMER_API gossamer_net_operation gossamer_net_describe(const gossamer_net* net, int index);
GOSSAMER_API int64_t gossamer_net_weight_bytes(const gossamer_net* net);     /* as packed, with indices */
GOSSAMER_API int64_t gossamer_net_activation_bytes(const gossamer_net* net); /* the arena of one state */
GOSSAMER_API int64_t gossamer_net_scratch_bytes(const gossamer_net* net);    /* besides, for each thread of a state */

GOSSAMER_API int gossamer_net_state_new(const gossamer_net* net, int threads, gossamer_net_state** state, char* error,
                                        size_t error_size);
GOSSAMER_API void gossamer_net_state_free(gossamer_net_state* state);

/* Runs 1 to gossamer_net_batch() images. Results do not depend on the number of threads. */
GOSSAMER_API int gossamer_net_run(gossamer_net_state* state, int64_t batch, const float* const* inputs, float* const* outputs,
                                  char* error, size_t error_size);
/* The same, and adds the seconds that each operation took to seconds[0 .. gossamer_net_operations()). */
GOSSAMER_API int gossamer_net_profile(gossamer_net_state* state, int64_t batch, const float* const* inputs, float* const* outputs,
                                      double* seconds, char* error, size_t error_size);

#ifdef __cplusplus
}
#endif

#endif
