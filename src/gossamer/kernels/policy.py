"""Who computes on the CPU: the native kernels, or PyTorch where that is faster.

`choose_path` is the rule for sparse convolutions; `use_path` (or the environment variable GOSSAMER_PATH) overrides it. What
was asked for when a convolution ran travels with it as the operators' argument `path`, so that its backward takes the same.
The LEAST_... are from how many floats of input on native pooling and normalisation pay for their call.
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

# `python benchmarks/planes.py` measures them at any size. PyTorch's batch normalisation spends as much on a plane of 2x2 as on
# one of several times that: planes count for 8 at least.
LEAST_POOLED, LEAST_TRAINED, LEAST_EVALUATED = 1 << 14, 3 << 16, 6 << 16

_PATHS = ("auto", "native", "dense")
_path = os.environ.get("GOSSAMER_PATH", "auto")
ASKED = "asked"
"""What an operator's `path` is where the call leaves it to `use_path`."""

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
    asked: str = ASKED,
) -> tuple[str, str]:
    """("native" | "dense", why) for one float32 call of `operation`: "forward", "input_grad" or "weight_grad".

    `asked` is a path that this call itself asks for; ASKED leaves it to `use_path`. Raises ValueError for other words.
    """
    wanted = _path if asked == ASKED else asked
    if wanted not in _PATHS:
        raise ValueError(f"a path is one of {', '.join(_PATHS)}; {wanted!r} was given")
    if wanted != "auto":
        return wanted, "asked for"
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
    asked: str,
) -> bool:
    """Whether the native kernels compute this call of `operation`; the dense backend does otherwise."""
    if first.device.type != "cpu" or first.dtype != torch.float32 or second.dtype != torch.float32:
        return False
    path, _ = choose_path(operation, input_shape, kernel_size, indices.shape[0], indptr.shape[0] - 1, groups, asked)
    return path == "native"
