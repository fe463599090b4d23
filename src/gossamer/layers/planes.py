"""Contiguous NCHW planes on the CPU: what the native kernels beside the convolutions can compute.

PyTorch's fast pooling and batch normalisation want channels-last, and sparse convolutions work on planes. The classes of
`pooling` and `norm` are PyTorch's of the same names, with the same arguments, parameters, buffers and results. float32
planes on the CPU go to Gossamer's operators where they are large enough to pay for the call; everything else,
`torch.compile` and export included, goes to PyTorch's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from gossamer.kernels import transformed


def are_planes(input: Tensor, least: int, plane: int = 1) -> bool:
    """Contiguous float32 [n, c, h, w] on the CPU of `least` floats or more, where a plane counts for `plane` at least, computed
    now and by no one else."""
    if torch.compiler.is_compiling() or input.dim() != 4 or input.numel() == 0:
        return False
    if max(input.numel(), plane * input.shape[0] * input.shape[1]) < least:
        return False
    if input.dtype != torch.float32 or input.device.type != "cpu" or not input.is_contiguous():
        return False
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]
    return not tracing and is_plain(input)


def is_plain(tensor: Tensor) -> bool:
    """Not a subclass, and followed by none but autograd."""
    return type(tensor) in (Tensor, nn.Parameter) and not transformed(tensor)


def leaf(layer: nn.Module, input: torch.fx.Proxy) -> Any:
    """The call of a layer in a graph that `torch.fx` draws: whole, as those of PyTorch's own layers are."""
    return input.tracer.create_proxy("call_module", input.tracer.path_of_module(layer), (input,), {})  # type: ignore[attr-defined]
