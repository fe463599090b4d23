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

bool fits(int64_t size, int64_t least) { return size >= least && size <= INT32_MAX; }

// Whether `count` is the product of sizes, none of which is negative.
bool holds(int64_t count, int64_t a, int64_t b, int64_t c = 1, int64_t d = 1) {
    int64_t product;
    return !__builtin_mul_overflow(a, b, &product) && !__builtin_mul_overflow(product, c, &product) &&
           !__builtin_mul_overflow(product, d, &product) && product == count;
}

int check_sizes(const gossamer_conv* c) {
    if (!c) return GOSSAMER_NULL_POINTER;
    const int64_t sizes[] = {c->in_channels, c->in_h, c->in_w, c->out_channels, c->kernel_h, c->kernel_w,
                             c->stride_h, c->stride_w, c->dil_h, c->dil_w};
    for (int64_t size : sizes)
        if (!fits(size, 1)) return GOSSAMER_BAD_SHAPE;
    if (!fits(c->batch, 0) || !fits(c->pad_h, 0) || !fits(c->pad_w, 0)) return GOSSAMER_BAD_SHAPE;
    return fits(out_rows(*c), 1) && fits(out_cols(*c), 1) ? GOSSAMER_OK : GOSSAMER_BAD_SHAPE;
}

int check(const gossamer_conv* c) {
    const int status = check_sizes(c);
    if (status) return status;
    if (c->indptr_count != c->out_channels + 1 || !fits(c->indices_count, 0)) return GOSSAMER_BAD_COUNT;
    if (!c->indptr || (c->indices_count && !c->indices)) return GOSSAMER_NULL_POINTER;
    if (c->indptr[0] != 0) return GOSSAMER_BAD_INDEX;
    for (int64_t o = 0; o < c->out_channels; o++)
        if (c->indptr[o + 1] < c->indptr[o]) return GOSSAMER_BAD_INDEX;
    if (c->indptr[c->out_channels] != c->indices_count) return GOSSAMER_BAD_COUNT;
    int bad = 0;  // gathered without branches, so that the loops become vectors
    for (int64_t e = 0; e < c->indices_count; e++) bad |= (uint32_t)c->indices[e] >= (uint32_t)c->in_channels;
    for (int64_t o = 0; o < c->out_channels; o++)
        for (int64_t e = c->indptr[o] + 1; e < c->indptr[o + 1]; e++) bad |= c->indices[e] <= c->indices[e - 1];
    if (bad) return GOSSAMER_BAD_INDEX;
    return choice().chosen.kernels ? GOSSAMER_OK : GOSSAMER_UNKNOWN_ISA;
}

bool holds_input(int64_t count, const gossamer_conv* c) { return holds(count, c->batch, c->in_channels, c->in_h, c->in_w); }
bool holds_output(int64_t count, const gossamer_conv* c) { return holds(count, c->batch, c->out_channels, out_rows(*c), out_cols(*c)); }
bool holds_weight(int64_t count, const gossamer_conv* c) { return holds(count, c->indices_count, c->kernel_h, c->kernel_w); }

// The kernels are made for layers. Where their padded copies would take far more memory than the tensors do, or where nothing
// bounds the phases or taps that they plan for, the products that there are are found one by one.
const Kernels* kernels_for(const gossamer_conv& c) {
    constexpr int64_t most_stride = 64, most_taps = 1 << 16;
    constexpr double most_times = 16, most_floats = 1 << 20;
    if (c.indices_count == 0 || c.stride_h > most_stride || c.stride_w > most_stride || c.kernel_h * c.kernel_w > most_taps)
        return &kernels_one_by_one;
    const double planes = (double)c.in_h * c.in_w + (double)out_rows(c) * out_cols(c);
    const double padded = (c.in_h + 2.0 * c.pad_h) * (c.in_w + 2.0 * c.pad_w);
    const double beyond = (padded - most_times * planes) * (c.in_channels > c.out_channels ? c.in_channels : c.out_channels);
    return beyond > most_floats ? &kernels_one_by_one : choice().chosen.kernels;
}

int check(const gossamer_pool* p) {
    if (!p) return GOSSAMER_NULL_POINTER;
    if (!fits(p->planes, 0) || !fits(p->height, 1) || !fits(p->width, 1)) return GOSSAMER_BAD_SHAPE;
    if (p->kernel < 1 || p->kernel > 15 || !fits(p->stride, 1)) return GOSSAMER_BAD_SHAPE;
    if (p->padding < 0 || p->padding > p->kernel / 2) return GOSSAMER_BAD_SHAPE;
    if (pooled(*p, p->height) < 1 || pooled(*p, p->width) < 1) return GOSSAMER_BAD_SHAPE;
    return choice().chosen.pool ? GOSSAMER_OK : GOSSAMER_UNKNOWN_ISA;
}

bool holds_input(int64_t count, const gossamer_pool* p) { return holds(count, p->planes, p->height, p->width); }
bool holds_output(int64_t count, const gossamer_pool* p) { return holds(count, p->planes, pooled(*p, p->height), pooled(*p, p->width)); }

int check(const gossamer_norm* n, int64_t count, int64_t channel_count) {
    if (!n) return GOSSAMER_NULL_POINTER;
    if (!fits(n->batch, 1) || !fits(n->channels, 1) || n->area < 1) return GOSSAMER_BAD_SHAPE;
    if (!holds(count, n->batch, n->channels, n->area) || channel_count != n->channels) return GOSSAMER_BAD_COUNT;
    return choice().chosen.norm ? GOSSAMER_OK : GOSSAMER_UNKNOWN_ISA;
}

thread_local unsigned ran = 0;  // the kernels of the last convolution

// Written anew for each call: valid until the thread's next one.
const char* name_of(unsigned kernels) {
    static const char* const names[] = {"rows", "rows, taps in columns", "rows run together", "images in lanes",
                                        "images in lanes, by position", "stretches in lanes", "points", "",
                                        "in place", "lines"};
    thread_local char text[160];
    *text = 0;
    if (kernels == kOneByOne) return "one by one";
    for (int i = 0; i < 10; i++)
        if (*names[i] && kernels & 1u << i) strcat(strcat(text, *text ? " and " : ""), names[i]);
    if (kernels & kTogether) strcat(text, ", phases together");
    if (kernels & kSharedBy2) strcat(text, ", shared by 2");
    if (kernels & kSharedBy4) strcat(text, ", shared by 4");
    return *text ? text : "none";
}

}  // namespace

const NetKernels* net_kernels() { return choice().chosen.net; }

}  // namespace gossamer

using namespace gossamer;

extern "C" {

int gossamer_output_size(const gossamer_conv* c, int64_t* out_h, int64_t* out_w) {
    if (!out_h || !out_w) return GOSSAMER_NULL_POINTER;
    const int status = check_sizes(c);
    if (status) return status;
    *out_h = out_rows(*c);
    *out_w = out_cols(*c);
    return GOSSAMER_OK;
}

int gossamer_forward(const gossamer_conv* c, const float* input, int64_t input_count, const float* weight, int64_t weight_count,
                     const float* bias, int64_t bias_count, int relu, float* output, int64_t output_count, int threads) {
    const int status = check(c);
    if (status) return status;
    if (!holds_input(input_count, c) || !holds_weight(weight_count, c) || !holds_output(output_count, c)) return GOSSAMER_BAD_COUNT;
    if (bias && bias_count != c->out_channels) return GOSSAMER_BAD_COUNT;
    if (c->batch == 0) return GOSSAMER_OK;
    if (!input || !output || (!weight && weight_count)) return GOSSAMER_NULL_POINTER;
    return kernels_for(*c)->forward(*c, input, weight, bias, relu != 0, output, usable_threads(threads), &ran);
}

int gossamer_input_grad(const gossamer_conv* c, const float* grad_output, int64_t grad_output_count, const float* weight,
                        int64_t weight_count, float* grad_input, int64_t grad_input_count, int threads) {
    const int status = check(c);
    if (status) return status;
    if (!holds_output(grad_output_count, c) || !holds_weight(weight_count, c) || !holds_input(grad_input_count, c))
        return GOSSAMER_BAD_COUNT;
    if (c->batch == 0) return GOSSAMER_OK;
    if (!grad_output || !grad_input || (!weight && weight_count)) return GOSSAMER_NULL_POINTER;
    return kernels_for(*c)->input_grad(*c, grad_output, weight, grad_input, usable_threads(threads), &ran);
}

int gossamer_weight_grad(const gossamer_conv* c, const float* grad_output, int64_t grad_output_count, const float* input,
                         int64_t input_count, float* grad_weight, int64_t grad_weight_count, int threads) {
    const int status = check(c);
    if (status) return status;
    if (!holds_output(grad_output_count, c) || !holds_input(input_count, c) || !holds_weight(grad_weight_count, c))
        return GOSSAMER_BAD_COUNT;
    if (grad_weight_count == 0) return GOSSAMER_OK;
    if (!grad_weight) return GOSSAMER_NULL_POINTER;
    if (c->batch == 0) {
        memset(grad_weight, 0, sizeof(float) * grad_weight_count);
        return GOSSAMER_OK;
    }
    if (!grad_output || !input) return GOSSAMER_NULL_POINTER;
    return kernels_for(*c)->weight_grad(*c, grad_output, input, grad_weight, usable_threads(threads), &ran);
}

int gossamer_max_pool(const gossamer_pool* p, const float* input, int64_t input_count, float* output, int64_t output_count,
                      uint8_t* index, int64_t index_count, int threads) {
    const int status = check(p);
    if (status) return status;
    if (!holds_input(input_count, p) || !holds_output(output_count, p) || (index && index_count != output_count))
        return GOSSAMER_BAD_COUNT;
    if (p->planes == 0) return GOSSAMER_OK;
    if (!input || !output) return GOSSAMER_NULL_POINTER;
    return choice().chosen.pool->max_pool(*p, input, output, index, usable_threads(threads));
}

int gossamer_max_pool_grad(const gossamer_pool* p, const float* grad_output, int64_t grad_output_count, const uint8_t* index,
                           int64_t index_count, float* grad_input, int64_t grad_input_count, int threads) {
    const int status = check(p);
    if (status) return status;
    if (!holds_output(grad_output_count, p) || index_count != grad_output_count || !holds_input(grad_input_count, p))
        return GOSSAMER_BAD_COUNT;
    if (p->planes == 0) return GOSSAMER_OK;
    if (!grad_output || !index || !grad_input) return GOSSAMER_NULL_POINTER;
    return choice().chosen.pool->max_pool_grad(*p, grad_output, index, grad_input, usable_threads(threads));
}

int gossamer_batch_norm(const gossamer_norm* n, const float* input, const float* scale, const float* shift, float epsilon,
                        int relu, float* mean, float* variance, float* output, int64_t count, int64_t channel_count, int threads) {
    const int status = check(n, count, channel_count);
    if (status) return status;
    if (!input || !mean || !variance || !output) return GOSSAMER_NULL_POINTER;
    choice().chosen.norm->batch_norm(*n, input, scale, shift, epsilon, relu != 0, mean, variance, output, usable_threads(threads));
    return GOSSAMER_OK;
}

int gossamer_batch_norm_grad(const gossamer_norm* n, const float* grad_output, const float* input, const float* scale,
                             const float* shift, const float* mean, const float* variance, float epsilon, int relu,
                             float* grad_input, float* grad_scale, float* grad_shift, int64_t count, int64_t channel_count,
                             int threads) {
    const int status = check(n, count, channel_count);
    if (status) return status;
    if (!grad_output || !input || !mean || !variance || !grad_input || !grad_scale || !grad_shift) return GOSSAMER_NULL_POINTER;
    choice().chosen.norm->batch_norm_grad(*n, grad_output, input, scale, shift, mean, variance, epsilon, relu != 0,
                                          grad_input, grad_scale, grad_shift, usable_threads(threads));
    return GOSSAMER_OK;
}

int gossamer_normalise(const gossamer_norm* n, const float* mean, const float* variance, const float* scale, const float* shift,
                       float epsilon, int relu, float* values, int64_t count, int64_t channel_count, int threads) {
    const int status = check(n, count, channel_count);
    if (status) return status;
    if (!mean || !variance || !values) return GOSSAMER_NULL_POINTER;
    choice().chosen.norm->normalise(*n, mean, variance, scale, shift, epsilon, relu != 0, values, usable_threads(threads));
    return GOSSAMER_OK;
}

const char* gossamer_kernel_name(const gossamer_conv* c, char pass, int threads) {
    const bool known = pass == 'f' || pass == 'i' || pass == 'w';
    return !known || check(c) ? "none" : name_of(kernels_for(*c)->planned(*c, pass, usable_threads(threads)));
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
        case GOSSAMER_BAD_COUNT: return "a tensor or list does not hold as many elements as the sizes say";
        case GOSSAMER_UNKNOWN_ISA: return "GOSSAMER_ISA names an instruction set that this library or machine does not have";
    }
    return "unknown status";
}

const char* gossamer_isa(void) { return choice().chosen.name; }
const char* gossamer_isa_list(void) { return choice().list; }
void gossamer_release_scratch(void) { release_scratch(); }
const char* gossamer_version(void) { return GOSSAMER_VERSION; }

}  // extern "C"
