"""Gossamer's layers of planes in the places of PyTorch's."""

from __future__ import annotations

from torch import nn

from gossamer.layers.norm import BatchNorm2d
from gossamer.layers.pooling import AvgPool2d, MaxPool2d
from gossamer.layers.rectified import RectifyingSequential, rectifies

__all__ = ["exchange_layers"]

_EXCHANGED: dict[type[nn.Module], type[nn.Module]] = {
    nn.MaxPool2d: MaxPool2d,
    nn.AvgPool2d: AvgPool2d,
    nn.BatchNorm2d: BatchNorm2d,
}


def exchange_layers(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Put the classes of this package in the places of PyTorch's inside `model`; returns it.

    The new layers share parameters, buffers, hooks and children with the old ones. Subclasses stay what they are, but for an
    `nn.Sequential` in which a ReLU follows a batch normalisation, and subclasses that only build one: those become a
    `RectifyingSequential`. The root itself may be one, and what is returned another object, unless `inplace`.
    """
    made: dict[nn.Module, nn.Module] = {}

    def exchanged(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
        return made.setdefault(module, _like(module, kind))

    parents = list(model.modules())
    for parent in parents:
        for name, child in list(parent._modules.items()):
            if child is not None and type(child) in _EXCHANGED:
                parent._modules[name] = exchanged(child, _EXCHANGED[type(child)])
    for parent in parents:
        for name, child in list(parent._modules.items()):
            if child is not None and rectifies(child):
                parent._modules[name] = exchanged(child, RectifyingSequential)
    return exchanged(model, RectifyingSequential) if rectifies(model) and not inplace else model


def _like(layer: nn.Module, kind: type[nn.Module]) -> nn.Module:
    made = kind.__new__(kind)
    made.__dict__.update(layer.__dict__)
    return made
