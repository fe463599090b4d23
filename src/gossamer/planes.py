"""Layers beside the sparse convolutions that PyTorch is slow at on contiguous NCHW planes: with native kernels on the CPU.

PyTorch's fast pooling and batch normalisation want channels-last, and sparse convolutions work on planes. Each class here
is PyTorch's of the same name, with the same arguments, parameters, buffers and results. float32 planes on the CPU go to
Gossamer's operators where they are large enough to pay for the call; everything else, `torch.compile` and export included,
goes to PyTorch's. Inside an `nn.Sequential` a native normalisation computes the ReLU that follows it as well, in evaluation
in the output of the sparse convolution before it.
"""

from __future__ import annotations

from itertools import pairwise, zip_longest
from typing import Any, cast

import torch
from torch import Tensor, nn

from gossamer.kernels import policy, transformed
from gossamer.kernels.native import norm, pool
from gossamer.layers import SparseConv2d

__all__ = ["AvgPool2d", "BatchNorm2d", "MaxPool2d", "exchange_layers"]


# From how many floats of input on the native operators win (`python benchmarks/planes.py` measures them at any size).
# PyTorch's batch normalisation spends as much on a plane of 2x2 as on one of several times that: planes count for 8 at least.
LEAST_POOLED, LEAST_TRAINED, LEAST_EVALUATED = 1 << 14, 3 << 16, 6 << 16


class MaxPool2d(nn.MaxPool2d):
    """`nn.MaxPool2d`; native are square windows up to 15 x 15 without dilation, `ceil_mode` or `return_indices`."""

    def forward(self, input: Tensor) -> Tensor:
        plain = not (self.ceil_mode or self.return_indices) and _one(self.dilation) == 1
        window = _window(self, input) if plain else None
        return super().forward(input) if window is None else pool.max_pool2d(input, *window)


class AvgPool2d(nn.AvgPool2d):
    """`nn.AvgPool2d` up to rounding; native are square windows up to 15 x 15 that overlap, at strides 1 and 2, whose averages
    include their padding. PyTorch is as fast or faster on the others, which look at each element once."""

    def forward(self, input: Tensor) -> Tensor:
        plain = not self.ceil_mode and self.divisor_override is None and (self.count_include_pad or not self.padding)
        window = _window(self, input) if plain and policy.asked_path() != "dense" else None
        if window is None:
            return super().forward(input)
        kernel, stride, _ = window
        overlapping = stride < kernel < min(input.shape[2:]) and stride <= 2
        return pool.avg_pool2d(input, *window) if overlapping else super().forward(input)


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` up to rounding; native is training. In evaluation PyTorch is as fast, unless it can be done in place."""

    def forward(self, input: Tensor) -> Tensor:
        output = self._native(input)
        return super().forward(input) if output is None else output

    def _native(self, input: Tensor, relu: bool = False) -> Tensor | None:
        """The output, after a ReLU if asked for; none where it is PyTorch that computes."""
        if not self.training or not _are_planes(input, LEAST_TRAINED, 8):
            return None
        vectors = (self.weight, self.bias, self.running_mean, self.running_var)
        count = input.numel() // input.shape[1]
        if count < 2 or not all(_is_vector(v) for v in vectors):  # of one value a channel PyTorch says what is wrong
            return None
        output, mean, variance = norm.batch_norm(input, self.weight, self.bias, self.eps, relu)
        self._remember(mean, variance, count)
        return output

    def _in_place(self, input: Tensor) -> bool:
        """Whether the results of an evaluation, after a ReLU, were written over `input`."""
        if self.training or torch.is_grad_enabled() or not _are_planes(input, LEAST_EVALUATED):
            return False
        weight, bias, mean, variance = vectors = (self.weight, self.bias, self.running_mean, self.running_var)
        if mean is None or variance is None or not all(_is_vector(v) for v in vectors):
            return False
        norm.normalise_(input, mean, variance, weight, bias, self.eps, relu=True)
        return True

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """What `nn.BatchNorm2d` keeps of a batch, for evaluation."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * (count / (count - 1)), share)


class _Rectifying(nn.Sequential):
    """The forward of an `nn.Sequential` in which a native batch normalisation computes the `nn.ReLU` right after it too.

    In evaluation it does so where nobody else can hold its input: in what a sparse convolution has just returned.
    Both modules stay in their places and know nothing of it. Each call looks anew whether they are what they were and
    would be called for nothing but their results, so that later hooks and replacements work as ever.
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return super().forward(input)
        layers, rectified = list(self), False
        before: nn.Module | None = None
        for layer, after in zip_longest(layers, layers[1:]):
            if rectified:  # this is the ReLU
                rectified = False
                continue
            output = None
            joint = layer if type(layer) is BatchNorm2d and type(after) is nn.ReLU else None
            # the size first, which costs least to ask: small networks have no time to lose
            if joint and _are_planes(input, LEAST_TRAINED, 8) and _is_bare(layer) and _is_bare(after):
                own = type(before) is SparseConv2d and _is_bare(before)
                output = input if own and joint._in_place(input) else joint._native(input, relu=True)
            rectified = output is not None
            input = layer(input) if output is None else output
            before = layer
        return input

    def __reduce_ex__(self, protocol: Any) -> Any:
        (make, (kind, *arguments), *state) = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        return _made, (kind.__bases__[-1], make, *arguments), *state


_RECTIFYING: dict[type[nn.Module], Any] = {}


def _rectifying(kind: type[nn.Module]) -> Any:
    """The one subclass of `kind`, under the same name, that computes ReLUs as `_Rectifying` does."""
    if kind not in _RECTIFYING:
        names = {"__module__": kind.__module__, "__doc__": kind.__doc__}
        _RECTIFYING[kind] = type(kind.__name__, (_Rectifying, kind), names)
    return _RECTIFYING[kind]


def _made(kind: type[nn.Sequential], make: Any, *arguments: Any) -> Any:
    """What copies and pickles call: no module has the classes of `_rectifying` by name."""
    return make(_rectifying(kind), *arguments)


def exchange_layers(model: nn.Module) -> None:
    """Put the classes of this module in the places of PyTorch's inside `model`; subclasses stay what they are.

    The new layers share parameters, buffers and hooks with the old ones. An `nn.Sequential`, and subclasses with its
    forward, in which a ReLU follows a batch normalisation get a class that computes them at once.
    """
    made: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and type(child) in _EXCHANGED:
                parent._modules[name] = made.setdefault(child, _like(child))
        if type(parent).forward is nn.Sequential.forward and _rectifies(parent):
            parent.__class__ = _rectifying(type(parent))


def _rectifies(layers: Any) -> bool:
    """Whether a ReLU follows one of our batch normalisations."""
    return any(type(layer) is BatchNorm2d and type(after) is nn.ReLU for layer, after in pairwise(layers))


_EXCHANGED: dict[type[nn.Module], type[nn.Module]] = {
    nn.MaxPool2d: MaxPool2d,
    nn.AvgPool2d: AvgPool2d,
    nn.BatchNorm2d: BatchNorm2d,
}


def _like(layer: nn.Module) -> nn.Module:
    kind = _EXCHANGED[type(layer)]
    made = kind.__new__(kind)
    made.__dict__.update(layer.__dict__)
    return made


# -- who computes this call --------------------------------------------------------------------------------------------


def _window(layer: nn.MaxPool2d | nn.AvgPool2d, input: Tensor) -> tuple[int, int, int] | None:
    """(kernel, stride, padding) where a native operator can pool `input`."""
    if not _are_planes(input, LEAST_POOLED):
        return None
    kernel, stride, padding = (_one(value) for value in (layer.kernel_size, layer.stride, layer.padding))
    if kernel is None or stride is None or padding is None:
        return None
    if not 1 <= kernel <= pool.LARGEST or stride < 1 or not 0 <= padding <= kernel // 2:
        return None  # what PyTorch has an error message for, among others
    return (kernel, stride, padding) if min(pool.output_size(input.shape, kernel, stride, padding)) > 0 else None


def _are_planes(input: Tensor, least: int, plane: int = 1) -> bool:
    """Contiguous float32 [n, c, h, w] on the CPU of `least` floats or more, where a plane counts for `plane` at least, computed
    now and by no one else."""
    if torch.compiler.is_compiling() or input.dim() != 4 or input.numel() == 0:
        return False
    if max(input.numel(), plane * input.shape[0] * input.shape[1]) < least:
        return False
    if input.dtype != torch.float32 or input.device.type != "cpu" or not input.is_contiguous():
        return False
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]
    return not tracing and _is_plain(input)


def _is_vector(vector: Tensor | None) -> bool:
    """A layer's parameter or buffer that the native operators can take, or none."""
    return vector is None or (_is_plain(vector) and vector.device.type == "cpu" and vector.dtype == torch.float32)


def _is_plain(tensor: Tensor) -> bool:
    """Not a subclass, and followed by none but autograd."""
    return type(tensor) in (Tensor, nn.Parameter) and not transformed(tensor)


def _is_bare(layer: nn.Module) -> bool:
    """Whether a call runs its class's forward and nothing else."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return not (any(hooks) or "forward" in layer.__dict__ or nn.modules.module._has_any_global_hook())


def _one(size: int | tuple[int, ...]) -> int | None:
    """The size in both directions, where it is one."""
    sizes = {size} if isinstance(size, int) else set(size)
    return sizes.pop() if len(sizes) == 1 else None
