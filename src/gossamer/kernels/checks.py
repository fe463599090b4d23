"""What the three operators take: every backend asks here before it computes, and before native code is given addresses.

Each function returns the output's shape, or raises TypeError (kinds of tensors) or ValueError (shapes, geometry, pattern) with
a sentence that names the argument. What was found right is remembered, sizes by value and patterns by tensor and version, so
that a call costs a look-up or two. Sizes that are not known yet, while a compiler traces, are taken as they are.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.kernels.reference import output_size

MOST = 2**31 - 1
"""The largest size, and the largest stride, padding and dilation."""


def forward(
    input: Tensor,
    weight: Tensor,
    indptr: Tensor,
    indices: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
) -> tuple[int, ...]:
    """The arguments of `sparse_conv2d`."""
    _check_kinds("input", input, "weight", weight, indptr, indices)
    return _check("input", input.shape, weight.shape, indptr, indices, stride, padding, dilation, groups)


def input_grad(
    grad_output: Tensor,
    weight: Tensor,
    indptr: Tensor,
    indices: Tensor,
    input_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
) -> tuple[int, ...]:
    """The arguments of `sparse_conv2d_input_grad`."""
    _check_kinds("grad_output", grad_output, "weight", weight, indptr, indices)
    shape = _check("input_shape", input_shape, weight.shape, indptr, indices, stride, padding, dilation, groups)
    _check_gradient(grad_output, shape)
    return shape


def weight_grad(
    grad_output: Tensor,
    input: Tensor,
    indptr: Tensor,
    indices: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
) -> tuple[int, ...]:
    """The arguments of `sparse_conv2d_weight_grad`."""
    _check_kinds("grad_output", grad_output, "input", input, indptr, indices)
    if len(kernel_size) != 2:
        raise ValueError(f"kernel_size must be two numbers, got {[*kernel_size]}")
    kernels = (*indices.shape[:1], *kernel_size)
    shape = _check("input", input.shape, kernels, indptr, indices, stride, padding, dilation, groups)
    _check_gradient(grad_output, shape)
    return shape


def _check_kinds(name: str, first: Tensor, other: str, second: Tensor, indptr: Tensor, indices: Tensor) -> None:
    """Numbers, layouts and devices."""
    kind, strided = first.dtype, torch.strided
    if (
        kind is second.dtype
        and (kind.is_floating_point or kind.is_complex)
        and indptr.dtype is indices.dtype is torch.int32
        and first.layout is second.layout is indptr.layout is indices.layout is strided
        and (
            (first.is_cpu and second.is_cpu and indptr.is_cpu and indices.is_cpu)
            or _one_device(first, second, indptr, indices)
        )
    ):
        return
    tensors = {name: first, other: second, "indptr": indptr, "indices": indices}
    for called, tensor in tensors.items():
        if tensor.layout != strided:
            raise TypeError(f"{called} must be a strided tensor, got {tensor.layout}")
    for called in ("indptr", "indices"):
        if tensors[called].dtype != torch.int32:
            raise TypeError(f"{called} must be int32, got {tensors[called].dtype}")
    if not _one_device(*tensors.values()):
        raise ValueError(
            f"all tensors must be on one device, got {', '.join(f'{n} on {t.device}' for n, t in tensors.items())}"
        )
    raise TypeError(f"{name} and {other} must be of one floating-point type, got {first.dtype} and {second.dtype}")


def _one_device(*tensors: Tensor) -> bool:
    return len({t.device for t in tensors}) == 1


def _check(
    name: str,
    input_shape: Sequence[int],
    kernels: Sequence[int],
    indptr: Tensor,
    indices: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[int, ...]:
    """The output's shape [n, o, oh, ow] for an input that the argument `name` gives, and kernels [e, kh, kw]."""
    try:
        shape = output_shape(
            name,
            tuple(input_shape),
            tuple(kernels),
            indptr.shape,
            indices.shape,
            tuple(stride),
            tuple(padding),
            tuple(dilation),
            groups,
        )
    except TypeError:  # sizes that a compiler does not know yet cannot be looked up
        return (input_shape[0], indptr.shape[0] - 1, *output_size(input_shape, kernels[1:], stride, padding, dilation))
    _check_pattern(indptr, indices, input_shape[1], groups)
    return shape


@functools.lru_cache(maxsize=4096)
def output_shape(
    name: str,
    input_shape: tuple[int, ...],
    kernels: tuple[int, ...],
    indptr: tuple[int, ...],
    indices: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> tuple[int, int, int, int]:
    """The output's shape for shapes and a geometry that fit each other, all plain numbers; `name` is said of the first."""
    if len(input_shape) != 4 or not _within(input_shape[1:], 1) or not _within(input_shape[:1], 0):
        raise ValueError(f"{name} must be [n, c, h, w] with sizes from 1 to {MOST} (n from 0), got {[*input_shape]}")
    if len(kernels) != 3 or not _within(kernels[1:], 1):
        raise ValueError(f"kernels must be [connections, height, width] with sizes from 1 to {MOST}, got {[*kernels]}")
    if len(indptr) != 1 or not _within(indptr, 2):
        raise ValueError(f"indptr must be [outputs + 1], of one output at least, got {[*indptr]}")
    if len(indices) != 1 or kernels[0] != indices[0] or not _within(indices, 0):
        raise ValueError(
            f"indices must be [connections], one for each kernel, got {[*indices]} for {kernels[0]} kernels"
        )
    for called, value, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(value) != 2 or not _within(value, least):
            raise ValueError(f"{called} must be two numbers from {least} to {MOST}, got {[*value]}")
    batch, channels, outputs = *input_shape[:2], indptr[0] - 1
    if groups < 1 or channels % groups or outputs % groups:
        raise ValueError(f"groups must divide the {channels} input and {outputs} output channels, got {groups}")
    height, width = output_size(input_shape, kernels[1:], stride, padding, dilation)
    if not _within((height, width), 1):
        raise ValueError(
            f"an output has from 1 to {MOST} rows and columns, {height} x {width} come of {name} {[*input_shape]} with kernels "
            f"{[*kernels[1:]]}, stride {[*stride]}, padding {[*padding]} and dilation {[*dilation]}"
        )
    if batch * max(channels * input_shape[2] * input_shape[3], outputs * height * width) > 2**60:
        raise ValueError(
            f"an input {[*input_shape]} with an output {[batch, outputs, height, width]} is more than fits memory"
        )
    return batch, outputs, height, width


def _within(sizes: Sequence[int], least: int) -> bool:
    return all(least <= size <= MOST for size in sizes)


def _check_gradient(grad_output: Tensor, shape: tuple[int, ...]) -> None:
    if grad_output.shape != shape and all(type(size) is int for size in shape):
        raise ValueError(f"grad_output must have the output's shape {[*shape]}, got {[*grad_output.shape]}")


# -- patterns ----------------------------------------------------------------------------------------------------------

_found_right: dict[int, tuple[Any, ...]] = {}
"""id(indices) -> the two tensors (weakly), and with which versions, input channels and groups they are a pattern."""


def _check_pattern(indptr: Tensor, indices: Tensor, in_channels: int, groups: int) -> None:
    """The connections themselves, unless they were looked at before or have no data."""
    key = id(indices)
    found = _found_right.get(key)
    try:
        state = (indices._version, indptr._version, in_channels, groups)
    except RuntimeError:  # made in inference mode, tensors do not say when they change
        state = None
    if found is not None and found[0]() is indices and found[1]() is indptr and found[2] == state:
        return
    if type(indptr) is not Tensor or type(indices) is not Tensor or indptr.is_meta:
        return
    try:
        numbers = [(t if t.is_cpu else t.cpu()).numpy() for t in (indptr, indices)]
    except RuntimeError:  # a transformation's wrapper, whose data cannot be seen
        return
    check_connections(numbers[0], numbers[1], in_channels, groups)
    if state is not None:
        forget = weakref.ref(indices, lambda _: _found_right.pop(key, None))
        _found_right[key] = (forget, weakref.ref(indptr), state)


def check_connections(indptr: np.ndarray, indices: np.ndarray, in_channels: int, groups: int) -> None:
    """Raises ValueError unless they are rows of ascending input channels, which stay in their groups."""
    if indptr[0] != 0 or indptr[-1] != len(indices) or (indptr[1:] < indptr[:-1]).any():
        raise ValueError(
            f"indptr must rise from 0 to the {len(indices)} connections of indices, got {_summary(indptr)}"
        )
    if len(indices) == 0:
        return
    if not 0 <= indices.min() <= indices.max() < in_channels:
        raise ValueError(f"indices must lie in 0..{in_channels - 1}, the input channels, got {_summary(indices)}")
    falls = np.flatnonzero(indices[1:] <= indices[:-1]) + 1
    if not np.isin(falls, indptr).all():
        raise ValueError("indices must ascend within each output channel, without repeats")
    if groups > 1:
        rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        if (indices // (in_channels // groups) != rows // ((len(indptr) - 1) // groups)).any():
            raise ValueError(f"indices must stay within the {groups} groups of channels")


def _summary(numbers: np.ndarray) -> str:
    return f"{len(numbers)} numbers between {numbers.min()} and {numbers.max()}, from {numbers[0]} to {numbers[-1]}"
