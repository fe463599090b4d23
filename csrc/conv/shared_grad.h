// The gradients of layers whose outputs share their inputs, in blocks (shared.h). Compiled for each instruction set.
#pragma once

#include "base/arith.h"
#include "gossamer.h"

namespace gossamer {

// In shared_input_grad.cpp. Whether it takes this layer, which kernels it runs then, and the pass itself.
bool GOSSAMER_BUILT(takes_shared_input_grad)(const gossamer_conv& c);
unsigned GOSSAMER_BUILT(shared_input_grad_planned)(const gossamer_conv& c);
int GOSSAMER_BUILT(shared_input_grad)(const gossamer_conv& c, const float* grad_output, const float* weight, float* grad_input, int threads,
                                      unsigned* ran);

// In shared_weight_grad.cpp, for 1x1 kernels: sharing or not.
unsigned GOSSAMER_BUILT(shared_weight_grad_planned)(const gossamer_conv& c);
int GOSSAMER_BUILT(shared_weight_grad)(const gossamer_conv& c, const float* grad_output, const float* input, float* grad_weight, int threads,
                                       unsigned* ran);

}  // namespace gossamer
