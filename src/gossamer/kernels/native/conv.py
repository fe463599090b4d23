"""The native CPU kernels behind the three operators.

Called with the tensors' addresses and PyTorch's thread count, and registered for the dispatcher's CPU key. What the library
does not cover (any type but float32) and what PyTorch's dense convolution does faster goes to `gossamer.kernels.dense`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from gossamer.kernels import checks, dense
from gossamer.kernels.native.library import LIBRARY
from gossamer.kernels.policy import ASKED, takes

__all__ = ["kernel_name", "register", "sparse_conv2d", "sparse_conv2d_input_grad", "sparse_conv2d_weight_grad"]


class _Conv(ctypes.Structure):
    """``gossamer_conv`` of csrc/gossamer.h."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("batch", "in_channels", "in_h", "in_w", "out_channels", "kernel_h", "kernel_w"),
            *("stride_h", "stride_w", "pad_h", "pad_w", "dil_h", "dil_w"),
        )
    ]
    _fields_ += [("indptr", ctypes.c_void_p), ("indices", ctypes.c_void_p)]
    _fields_ += [("indptr_count", ctypes.c_int64), ("indices_count", ctypes.c_int64)]


_CONV, _TENSOR = ctypes.POINTER(_Conv), (ctypes.c_void_p, ctypes.c_int64)
LIBRARY.gossamer_forward.argtypes = [_CONV, *_TENSOR * 3, ctypes.c_int, *_TENSOR, ctypes.c_int]
LIBRARY.gossamer_input_grad.argtypes = [_CONV, *_TENSOR * 3, ctypes.c_int]
LIBRARY.gossamer_weight_grad.argtypes = [_CONV, *_TENSOR * 3, ctypes.c_int]
LIBRARY.gossamer_kernel_name.argtypes = [_CONV, ctypes.c_char, ctypes.c_int]
LIBRARY.gossamer_kernel_name.restype = LIBRARY.gossamer_kernel_ran.restype = ctypes.c_char_p


def kernel_name(
    operation: str,
    input_shape: Sequence[int],
    kernel_size: Sequence[int],
    indptr: Tensor,
    indices: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> str:
    """The native kernel that a call of `operation` runs, by how it lays out what it reads (docs/kernels.md)."""
    kernels = (indices.shape[0], *kernel_size)
    geometry = (tuple(stride), tuple(padding), tuple(dilation))
    checks.output_shape("input_shape", tuple(input_shape), kernels, indptr.shape, indices.shape, *geometry, 1)
    conv = _conv(torch.Size(input_shape), torch.Size(kernel_size), indptr, indices, *map(list, geometry))
    name: bytes = LIBRARY.gossamer_kernel_name(conv, operation[0].encode(), torch.get_num_threads())
    return name.decode()


def _check(status: int, conv: _Conv) -> None:
    if status:
        sizes = {name: getattr(conv, name) for name, kind, *_ in _Conv._fields_ if kind is ctypes.c_int64}
        raise RuntimeError(f"gossamer: {LIBRARY.gossamer_status_text(status).decode()}; the call was {sizes}")


def _conv(
    shape: list[int] | torch.Size,
    kernel_size: list[int] | torch.Size,
    indptr: Tensor,
    indices: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> _Conv:
    """The problem as the library takes it; `indptr` and `indices` must be contiguous and outlive it."""
    pointers, outputs, connections = (indptr.data_ptr(), indices.data_ptr()), indptr.shape[0] - 1, indices.shape[0]
    return _Conv(*shape, outputs, *kernel_size, *stride, *padding, *dilation, *pointers, outputs + 1, connections)


def sparse_conv2d(
    input: Tensor,
    weight: Tensor,
    indptr: Tensor,
    indices: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int = 1,
    path: str = ASKED,
) -> Tensor:
    """As `gossamer.kernels.reference.sparse_conv2d`, in native code for float32."""
    shape = checks.forward(input, weight, indptr, indices, stride, padding, dilation, groups)
    if not takes("forward", input, weight, input.shape, weight.shape[1:], indptr, indices, groups, path):
        return dense.sparse_conv2d(input, weight, indptr, indices, stride, padding, dilation, groups)
    input, weight, indptr, indices = input.contiguous(), weight.contiguous(), indptr.contiguous(), indices.contiguous()
    conv = _conv(input.shape, weight.shape[1:], indptr, indices, stride, padding, dilation)
    output = input.new_empty(shape)
    x, w, y = ((t.data_ptr(), t.numel()) for t in (input, weight, output))
    status = LIBRARY.gossamer_forward(conv, *x, *w, None, 0, 0, *y, torch.get_num_threads())
    _check(status, conv)
    return output


def sparse_conv2d_input_grad(
    grad_output: Tensor,
    weight: Tensor,
    indptr: Tensor,
    indices: Tensor,
    input_shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int = 1,
    path: str = ASKED,
) -> Tensor:
    """As `gossamer.kernels.reference.sparse_conv2d_input_grad`, in native code for float32."""
    checks.input_grad(grad_output, weight, indptr, indices, input_shape, stride, padding, dilation, groups)
    if not takes("input_grad", grad_output, weight, input_shape, weight.shape[1:], indptr, indices, groups, path):
        return dense.sparse_conv2d_input_grad(
            grad_output, weight, indptr, indices, input_shape, stride, padding, dilation, groups
        )
    grad_output, weight = grad_output.contiguous(), weight.contiguous()
    indptr, indices = indptr.contiguous(), indices.contiguous()
    conv = _conv(input_shape, weight.shape[1:], indptr, indices, stride, padding, dilation)
    grad_input = grad_output.new_empty(input_shape)
    g, w, x = ((t.data_ptr(), t.numel()) for t in (grad_output, weight, grad_input))
    status = LIBRARY.gossamer_input_grad(conv, *g, *w, *x, torch.get_num_threads())
    _check(status, conv)
    return grad_input


def sparse_conv2d_weight_grad(
    grad_output: Tensor,
    input: Tensor,
    indptr: Tensor,
    indices: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int = 1,
    path: str = ASKED,
) -> Tensor:
    """As `gossamer.kernels.reference.sparse_conv2d_weight_grad`, in native code for float32."""
    checks.weight_grad(grad_output, input, indptr, indices, kernel_size, stride, padding, dilation, groups)
    if not takes("weight_grad", grad_output, input, input.shape, kernel_size, indptr, indices, groups, path):
        return dense.sparse_conv2d_weight_grad(
            grad_output, input, indptr, indices, kernel_size, stride, padding, dilation, groups
        )
    grad_output, input = grad_output.contiguous(), input.contiguous()
    indptr, indices = indptr.contiguous(), indices.contiguous()
    conv = _conv(input.shape, kernel_size, indptr, indices, stride, padding, dilation)
    grad_weight = input.new_empty((indices.numel(), *kernel_size))
    g, x, w = ((t.data_ptr(), t.numel()) for t in (grad_output, input, grad_weight))
    status = LIBRARY.gossamer_weight_grad(conv, *g, *x, *w, torch.get_num_threads())
    _check(status, conv)
    return grad_weight


def register(library: torch.library.Library) -> None:
    """Makes these functions the CPU backend of the operators that `library` defines."""
    for function in (sparse_conv2d, sparse_conv2d_input_grad, sparse_conv2d_weight_grad):
        library.impl(function.__name__, function, "CPU")
