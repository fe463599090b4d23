"""Gossamer: convolutional networks made small and fast by thinning the connections between their channels.

The front door: every name loads what it needs when it is first used, so that `import gossamer` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gossamer import models, symmetry
    from gossamer.accounting import Cost, count
    from gossamer.channels import ChannelGraph
    from gossamer.connectivity import Connectivity
    from gossamer.growth import densify, rewire
    from gossamer.layers import AvgPool2d, BatchNorm2d, MaxPool2d, SparseConv2d
    from gossamer.paths import dead_channels, repair
    from gossamer.storage import load, save
    from gossamer.surgery import sparsify, thin
    from gossamer.training.growth import Growth

__version__ = "0.1.0"

_HOME = {
    "AvgPool2d": "layers",
    "BatchNorm2d": "layers",
    "ChannelGraph": "channels",
    "Connectivity": "connectivity",
    "Cost": "accounting",
    "Growth": "training.growth",
    "MaxPool2d": "layers",
    "SparseConv2d": "layers",
    "count": "accounting",
    "dead_channels": "paths",
    "densify": "growth",
    "load": "storage",
    "repair": "paths",
    "rewire": "growth",
    "save": "storage",
    "sparsify": "surgery",
    "thin": "surgery",
}
_MODULES = ("models", "symmetry")

__all__ = [
    "AvgPool2d",
    "BatchNorm2d",
    "ChannelGraph",
    "Connectivity",
    "Cost",
    "Growth",
    "MaxPool2d",
    "SparseConv2d",
    "count",
    "dead_channels",
    "densify",
    "load",
    "models",
    "repair",
    "rewire",
    "save",
    "sparsify",
    "symmetry",
    "thin",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"gossamer.{name}")
    if name in _HOME:
        return getattr(import_module(f"gossamer.{_HOME[name]}"), name)
    raise AttributeError(f"module 'gossamer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
