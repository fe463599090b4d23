// Runs one operation of a program. Compiled once for each line of isa.inc, so: no STL, nothing shared between the builds.
#include "net/convolution.h"
#include "net/elementwise.h"
#include "net/matrix.h"
#include "net/windows.h"

namespace gossamer {
namespace {

void run_step(const Step& step, const Worker& worker) {
    switch (step.kind) {
        case Kind::Conv: return convolution(step, worker);
        case Kind::Linear: return linear(step, worker);
        case Kind::Affine: return affine(step, worker);
        case Kind::Binary: return binary(step, worker);
        case Kind::Pool: return pool(step, worker);
        case Kind::AdaptivePool: return adaptive_pool(step, worker);
        case Kind::Reduce: return reduce(step, worker);
        case Kind::Norm: return norm(step, worker);
        case Kind::Softmax: return softmax(step, worker);
        case Kind::Copy: return copy_view(step, worker);
        case Kind::Select: return select_view(step, worker);
        case Kind::Resample: return resample(step, worker);
        case Kind::Matmul: return matmul(step, worker);
        case Kind::Concat: return concat(step, worker);
    }
}

}  // namespace

#define GOSSAMER_NET_2(name) net_##name
#define GOSSAMER_NET_1(name) GOSSAMER_NET_2(name)
extern const NetKernels GOSSAMER_NET_1(GOSSAMER_BUILD);
const NetKernels GOSSAMER_NET_1(GOSSAMER_BUILD) = {run_step};

}  // namespace gossamer
