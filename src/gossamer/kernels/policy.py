"""Who computes a sparse convolution on the CPU: the native kernels, or PyTorch's dense convolution where that is faster.

`choose_path` is the rule; `use_path` (or the environment variable GOSSAMER_PATH) overrides it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

LIMITS = {
    "1x1": {"forward": 0.4, "input_grad": 0.4, "weight_grad": 0.4},
    "larger": {"forward": 0.5, "input_grad": 0.4, "weight_grad": 0.4},
}
"""Density from which PyTorch's dense convolution is taken, by kernel size and pass (measured: docs/kernels-measured.md)."""

_PATHS = ("auto", "native", "dense")
_path = os.environ.get("GOSSAMER_PATH", "auto")

if _path not in _PATHS:
    raise ImportError(f"GOSSAMER_PATH={_path} is not one of {', '.join(_PATHS)}")


@contextlib.contextmanager
def use_path(path: str) -> Iterator[None]:
    """Inside, every sparse convolution on the CPU takes `path`: "native", "dense", or "auto" (the rule).

    A layer with every connection is no sparse convolution: it runs as `nn.Conv2d` does, whatever the path.
    """
    global _path
    if path not in _PATHS:
        raise ValueError(f"a path is one of {', '.join(_PATHS)}; {path!r} was given")
    before, _path = _path, path
    try:
        yield
    finally:
        _path = before


def asked_path() -> str:
    """What `use_path` or GOSSAMER_PATH asks for: "native", "dense" or "auto"."""
    return _path


def choose_path(
    operation: str,
    input_shape: Sequence[int],
    kernel_size: Sequence[int],
    connections: int,
    out_channels: int,
    groups: int = 1,
) -> tuple[str, str]:
    """("native" | "dense", why) for one float32 call of `operation`: "forward", "input_grad" or "weight_grad"."""
    if _path != "auto":
        return _path, "asked for"
    if input_shape[1] == 1:
        return "native", "one input channel"
    density = float(connections * groups / (input_shape[1] * out_channels))
    limit = LIMITS["1x1" if max(kernel_size) == 1 else "larger"][operation]
    if density < limit:
        return "native", f"density {density:.3f} < {limit}"
    return "dense", f"density {density:.3f} >= {limit}"


def takes(
    operation: str,
    first: Tensor,
    second: Tensor,
    input_shape: Sequence[int],
    kernel_size: Sequence[int],
    indptr: Tensor,
    indices: Tensor,
    groups: int,
) -> bool:
    """Whether the native kernels compute this call of `operation`; the dense backend does otherwise."""
    if first.device.type != "cpu" or first.dtype != torch.float32 or second.dtype != torch.float32:
        return False
    path, _ = choose_path(operation, input_shape, kernel_size, indices.shape[0], indptr.shape[0] - 1, groups)
    return path == "native"
