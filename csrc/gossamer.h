/* Gossamer's native core: convolution with sparse connections between channels. Plain C; knows neither Python nor torch.
 *
 * A connection is one (input channel, output channel) pair with its own kernel_h x kernel_w weights; only connections
 * that exist are stored and multiplied. They come as compressed rows, one row for each output channel:
 *
 *     output channel o listens to the input channels indices[indptr[o]] ... indices[indptr[o + 1] - 1],
 *     in strictly ascending order; connection number e has the weights weight[e * kernel_h * kernel_w ...].
 *
 * All tensors are contiguous float32: input [batch, in_channels, in_h, in_w], weight [connections, kernel_h, kernel_w],
 * output [batch, out_channels, out_h, out_w] with out_h = (in_h + 2 * pad_h - dil_h * (kernel_h - 1) - 1) / stride_h + 1
 * (the integer part), the same for the width. As in every deep-learning library this is a cross-correlation:
 *
 *     output[n, o, y, x] = sum over e in row o, i, j of
 *         weight[e, i, j] * input[n, indices[e], y * stride_h - pad_h + i * dil_h, x * stride_w - pad_w + j * dil_w]
 *
 * with zeros outside the image. Results do not depend on the number of threads. They differ between instruction sets
 * by rounding. Every function may be called from any thread at any time; scratch memory is kept for each calling
 * thread (a few MB, given back when the thread ends or by gossamer_release_scratch).
 *
 * Every tensor and list comes with the number of elements that it holds (`..._count`), which must be what the sizes say: no
 * argument, however wrong, makes a function read or write elsewhere, provided that the counts are true. `threads` below 1
 * is 1; no more run than a machine could use.
 *
 * A complete program is examples/c/edge.c.
 */
#ifndef GOSSAMER_H
#define GOSSAMER_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define GOSSAMER_API __attribute__((visibility("default")))
#else
#define GOSSAMER_API
#endif

/* What every function that computes returns; gossamer_status_text() says it in words. */
enum gossamer_status {
    GOSSAMER_OK = 0,
    GOSSAMER_BAD_SHAPE = 1,      /* a size is negative, zero where it cannot be or above 2^31 - 1, or the output's is */
    GOSSAMER_BAD_INDEX = 2,      /* indptr does not rise from 0, or a row of indices leaves 0..in_channels-1 or is not ascending */
    GOSSAMER_NULL_POINTER = 3,   /* a tensor that has elements was given as NULL */
    GOSSAMER_NO_MEMORY = 4,      /* scratch memory could not be had */
    GOSSAMER_UNKNOWN_ISA = 5,    /* the environment variable GOSSAMER_ISA names none of gossamer_isa_list() */
    GOSSAMER_BAD_COUNT = 6,      /* a tensor or list holds fewer or more elements than the sizes say */
};

/* One convolution: sizes in elements, all >= 1 except batch, pad_h and pad_w, which may be 0, and below 2^31, as the output's. */
typedef struct gossamer_conv {
    int64_t batch, in_channels, in_h, in_w;
    int64_t out_channels, kernel_h, kernel_w;
    int64_t stride_h, stride_w, pad_h, pad_w, dil_h, dil_w;
    const int32_t* indptr;  /* [out_channels + 1] */
    const int32_t* indices; /* [indptr[out_channels]] */
    int64_t indptr_count, indices_count;
} gossamer_conv;

/* The output's height and width; GOSSAMER_BAD_SHAPE when it would be empty. */
GOSSAMER_API int gossamer_output_size(const gossamer_conv* conv, int64_t* out_h, int64_t* out_w);

/* output = convolution of input, then + bias[o] unless bias is NULL, then max(., 0) when relu is not 0. */
GOSSAMER_API int gossamer_forward(const gossamer_conv* conv, const float* input, int64_t input_count, const float* weight,
                                  int64_t weight_count, const float* bias, int64_t bias_count, int relu, float* output,
                                  int64_t output_count, int threads);

/* grad_input [as input] from grad_output [as output]; every element of grad_input is written. */
GOSSAMER_API int gossamer_input_grad(const gossamer_conv* conv, const float* grad_output, int64_t grad_output_count,
                                     const float* weight, int64_t weight_count, float* grad_input, int64_t grad_input_count,
                                     int threads);

/* grad_weight [as weight] from grad_output and input; every element of grad_weight is written. */
GOSSAMER_API int gossamer_weight_grad(const gossamer_conv* conv, const float* grad_output, int64_t grad_output_count,
                                      const float* input, int64_t input_count, float* grad_weight, int64_t grad_weight_count,
                                      int threads);

/* Max-pooling of `planes` contiguous float32 planes [height, width] with a square window: kernel 1 to 15, stride >= 1, padding
 * (with -infinity) at most half the kernel. The output's planes have the sizes of a convolution's. All sizes are below 2^31. */
typedef struct gossamer_pool {
    int64_t planes, height, width, kernel, stride, padding;
} gossamer_pool;

/* output = the largest element of each window; not-a-number wins. Unless index is NULL, index [as output] is where in the
 * window it stood, row * kernel + column: the first of equals, the last not-a-number. */
GOSSAMER_API int gossamer_max_pool(const gossamer_pool* pool, const float* input, int64_t input_count, float* output,
                                   int64_t output_count, uint8_t* index, int64_t index_count, int threads);

/* grad_input [as input] from grad_output [as output] and the index of gossamer_max_pool; every element is written.
 * GOSSAMER_BAD_INDEX when an index points outside its plane. */
GOSSAMER_API int gossamer_max_pool_grad(const gossamer_pool* pool, const float* grad_output, int64_t grad_output_count,
                                        const uint8_t* index, int64_t index_count, float* grad_input,
                                        int64_t grad_input_count, int threads);

/* Batch normalisation of contiguous float32 tensors [batch, channels, area], where area is height x width; all >= 1. Below,
 * `count` floats lie in each of these tensors, and `channel_count` in each vector of one number for a channel. */
typedef struct gossamer_norm {
    int64_t batch, channels, area;
} gossamer_norm;

/* In training: mean and variance [channels] of each channel (the variance divided by batch * area), and with them
 * output = (input - mean[c]) / sqrt(variance[c] + epsilon) * scale[c] + shift[c]; scale (1) and shift (0) may be NULL.
 * With relu, output = max(0, output), where what is not a number stays so. */
GOSSAMER_API int gossamer_batch_norm(const gossamer_norm* norm, const float* input, const float* scale, const float* shift,
                                     float epsilon, int relu, float* mean, float* variance, float* output, int64_t count,
                                     int64_t channel_count, int threads);

/* grad_input [as input], grad_scale and grad_shift [channels] from grad_output [as output], for the channels' own mean and
 * variance, as gossamer_batch_norm wrote them. shift is read only with relu, to know where the output was 0. */
GOSSAMER_API int gossamer_batch_norm_grad(const gossamer_norm* norm, const float* grad_output, const float* input,
                                          const float* scale, const float* shift, const float* mean,
                                          const float* variance, float epsilon, int relu, float* grad_input,
                                          float* grad_scale, float* grad_shift, int64_t count, int64_t channel_count, int threads);

/* values = what gossamer_batch_norm makes of them, in place and with the mean and variance given: batch normalisation in evaluation. */
GOSSAMER_API int gossamer_normalise(const gossamer_norm* norm, const float* mean, const float* variance, const float* scale,
                                    const float* shift, float epsilon, int relu, float* values, int64_t count,
                                    int64_t channel_count, int threads);

/* A sentence for a status; never NULL. */
GOSSAMER_API const char* gossamer_status_text(int status);

/* The instruction set in use: the best that this machine has, or the one named by GOSSAMER_ISA, which is read once, at
 * the first call. NULL when that variable names one that this library or this machine does not have. */
GOSSAMER_API const char* gossamer_isa(void);

/* The instruction sets that this library holds and this machine can run, worst first, separated by spaces. */
GOSSAMER_API const char* gossamer_isa_list(void);

/* The kernel that a call would run, for people and benchmarks: for example "rows, taps in columns". pass is 'f', 'i' or 'w';
 * of wrong arguments the name is "none". Where the phases of a strided input gradient differ, it names each. Valid until the
 * calling thread asks again. */
GOSSAMER_API const char* gossamer_kernel_name(const gossamer_conv* conv, char pass, int threads);

/* The kernel that the calling thread's last convolution did run, in the same words. */
GOSSAMER_API const char* gossamer_kernel_ran(void);

/* Gives back the calling thread's scratch memory. Needed by no one; the next call takes it again. */
GOSSAMER_API void gossamer_release_scratch(void);

/* The version of this library, as "0.1.0". */
GOSSAMER_API const char* gossamer_version(void);

#ifdef __cplusplus
}
#endif
#endif
