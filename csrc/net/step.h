// A checked operation in the plain form that the arithmetic takes, which is built once for each instruction set (step.cpp).
// No STL here: see simd/vec.h. Whoever fills these in has checked every size and index.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace gossamer {

enum class Function : int32_t {
    None, Clamp, LeakyRelu, Elu, Sigmoid, Tanh, Silu, Gelu, GeluTanh, HardSigmoid, HardSwish, Softplus, Mish, Exp, Log, Sqrt, Rsqrt,
    Abs, Neg, Square, Reciprocal, Erf, Sin, Cos, Floor, Softsign, LogSigmoid,  // of one number
    Add, Sub, Mul, Div, Maximum, Minimum, Pow, Prelu,                        // of two
    Max, Average, Mean, Sum, Min,                                            // of many
};

struct Activation {
    Function function = Function::None;
    float a = 0, b = 0, c = 0;  // clamp: lowest, highest; leaky_relu: slope; elu: alpha, scale, rate; softplus: beta, threshold
};

// Where a value lies: element (c, y, x) is float offset + c * plane + y * pitch + x of the arena, or of `constant`.
struct View {
    const float* constant = nullptr;
    int64_t offset = 0, channels = 0, height = 0, width = 0, pitch = 0, plane = 0;
    int64_t head = 0;  // zeros before the first element that its writer writes
};

enum class Kind : int32_t {
    Conv, Linear, Affine, Binary, Pool, AdaptivePool, Reduce, Norm, Softmax, Copy, Select, Resample, Matmul, Concat,
};

// `width` (1, 2 or 4) outputs of a convolution that share their inputs, in ascending order.
struct Block {
    int32_t output[4];
    int32_t width, inputs;
    int64_t index;   // its first input's place in `indices`
    int64_t weight;  // its first weight's place in the packed weights: [input][tap][output of the block]
};

struct Convolution {
    int32_t blocks, taps;
    const Block* block;
    const int32_t* indices;
    const float *weight, *bias;  // bias: one for each output, always there
    // The source as the sums read it: `runs` times `across` taps that follow each other; the first of run r for position q of
    // channel c is float start + c * plane + run[r] + q, from the source's first element or from the scratch.
    int32_t runs, across;
    const int64_t* run;
    int64_t pitch, plane, start;
    int64_t positions;       // of the output, over lines of `pitch`
    const uint32_t* inside;  // one word for each position up to whole vectors: all bits where it is an element of the output
    bool lines;              // output and residual have the same pitch: positions are stored as they come
    bool outputs_outside;    // all positions of a block, then the next block: where inputs have few listeners
    // Where borders are missing or steps are larger than one: the source is first copied into scratch, a padded plane for each phase.
    bool prepared;
    int32_t phases;
    const int32_t* phase;    // [phases][2]: its row and column of the stride
    int64_t phase_rows, phase_plane, first_row, first_column;
};

struct Step {
    Kind kind;
    Function function;  // of binary, pool, adaptive_pool and reduce
    Activation activation;
    const View* in;
    int32_t inputs;
    View out;
    bool after;  // the residual is added after the activation
    const float *weight, *bias, *scale, *shift;
    int32_t axes;  // reduce: bit i for axis i; softmax, concat: the axis; norm: 0 group, 1 channel, 2 width
    int32_t groups;
    float epsilon, factor, fill;
    bool center, logarithm, count_padding, transpose_a, transpose_b, rows;
    int32_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, top, left, bottom, right;
    int64_t divisor;
    const float* columns;  // average pool: what the columns of each window bring to its area
    int32_t dims;  // copy
    int64_t sizes[8], strides[8], start;
    const int32_t *from, *step;  // copy: of each row of the output where it starts in the source's memory, and the step; or, without
                                 // steps, where each element lies
    const int32_t *channel_index, *row_index, *column_index;
    const float *row_weight, *column_weight;
    int64_t row_taps, column_taps;
    Convolution conv;
};

// What a thread of the team that runs a program knows.
struct Worker {
    float* arena;
    float* shared;   // scratch of the whole team
    float* own;      // scratch of this thread
    int thread, threads;
};

struct NetKernels {
    void (*run)(const Step& step, const Worker& worker);
};

#define GOSSAMER_ISA(name, flags, supported) extern const NetKernels net_##name;
#include "isa.inc"
#undef GOSSAMER_ISA

const NetKernels* net_kernels();  // those of the instruction set in use; NULL where GOSSAMER_ISA names none

}  // namespace gossamer
