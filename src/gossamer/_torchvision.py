"""The one place through which torchvision and timm are imported.

PyPI's torchvision is linked to CUDA. Beside a CPU-only PyTorch its operator library does not load, and importing it then
fails on the schemas of `nms`. Defining those first is all its data sets, transforms and models need.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import torch


def _define_missing_operators() -> torch.library.Library | None:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "this needs torchvision, which is not installed: pip install 'gossamer[train]' -c constraints.txt",
            name="torchvision",
        )
    folder = Path(spec.submodule_search_locations[0])
    try:
        for operators in folder.glob("_C*.so"):
            torch.ops.load_library(operators)
        return None
    except OSError:
        schemas = torch.library.Library("torchvision", "FRAGMENT")
        schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return schemas


_schemas = _define_missing_operators()

import torchvision  # noqa: E402

__all__ = ["import_timm", "torchvision"]


def import_timm() -> ModuleType:
    """timm, which imports torchvision and so must come after it."""
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "this needs timm, which is not installed: pip install timm -c constraints.txt"
        ) from error
