"""A batch normalisation and the ReLU after it, computed at once inside an `nn.Sequential`."""

from __future__ import annotations

from itertools import pairwise, zip_longest

import torch
from torch import Tensor, nn

from gossamer.kernels import policy
from gossamer.layers.norm import BatchNorm2d
from gossamer.layers.planes import are_planes
from gossamer.layers.sparse_conv import SparseConv2d

_CONSTRUCTION = {"__init__", "__module__", "__doc__", "__annotations__", "__firstlineno__", "__static_attributes__"}
"""What a subclass may define that only builds its layers."""


class RectifyingSequential(nn.Sequential):
    """An `nn.Sequential` in which a native batch normalisation computes the `nn.ReLU` right after it too.

    In evaluation it does so where nobody else can hold its input: in what a sparse convolution has just returned.
    Both modules stay in their places and know nothing of it. Each call looks anew whether they are what they were and
    would be called for nothing but their results, so that later hooks and replacements work as ever.
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or isinstance(input, torch.fx.Proxy):
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
            if joint and are_planes(input, policy.LEAST_TRAINED, 8) and _is_bare(layer) and _is_bare(after):
                own = type(before) is SparseConv2d and _is_bare(before)
                output = input if own and joint._in_place(input) else joint._native(input, relu=True)
            rectified = output is not None
            input = layer(input) if output is None else output
            before = layer
        return input


def rectifies(layers: nn.Module) -> bool:
    """Whether `layers` is a plain `nn.Sequential`, or a subclass that only builds one, in which a ReLU follows one of our batch
    normalisations."""
    kind = type(layers)
    if not issubclass(kind, nn.Sequential):
        return False
    added = {name for base in kind.__mro__[: kind.__mro__.index(nn.Sequential)] for name in vars(base)}
    return added <= _CONSTRUCTION and any(
        type(layer) is BatchNorm2d and type(after) is nn.ReLU for layer, after in pairwise(layers._modules.values())
    )


def _is_bare(layer: nn.Module) -> bool:
    """Whether a call runs its class's forward and nothing else."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return not (any(hooks) or "forward" in layer.__dict__ or nn.modules.module._has_any_global_hook())
