"""Gossamer: convolutional networks made small and fast by thinning the connections between their channels.

The front door: every name loads what it needs when it is first used, so that `import gossamer` costs nothing.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gossamer import models, symmetry
    from gossamer.connectivity import Connectivity
    from gossamer.engine import Program, compile
    from gossamer.graph import ChannelGraph, Cost, count, dead_channels
    from gossamer.layers import AvgPool2d, BatchNorm2d, MaxPool2d, SparseConv2d
    from gossamer.storage import load, save
    from gossamer.surgery import DenseGradients, Doubling, Growth, Ramp, densify, rewire
    from gossamer.surgery.repair import repair
    from gossamer.surgery.sparsify import sparsify
    from gossamer.surgery.thin import thin

__version__: str  # of the installed package: pyproject.toml has it

_HOME = {
    "AvgPool2d": "layers",
    "BatchNorm2d": "layers",
    "ChannelGraph": "graph",
    "Connectivity": "connectivity",
    "Cost": "graph",
    "DenseGradients": "surgery",
    "Doubling": "surgery",
    "Growth": "surgery",
    "MaxPool2d": "layers",
    "Program": "engine",
    "Ramp": "surgery",
    "SparseConv2d": "layers",
    "compile": "engine",
    "count": "graph",
    "dead_channels": "graph",
    "densify": "surgery",
    "load": "storage",
    "repair": "surgery",
    "rewire": "surgery",
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
    "DenseGradients",
    "Doubling",
    "Growth",
    "MaxPool2d",
    "Program",
    "Ramp",
    "SparseConv2d",
    "compile",
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
    if name == "__version__":
        return _version("gossamer")
    if name in _MODULES:
        return _import_module(f"gossamer.{name}")
    if name in _HOME:
        return getattr(_import_module(f"gossamer.{_HOME[name]}"), name)
    raise AttributeError(f"module 'gossamer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
