// Any convolution, product by product and written from the formula, in no more memory than its tensors: for sizes of which no
// layer is made (dispatch.cpp says which). Compiled once, for every machine.
#include <string.h>

#include "kernels.h"

namespace gossamer {
namespace {

struct Span {
    int64_t begin, end;
};

// The output positions of which a tap at `offset` finds an input in [0, size).
Span inside(int64_t positions, int64_t stride, int64_t offset, int64_t size) {
    const int64_t begin = offset < 0 ? (-offset + stride - 1) / stride : 0;
    const int64_t end = offset < size ? (size - 1 - offset) / stride + 1 : 0;
    return {begin, end < positions ? end : positions};
}

// visit(weight, input, output) with the places of the three factors of each product.
template <class Visit>
void each_product(const gossamer_conv& c, const Visit& visit) {
    const int64_t rows = out_rows(c), cols = out_cols(c);
    for (int64_t n = 0; n < c.batch; n++)
        for (int64_t o = 0; o < c.out_channels; o++)
            for (int64_t e = c.indptr[o]; e < c.indptr[o + 1]; e++) {
                const int64_t in = (n * c.in_channels + c.indices[e]) * c.in_h, out = (n * c.out_channels + o) * rows;
                for (int64_t i = 0; i < c.kernel_h; i++) {
                    const int64_t top = i * c.dil_h - c.pad_h;
                    const Span down = inside(rows, c.stride_h, top, c.in_h);
                    for (int64_t j = 0; j < c.kernel_w && down.begin < down.end; j++) {
                        const int64_t left = j * c.dil_w - c.pad_w, weight = (e * c.kernel_h + i) * c.kernel_w + j;
                        const Span along = inside(cols, c.stride_w, left, c.in_w);
                        for (int64_t y = down.begin; y < down.end; y++)
                            for (int64_t x = along.begin; x < along.end; x++)
                                visit(weight, (in + y * c.stride_h + top) * c.in_w + x * c.stride_w + left, (out + y) * cols + x);
                    }
                }
            }
}

int forward(const gossamer_conv& c, const float* input, const float* weight, const float* bias, bool relu, float* output, int,
            unsigned* ran) {
    const int64_t planes = c.batch * c.out_channels, area = out_rows(c) * out_cols(c);
    for (int64_t p = 0; p < planes; p++)
        for (int64_t i = 0; i < area; i++) output[p * area + i] = bias ? bias[p % c.out_channels] : 0;
    each_product(c, [=](int64_t w, int64_t in, int64_t out) { output[out] += weight[w] * input[in]; });
    for (int64_t i = 0; relu && i < planes * area; i++)
        if (output[i] < 0) output[i] = 0;
    *ran = kOneByOne;
    return GOSSAMER_OK;
}

int input_grad(const gossamer_conv& c, const float* grad_output, const float* weight, float* grad_input, int, unsigned* ran) {
    memset(grad_input, 0, sizeof(float) * c.batch * c.in_channels * c.in_h * c.in_w);
    each_product(c, [=](int64_t w, int64_t in, int64_t out) { grad_input[in] += weight[w] * grad_output[out]; });
    *ran = kOneByOne;
    return GOSSAMER_OK;
}

int weight_grad(const gossamer_conv& c, const float* grad_output, const float* input, float* grad_weight, int, unsigned* ran) {
    memset(grad_weight, 0, sizeof(float) * c.indices_count * c.kernel_h * c.kernel_w);
    each_product(c, [=](int64_t w, int64_t in, int64_t out) { grad_weight[w] += grad_output[out] * input[in]; });
    *ran = kOneByOne;
    return GOSSAMER_OK;
}

unsigned planned(const gossamer_conv&, char, int) { return kOneByOne; }

}  // namespace

extern const Kernels kernels_one_by_one;
const Kernels kernels_one_by_one = {forward, input_grad, weight_grad, planned};

}  // namespace gossamer
