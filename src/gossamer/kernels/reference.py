"""The specification: Algorithms 1 and 2 of the paper's appendix in plain PyTorch, and their two gradients.

Nothing here is fast. Tests, documentation and benchmarks hold every other backend against this file. The functions
share the arguments of the operators (`gossamer.kernels`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def dense_conv2d(
    input: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Algorithm 1, the naive dense convolution: weight [o, c, kh, kw]."""
    height, width = output_size(input.shape, weight.shape[2:], stride, padding, dilation)
    output = [input.new_zeros(input.shape[0], height, width) for _ in range(weight.shape[0])]
    for i in range(weight.shape[1]):
        for o in range(weight.shape[0]):
            output[o] = output[o] + _convolve(input[:, i], weight[o, i], stride, padding, dilation)
    return torch.stack(output, dim=1)


def sparse_conv2d(
    input: Tensor,
    weight: Tensor,
    indptr: Tensor,
    indices: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
) -> Tensor:
    """Algorithm 2, the naive sparse convolution: output[o] += convolve(input[i], W[e]) for every connection e.

    input [n, c, h, w], weight [e, kh, kw], returns [n, o, oh, ow].
    """
    height, width = output_size(input.shape, weight.shape[1:], stride, padding, dilation)
    output = [input.new_zeros(input.shape[0], height, width) for _ in range(len(indptr) - 1)]
    for e, o, i in _connections(indptr, indices):
        output[o] = output[o] + _convolve(input[:, i], weight[e], stride, padding, dilation)
    return torch.stack(output, dim=1)


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
) -> Tensor:
    """The gradient of Algorithm 2 by its input: grad_output [n, o, oh, ow] back to [n, c, h, w]."""
    n, channels, h, w = input_shape
    (kh, kw), (oh, ow) = weight.shape[1:], grad_output.shape[2:]
    padded = grad_output.new_zeros(n, channels, h + 2 * padding[0], w + 2 * padding[1])
    for e, o, i in _connections(indptr, indices):
        for y, x in _taps(kh, kw):
            rows, columns = _reach(y, x, oh, ow, stride, dilation)
            padded[:, i, rows, columns] += grad_output[:, o] * weight[e, y, x]
    return padded[:, :, padding[0] : padding[0] + h, padding[1] : padding[1] + w].contiguous()


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
) -> Tensor:
    """The gradient of Algorithm 2 by its weight: one kernel [kh, kw] for each connection, [e, kh, kw]."""
    (kh, kw), (oh, ow) = kernel_size, grad_output.shape[2:]
    padded = F.pad(input, (padding[1], padding[1], padding[0], padding[0]))
    grad = grad_output.new_zeros(len(indices), kh, kw)
    for e, o, i in _connections(indptr, indices):
        for y, x in _taps(kh, kw):
            rows, columns = _reach(y, x, oh, ow, stride, dilation)
            grad[e, y, x] = (padded[:, i, rows, columns] * grad_output[:, o]).sum()
    return grad


def output_size(
    input_shape: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """Height and width of the output plane."""
    height, width = (
        (input_shape[2 + d] + 2 * padding[d] - dilation[d] * (kernel_size[d] - 1) - 1) // stride[d] + 1 for d in (0, 1)
    )
    return height, width


def _convolve(
    plane: Tensor, kernel: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """One channel [n, h, w] through one kernel [kh, kw]: line 8 of both algorithms."""
    return F.conv2d(plane[:, None], kernel[None, None], None, list(stride), list(padding), list(dilation))[:, 0]


def _connections(indptr: Tensor, indices: Tensor) -> Iterator[tuple[int, int, int]]:
    """(connection, output channel, input channel), in the order of the weights."""
    offsets, inputs = indptr.tolist(), indices.tolist()
    for o in range(len(offsets) - 1):
        for e in range(offsets[o], offsets[o + 1]):
            yield e, o, inputs[e]


def _taps(kh: int, kw: int) -> Iterator[tuple[int, int]]:
    return ((y, x) for y in range(kh) for x in range(kw))


def _reach(y: int, x: int, oh: int, ow: int, stride: Sequence[int], dilation: Sequence[int]) -> tuple[slice, slice]:
    """The rows and columns of the padded input that tap (y, x) multiplies."""
    top, left = y * dilation[0], x * dilation[1]
    return slice(top, top + (oh - 1) * stride[0] + 1, stride[0]), slice(
        left, left + (ow - 1) * stride[1] + 1, stride[1]
    )
