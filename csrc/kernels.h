// What each build of sparse_conv.cpp, pool.cpp and norm.cpp offers to dispatch.cpp. Arguments are checked before they get here.
#pragma once

#include "gossamer.h"

namespace gossamer {

// What a convolution runs, as bits: the phases of an input gradient may differ.
enum Kernel : unsigned {
    kKernelRows = 1, kKernelColumns = 2, kKernelFlat = 4, kKernelBatch = 8, kKernelByPosition = 16, kKernelStretches = 32, kKernelPoints = 64,
    kTogether = 128,  // phases from one copy of the source
    kKernelInPlace = 256, kKernelLines = 512,
    kSharedBy2 = 1024, kSharedBy4 = 2048,  // by so many outputs that have the same inputs
    kOneByOne = 1u << 31,  // alone
};

// Each sets *ran to the kernels that it runs; planned() says without running which they would be. pass is 'f', 'i' or 'w'.
struct Kernels {
    int (*forward)(const gossamer_conv&, const float* input, const float* weight, const float* bias, bool relu,
                   float* output, int threads, unsigned* ran);
    int (*input_grad)(const gossamer_conv&, const float* grad_output, const float* weight, float* grad_input, int threads,
                      unsigned* ran);
    int (*weight_grad)(const gossamer_conv&, const float* grad_output, const float* input, float* grad_weight, int threads,
                       unsigned* ran);
    unsigned (*planned)(const gossamer_conv&, char pass, int threads);
};

struct PoolKernels {
    int (*max_pool)(const gossamer_pool&, const float* input, float* output, uint8_t* index, int threads);
    int (*max_pool_grad)(const gossamer_pool&, const float* grad_output, const uint8_t* index, float* grad_input, int threads);
};

struct NormKernels {
    void (*batch_norm)(const gossamer_norm&, const float* input, const float* scale, const float* shift, float epsilon,
                       bool relu, float* mean, float* variance, float* output, int threads);
    void (*batch_norm_grad)(const gossamer_norm&, const float* grad_output, const float* input, const float* scale,
                            const float* shift, const float* mean, const float* variance, float epsilon, bool relu,
                            float* grad_input, float* grad_scale, float* grad_shift, int threads);
    void (*normalise)(const gossamer_norm&, const float* mean, const float* variance, const float* scale,
                      const float* shift, float epsilon, bool relu, float* values, int threads);
};

static inline int64_t out_size(int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
    const int64_t room = in + 2 * pad - dilation * (kernel - 1) - 1;
    return room < 0 ? 0 : room / stride + 1;
}

static inline int64_t out_rows(const gossamer_conv& c) { return out_size(c.in_h, c.kernel_h, c.stride_h, c.pad_h, c.dil_h); }
static inline int64_t out_cols(const gossamer_conv& c) { return out_size(c.in_w, c.kernel_w, c.stride_w, c.pad_w, c.dil_w); }
static inline int64_t pooled(const gossamer_pool& p, int64_t size) { return out_size(size, p.kernel, p.stride, p.padding, 1); }

extern const Kernels kernels_one_by_one;  // any convolution, slowly: conv/one_by_one.cpp

#define GOSSAMER_ISA(name, flags, supported) \
    extern const Kernels kernels_##name;      \
    extern const PoolKernels pool_##name;     \
    extern const NormKernels norm_##name;
#include "isa.inc"
#undef GOSSAMER_ISA

}  // namespace gossamer
