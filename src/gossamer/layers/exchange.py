"""Gossamer's layers of planes in the places of PyTorch's."""

from __future__ import annotations

from torch import nn

from gossamer.layers.norm import BatchNorm2d
from gossamer.layers.pooling import AvgPool2d, MaxPool2d
from gossamer.layers.rectified import rectifies, rectifying

__all__ = ["exchange_layers"]


def exchange_layers(model: nn.Module) -> None:
    """Put the classes of this package in the places of PyTorch's inside `model`; subclasses stay what they are.

    The new layers share parameters, buffers and hooks with the old ones. An `nn.Sequential`, and subclasses with its
    forward, in which a ReLU follows a batch normalisation get a class that computes them at once.
    """
    made: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and type(child) in _EXCHANGED:
                parent._modules[name] = made.setdefault(child, _like(child))
        if type(parent).forward is nn.Sequential.forward and rectifies(parent):
            parent.__class__ = rectifying(type(parent))


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
