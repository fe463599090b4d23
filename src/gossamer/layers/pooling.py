"""Pooling of planes (`planes`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.kernels import policy
from gossamer.kernels.native import pool
from gossamer.layers.planes import are_planes, leaf


class MaxPool2d(nn.MaxPool2d):
    """`nn.MaxPool2d`; native are square windows up to 15 x 15 without dilation, `ceil_mode` or `return_indices`."""

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, torch.fx.Proxy):
            return leaf(self, input)
        plain = not (self.ceil_mode or self.return_indices) and _one(self.dilation) == 1
        window = _window(self, input) if plain else None
        return super().forward(input) if window is None else pool.max_pool2d(input, *window)


class AvgPool2d(nn.AvgPool2d):
    """`nn.AvgPool2d` up to rounding; native are square windows up to 15 x 15 that overlap, at strides 1 and 2, whose averages
    include their padding. PyTorch is as fast or faster on the others, which look at each element once."""

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, torch.fx.Proxy):
            return leaf(self, input)
        plain = not self.ceil_mode and self.divisor_override is None and (self.count_include_pad or not self.padding)
        window = _window(self, input) if plain and policy.asked_path() != "dense" else None
        if window is None:
            return super().forward(input)
        kernel, stride, _ = window
        overlapping = stride < kernel < min(input.shape[2:]) and stride <= 2
        return pool.avg_pool2d(input, *window) if overlapping else super().forward(input)


def _window(layer: nn.MaxPool2d | nn.AvgPool2d, input: Tensor) -> tuple[int, int, int] | None:
    """(kernel, stride, padding) where a native operator can pool `input`."""
    if not are_planes(input, policy.LEAST_POOLED):
        return None
    kernel, stride, padding = (_one(value) for value in (layer.kernel_size, layer.stride, layer.padding))
    if kernel is None or stride is None or padding is None:
        return None
    if not 1 <= kernel <= pool.LARGEST or stride < 1 or not 0 <= padding <= kernel // 2:
        return None  # what PyTorch has an error message for, among others
    return (kernel, stride, padding) if min(pool.output_size(input.shape, kernel, stride, padding)) > 0 else None


def _one(size: int | tuple[int, ...]) -> int | None:
    """The size in both directions, where it is one."""
    sizes = {size} if isinstance(size, int) else set(size)
    return sizes.pop() if len(sizes) == 1 else None
