"""The fallback for any device and float type: scatter the kernels into a dense weight and call PyTorch.

It saves neither time nor memory for activations, but it is always right, and where most connections live it is the
fastest path. A grouped layer runs as PyTorch's grouped convolution. The functions share the arguments of the operators
(`gossamer.kernels`); whatever the `path`, this is it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gossamer.kernels import checks


def sparse_conv2d(
    input: Tensor,
    weight: Tensor,
    indptr: Tensor,
    indices: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    path: str = "dense",
) -> Tensor:
    """input [n, c, h, w], weight [e, kh, kw] -> [n, o, oh, ow]."""
    checks.forward(input, weight, indptr, indices, stride, padding, dilation, groups)
    format = layout(input)
    full = scatter(weight, indptr, indices, input.shape[1], groups).contiguous(memory_format=format)
    out = torch.ops.aten.convolution(input, full, None, stride, padding, dilation, False, [0, 0], groups)
    return out.contiguous(memory_format=format)


def sparse_conv2d_input_grad(
    grad_output: Tensor,
    weight: Tensor,
    indptr: Tensor,
    indices: Tensor,
    input_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    path: str = "dense",
) -> Tensor:
    """grad_output [n, o, oh, ow], weight [e, kh, kw] -> [n, c, h, w]."""
    checks.input_grad(grad_output, weight, indptr, indices, input_shape, stride, padding, dilation, groups)
    format = layout(grad_output)
    full = scatter(weight, indptr, indices, input_shape[1], groups).contiguous(memory_format=format)
    input = grad_output.new_empty(1).expand(tuple(input_shape))
    grad = _backward(grad_output, input, full, stride, padding, dilation, groups, (True, False, False))[0]
    return grad.contiguous(memory_format=format)


def sparse_conv2d_weight_grad(
    grad_output: Tensor,
    input: Tensor,
    indptr: Tensor,
    indices: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    path: str = "dense",
) -> Tensor:
    """grad_output [n, o, oh, ow], input [n, c, h, w] -> [e, kh, kw]."""
    checks.weight_grad(grad_output, input, indptr, indices, kernel_size, stride, padding, dilation, groups)
    shape = (grad_output.shape[1], input.shape[1] // groups, *kernel_size)
    full = grad_output.new_empty(1).expand(shape)
    grad = _backward(grad_output, input, full, stride, padding, dilation, groups, (False, True, False))[1]
    flat = grad.flatten(0, 1)
    if flat.shape[0] == indices.shape[0]:  # every connection
        return flat.contiguous()
    return flat.index_select(0, positions(indptr, indices, input.shape[1], groups))


def scatter(weight: Tensor, indptr: Tensor, indices: Tensor, in_channels: int, groups: int = 1) -> Tensor:
    """Kernels [e, kh, kw] laid out as nn.Conv2d's weight [o, c / groups, kh, kw], zero where no connection is."""
    outputs, width = indptr.shape[0] - 1, in_channels // groups
    full = weight
    if weight.shape[0] < outputs * width:
        full = weight.new_zeros(outputs * width, *weight.shape[1:])
        full.index_copy_(0, positions(indptr, indices, in_channels, groups), weight)
    return full.view(outputs, width, *weight.shape[1:])


def layout(images: Tensor) -> torch.memory_format:
    """The memory format of what is computed from `images`: channels-last where they are."""
    if images.is_contiguous() or not images.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def positions(indptr: Tensor, indices: Tensor, in_channels: int, groups: int = 1) -> Tensor:
    """Where each connection lies in a dense weight flattened to [o * c / groups, kh, kw]; int64 [e]."""
    width = in_channels // groups
    fan_in = (indptr[1:] - indptr[:-1]).long()
    outputs = torch.arange(indptr.shape[0] - 1, device=indptr.device)
    rows = torch.repeat_interleave(outputs, fan_in, output_size=indices.shape[0])
    within = indices if groups == 1 else indices % width
    return rows.mul_(width).add_(within)


def _backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.aten.convolution_backward(
        grad_output, input, weight, None, stride, padding, dilation, False, [0, 0], groups, list(wanted)
    )
