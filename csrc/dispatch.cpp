// The C functions of gossamer.h: check the arguments, choose the build for this machine, call it.
#include <stdlib.h>
#include <string.h>

#include "base/parallel.h"
#include "kernels.h"
#include "net/step.h"

namespace gossamer {
namespace {

struct Isa {
    const char* name;
    const Kernels* kernels;
    const PoolKernels* pool;
    const NormKernels* norm;
    const NetKernels* net;
};

struct Choice {
    Isa chosen = {};
    char list[64] = "";

    Choice() {
        const char* wanted = getenv("GOSSAMER_ISA");
        const bool any = !wanted || !*wanted;
#define GOSSAMER_ISA(isa, flags, supported)                                                 \
    if (supported) {                                                                        \
        if (*list) strcat(list, " ");                                                       \
        strcat(list, #isa);                                                                 \
        if (any || strcmp(wanted, #isa) == 0)                                               \
            chosen = {#isa, &kernels_##isa, &pool_##isa, &norm_##isa, &net_##isa};           \
    }
#include "isa.inc"
#undef GOSSAMER_ISA
    }
};

const Choice& choice() {
    static const Choice made;
    return made;
}

int check(const gossamer_conv* c) {
    if (!c) return GOSSAMER_NULL_POINTER;
    const int64_t sizes[] = {c->in_channels, c->in_h, c->in_w, c->out_channels, c->kernel_h, c->kernel_w,
                             c->stride_h, c->stride_w, c->dil_h, c->dil_w};
    for (int64_t size : sizes)
        if (size < 1 || size > INT32_MAX) return GOSSAMER_BAD_SHAPE;
    if (c->batch < 0 || c->pad_h < 0 || c->pad_w < 0) return GOSSAMER_BAD_SHAPE;
    if (out_size(c->in_h, c->kernel_h, c->stride_h, c->pad_h, c->dil_h) < 1) return GOSSAMER_BAD_SHAPE;
    if (out_size(c->in_w, c->kernel_w, c->stride_w, c->pad_w, c->dil_w) < 1) return GOSSAMER_BAD_SHAPE;
    if (!c->indptr || c->indptr[0] != 0) return c->indptr ? GOSSAMER_BAD_INDEX : GOSSAMER_NULL_POINTER;
    for (int64_t o = 0; o < c->out_channels; o++)
        if (c->indptr[o + 1] < c->indptr[o]) return GOSSAMER_BAD_INDEX;
    const int32_t connections = c->indptr[c->out_channels];
    if (connections && !c->indices) return GOSSAMER_NULL_POINTER;
    int bad = 0;  // gathered without branches, so that the loops become vectors
    for (int32_t e = 0; e < connections; e++) bad |= (uint32_t)c->indices[e] >= (uint32_t)c->in_channels;
    for (int64_t o = 0; o < c->out_channels; o++)
        for (int32_t e = c->indptr[o] + 1; e < c->indptr[o + 1]; e++) bad |= c->indices[e] <= c->indices[e - 1];
    if (bad) return GOSSAMER_BAD_INDEX;
    return choice().chosen.kernels ? GOSSAMER_OK : GOSSAMER_UNKNOWN_ISA;
}

int check(const gossamer_pool* p) {
    if (!p) return GOSSAMER_NULL_POINTER;
    if (p->planes < 0 || p->height < 1 || p->width < 1 || p->height > INT32_MAX || p->width > INT32_MAX) return GOSSAMER_BAD_SHAPE;
    if (p->kernel < 1 || p->kernel > 15 || p->stride < 1 || p->stride > INT32_MAX) return GOSSAMER_BAD_SHAPE;
    if (p->padding < 0 || p->padding > p->kernel / 2) return GOSSAMER_BAD_SHAPE;
    if (out_size(p->height < p->width ? p->height : p->width, p->kernel, p->stride, p->padding, 1) < 1) return GOSSAMER_BAD_SHAPE;
    return choice().chosen.pool ? GOSSAMER_OK : GOSSAMER_UNKNOWN_ISA;
}

int check(const gossamer_norm* n) {
    if (!n) return GOSSAMER_NULL_POINTER;
    if (n->batch < 1 || n->channels < 1 || n->area < 1) return GOSSAMER_BAD_SHAPE;
    return choice().chosen.norm ? GOSSAMER_OK : GOSSAMER_UNKNOWN_ISA;
}

int64_t weights(const gossamer_conv* c) { return c->indptr[c->out_channels] * c->kernel_h * c->kernel_w; }

thread_local unsigned ran = 0;  // the kernels of the last convolution

// Written anew for each call: valid until the thread's next one.
const char* name_of(unsigned kernels) {
    static const char* const names[] = {"rows", "rows, taps in columns", "rows run together", "images in lanes",
                                        "images in lanes, by position", "stretches in lanes", "points"};
    thread_local char text[160];
    *text = 0;
    for (int i = 0; i < 7; i++)
        if (kernels & 1u << i) strcat(strcat(text, *text ? " and " : ""), names[i]);
    if (kernels & kTogether) strcat(text, ", phases together");
    return *text ? text : "none";
}

}  // namespace

const NetKernels* net_kernels() { return choice().chosen.net; }

}  // namespace gossamer

using namespace gossamer;

extern "C" {

int gossamer_output_size(const gossamer_conv* c, int64_t* out_h, int64_t* out_w) {
    if (!c || !out_h || !out_w) return GOSSAMER_NULL_POINTER;
    if (c->stride_h < 1 || c->stride_w < 1) return GOSSAMER_BAD_SHAPE;
    *out_h = out_size(c->in_h, c->kernel_h, c->stride_h, c->pad_h, c->dil_h);
    *out_w = out_size(c->in_w, c->kernel_w, c->stride_w, c->pad_w, c->dil_w);
    return *out_h < 1 || *out_w < 1 ? GOSSAMER_BAD_SHAPE : GOSSAMER_OK;
}

int gossamer_forward(const gossamer_conv* c, const float* input, const float* weight, const float* bias, int relu,
                     float* output, int threads) {
    const int status = check(c);
    if (status || c->batch == 0) return status;
    if (!input || !output || (!weight && weights(c))) return GOSSAMER_NULL_POINTER;
    return choice().chosen.kernels->forward(*c, input, weight, bias, relu != 0, output, threads, &ran);
}

int gossamer_input_grad(const gossamer_conv* c, const float* grad_output, const float* weight, float* grad_input,
                        int threads) {
    const int status = check(c);
    if (status || c->batch == 0) return status;
    if (!grad_output || !grad_input || (!weight && weights(c))) return GOSSAMER_NULL_POINTER;
    return choice().chosen.kernels->input_grad(*c, grad_output, weight, grad_input, threads, &ran);
}

int gossamer_weight_grad(const gossamer_conv* c, const float* grad_output, const float* input, float* grad_weight,
                         int threads) {
    const int status = check(c);
    if (status || weights(c) == 0) return status;
    if (!grad_weight) return GOSSAMER_NULL_POINTER;
    if (c->batch == 0) {
        memset(grad_weight, 0, sizeof(float) * weights(c));
        return GOSSAMER_OK;
    }
    if (!grad_output || !input) return GOSSAMER_NULL_POINTER;
    return choice().chosen.kernels->weight_grad(*c, grad_output, input, grad_weight, threads, &ran);
}

int gossamer_max_pool(const gossamer_pool* p, const float* input, float* output, uint8_t* index, int threads) {
    const int status = check(p);
    if (status || p->planes == 0) return status;
    if (!input || !output) return GOSSAMER_NULL_POINTER;
    return choice().chosen.pool->max_pool(*p, input, output, index, threads);
}

int gossamer_max_pool_grad(const gossamer_pool* p, const float* grad_output, const uint8_t* index, float* grad_input, int threads) {
    const int status = check(p);
    if (status || p->planes == 0) return status;
    if (!grad_output || !index || !grad_input) return GOSSAMER_NULL_POINTER;
    return choice().chosen.pool->max_pool_grad(*p, grad_output, index, grad_input, threads);
}

int gossamer_batch_norm(const gossamer_norm* n, const float* input, const float* scale, const float* shift, float epsilon,
                        int relu, float* mean, float* variance, float* output, int threads) {
    const int status = check(n);
    if (status) return status;
    if (!input || !mean || !variance || !output) return GOSSAMER_NULL_POINTER;
    choice().chosen.norm->batch_norm(*n, input, scale, shift, epsilon, relu != 0, mean, variance, output, threads);
    return GOSSAMER_OK;
}

int gossamer_batch_norm_grad(const gossamer_norm* n, const float* grad_output, const float* input, const float* scale,
                             const float* shift, const float* mean, const float* variance, float epsilon, int relu,
                             float* grad_input, float* grad_scale, float* grad_shift, int threads) {
    const int status = check(n);
    if (status) return status;
    if (!grad_output || !input || !mean || !variance || !grad_input || !grad_scale || !grad_shift) return GOSSAMER_NULL_POINTER;
    choice().chosen.norm->batch_norm_grad(*n, grad_output, input, scale, shift, mean, variance, epsilon, relu != 0,
                                          grad_input, grad_scale, grad_shift, threads);
    return GOSSAMER_OK;
}

int gossamer_normalise(const gossamer_norm* n, const float* mean, const float* variance, const float* scale, const float* shift,
                       float epsilon, int relu, float* values, int threads) {
    const int status = check(n);
    if (status) return status;
    if (!mean || !variance || !values) return GOSSAMER_NULL_POINTER;
    choice().chosen.norm->normalise(*n, mean, variance, scale, shift, epsilon, relu != 0, values, threads);
    return GOSSAMER_OK;
}

const char* gossamer_kernel_name(const gossamer_conv* c, char pass, int threads) {
    return check(c) ? "none" : name_of(choice().chosen.kernels->planned(*c, pass, threads));
}

const char* gossamer_kernel_ran(void) { return name_of(ran); }

const char* gossamer_status_text(int status) {
    switch (status) {
        case GOSSAMER_OK: return "no error";
        case GOSSAMER_BAD_SHAPE: return "a size is out of range, or the output would be empty";
        case GOSSAMER_BAD_INDEX:
            return "indptr must rise from 0 and each row of indices must ascend within the input channels; an index of "
                   "max-pooling must lie in its window";
        case GOSSAMER_NULL_POINTER: return "a tensor that has elements was given as a null pointer";
        case GOSSAMER_NO_MEMORY: return "no memory left for scratch space";
        case GOSSAMER_UNKNOWN_ISA: return "GOSSAMER_ISA names an instruction set that this library or machine does not have";
    }
    return "unknown status";
}

const char* gossamer_isa(void) { return choice().chosen.name; }
const char* gossamer_isa_list(void) { return choice().list; }
void gossamer_release_scratch(void) { release_scratch(); }
const char* gossamer_version(void) { return GOSSAMER_VERSION; }

}  // extern "C"
