"""Channel-sparse convolution: three bilinear operators (`operators`), their specification (`reference`) and who computes them.

`native` are the CPU kernels, `dense` the fallback for everything else, `policy` says which of the two; `cpu` is what users
need of that.
"""

from gossamer.kernels import cpu
from gossamer.kernels.operators import sparse_conv2d, sparse_conv2d_input_grad, sparse_conv2d_weight_grad, transformed

__all__ = ["cpu", "sparse_conv2d", "sparse_conv2d_input_grad", "sparse_conv2d_weight_grad", "transformed"]
