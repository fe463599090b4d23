"""Pooling of contiguous NCHW planes on the CPU, which PyTorch computes one element at a time.

Averages are a sparse convolution: each plane by itself, with equal weights.

`gossamer::max_pool2d(input, kernel, stride, padding, with_index)` gives the output and, for its gradient, where in its window
each winner stood (row * kernel + column, one byte; no elements without `with_index`). Values, ties and not-a-number are
`torch.nn.functional.max_pool2d`'s. float32; windows are square, up to 15 x 15. As the input is not kept for the backward
pass, training holds one byte for each output where PyTorch holds the input and eight.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gossamer.kernels.checks import MOST
from gossamer.kernels.native.library import LIBRARY

__all__ = ["LARGEST", "avg_pool2d", "max_pool2d", "output_size"]

LARGEST = 15
"""The largest kernel: a place in its window fits one byte."""


class _Pool(ctypes.Structure):
    """``gossamer_pool`` of csrc/gossamer.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("planes", "height", "width", "kernel", "stride", "padding")]


for _function in (LIBRARY.gossamer_max_pool, LIBRARY.gossamer_max_pool_grad):
    _function.argtypes = [ctypes.POINTER(_Pool), *(ctypes.c_void_p, ctypes.c_int64) * 3, ctypes.c_int]


def output_size(shape: Sequence[int], kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """Height and width of the output for an input of `shape` [n, c, h, w]; less than 1 where a window does not fit."""
    height, width = ((size + 2 * padding - kernel) // stride + 1 for size in shape[2:])
    return height, width


def _call(function: str, shape: Sequence[int], kernel: int, stride: int, padding: int, *tensors: Tensor | None) -> None:
    pool = _Pool(shape[0] * shape[1], *shape[2:], kernel, stride, padding)
    memory = [part for t in tensors for part in ((None, 0) if t is None else (t.data_ptr(), t.numel()))]
    status = getattr(LIBRARY, function)(pool, *memory, torch.get_num_threads())
    if status:
        sizes = {field[0]: getattr(pool, field[0]) for field in _Pool._fields_}
        raise RuntimeError(f"gossamer: {LIBRARY.gossamer_status_text(status).decode()}; the call was {sizes}")


def _check(input: Tensor, shape: Sequence[int], kernel: int, stride: int, padding: int) -> tuple[int, ...]:
    """The output's shape for an input of `shape`. Raises TypeError for other tensors, ValueError for sizes that cannot be."""
    if input.dtype != torch.float32 or input.dim() != 4 or input.layout != torch.strided:
        kind = input.dtype if input.layout == torch.strided else input.layout
        raise TypeError(f"max_pool2d needs float32 [n, c, h, w], got {kind} {list(input.shape)}")
    if len(shape) != 4 or not 1 <= kernel <= LARGEST or stride < 1 or not 0 <= padding <= kernel // 2:
        raise ValueError(
            f"max_pool2d takes an input [n, c, h, w], a kernel from 1 to {LARGEST}, a stride from 1 and a padding from 0 to "
            f"half the kernel, got {list(shape)}, {kernel}, {stride} and {padding}"
        )
    output = (*shape[:2], *output_size(shape, kernel, stride, padding))
    sizes = (*shape, stride, *output[2:])
    least = (0, 0, 1, 1, 1, 1, 1)
    if all(type(s) is int for s in sizes) and not all(a <= s <= MOST for a, s in zip(least, sizes, strict=True)):
        raise ValueError(
            f"max_pool2d of {list(shape)} with kernel {kernel}, stride {stride} and padding {padding} has no output"
        )
    return output


def _check_gradient(
    grad: Tensor, index: Tensor, input_shape: Sequence[int], kernel: int, stride: int, padding: int
) -> None:
    expected = _check(grad, input_shape, kernel, stride, padding)
    shapes = tuple(grad.shape) == expected == tuple(index.shape)
    if not shapes or index.dtype != torch.uint8 or index.device != grad.device or index.layout != torch.strided:
        raise RuntimeError(
            f"max_pool2d_grad of an input {list(input_shape)} takes a gradient and an index (uint8) {list(expected)} on one "
            f"device, got {list(grad.shape)} ({grad.device}) and {list(index.shape)} ({index.dtype}, {index.device})"
        )


def _forward(input: Tensor, kernel: int, stride: int, padding: int, with_index: bool) -> tuple[Tensor, Tensor]:
    output, index = _fake_forward(input, kernel, stride, padding, with_index)
    to = index if with_index else None
    _call("gossamer_max_pool", input.shape, kernel, stride, padding, input.contiguous(), output, to)
    return output, index


def _grad(grad: Tensor, index: Tensor, input_shape: Sequence[int], kernel: int, stride: int, padding: int) -> Tensor:
    grad_input = _fake_grad(grad, index, input_shape, kernel, stride, padding)
    call = ("gossamer_max_pool_grad", input_shape, kernel, stride, padding)
    _call(*call, grad.contiguous(), index.contiguous(), grad_input)
    return grad_input


# -- shapes without data -----------------------------------------------------------------------------------------------


def _fake_forward(input: Tensor, kernel: int, stride: int, padding: int, with_index: bool) -> tuple[Tensor, Tensor]:
    shape = _check(input, input.shape, kernel, stride, padding)
    return input.new_empty(shape), input.new_empty(shape if with_index else (0,), dtype=torch.uint8)


def _fake_grad(
    grad: Tensor, index: Tensor, input_shape: Sequence[int], kernel: int, stride: int, padding: int
) -> Tensor:
    _check_gradient(grad, index, input_shape, kernel, stride, padding)
    return grad.new_empty(tuple(input_shape))


# -- autograd, twice over ----------------------------------------------------------------------------------------------


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, *ctx.window, with_index = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])
    ctx.input_shape, ctx.with_index = input.shape, with_index


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    if not ctx.with_index:
        raise RuntimeError("max_pool2d has no gradient without its index: call it with with_index=True")
    for_input = torch.ops.gossamer.max_pool2d_grad(grad, *ctx.saved_tensors, ctx.input_shape, *ctx.window)
    return for_input, *[None] * 4


def _setup_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, index, _, *ctx.window = inputs
    ctx.save_for_backward(index)


def _backward_grad(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """The gradient at each winner's place."""
    (index,) = ctx.saved_tensors
    kernel, stride, padding = ctx.window
    (rows, cols), width = index.shape[2:], grad.shape[3]
    y, x = torch.arange(rows)[:, None] * stride - padding, torch.arange(cols) * stride - padding
    at = (y + index.long() // kernel) * width + x + index.long() % kernel
    return grad.flatten(2).gather(2, at.flatten(2)).view(index.shape), *[None] * 5


def register(library: torch.library.Library) -> None:
    """Defines the operators and makes the native kernels their CPU backend."""
    window = "SymInt kernel, SymInt stride, SymInt padding"
    library.define(f"max_pool2d(Tensor input, {window}, bool with_index) -> (Tensor, Tensor)")
    library.define(f"max_pool2d_grad(Tensor grad, Tensor index, SymInt[4] input_shape, {window}) -> Tensor")
    for name, native, fake, backward, setup in (
        ("max_pool2d", _forward, _fake_forward, _backward, _setup),
        ("max_pool2d_grad", _grad, _fake_grad, _backward_grad, _setup_grad),
    ):
        library.impl(name, native, "CPU")
        torch.library.register_fake(f"gossamer::{name}", fake, lib=library)
        torch.library.register_autograd(f"gossamer::{name}", backward, setup_context=setup, lib=library)


def max_pool2d(input: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Max-pooling of float32 [n, c, h, w] on the CPU, differentiable."""
    with_index = torch.is_grad_enabled() and input.requires_grad
    return torch.ops.gossamer.max_pool2d(input, kernel, stride, padding, with_index)[0]


def avg_pool2d(input: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Average-pooling of float32 [n, c, h, w] on the CPU, padding included in the averages; differentiable."""
    n, c, h, w = input.shape
    weight, indptr, indices = _averages(kernel)
    window = [stride, stride], [padding, padding], [1, 1]
    output = torch.ops.gossamer.sparse_conv2d(input.view(n * c, 1, h, w), weight, indptr, indices, *window)
    return output.view(n, c, *output.shape[2:])


@functools.cache
def _averages(kernel: int) -> tuple[Tensor, Tensor, Tensor]:
    """(weight, indptr, indices) of one connection whose kernel averages."""
    weight = torch.full((1, kernel, kernel), 1 / kernel**2)
    return weight, torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0], dtype=torch.int32)
