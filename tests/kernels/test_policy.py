"""Which path a convolution takes is decided once: its backward follows, wherever and whenever it runs."""

from __future__ import annotations

import pytest
import torch

import gossamer as gs
from gossamer.kernels import cpu

LAST = torch.channels_last


def path_of(result: torch.Tensor) -> str:
    """Who computed it from channels-last images: native kernels return planes, the dense path what it was given."""
    return "dense" if result.is_contiguous(memory_format=LAST) else "native"


def run(forward: str, backward: str) -> tuple[str, str]:
    """The paths of a forward under one `use_path` and of its backward under another."""
    layer, x = gs.SparseConv2d(8, 8, 3, padding=1, density=0.25), torch.randn(2, 8, 9, 9).to(memory_format=LAST)
    x.requires_grad_()
    with cpu.use_path(forward):
        out = layer(x)
    with cpu.use_path(backward):
        (grad,) = torch.autograd.grad(out, x, torch.randn(out.shape).to(memory_format=LAST))
    return path_of(out), path_of(grad)


@pytest.mark.parametrize("backward", ["native", "dense", "auto"])
def test_the_backward_takes_the_path_of_its_forward(backward: str) -> None:
    assert run("dense", backward) == ("dense", "dense")
    assert run("native", backward) == ("native", "native")
    assert run("auto", backward) == ("native", "native")


def test_an_operator_may_be_told_its_path() -> None:
    layer, x = gs.SparseConv2d(8, 8, 3, padding=1, density=0.25, bias=False), torch.randn(2, 8, 9, 9)
    arguments = (x.to(memory_format=LAST), layer.weight, layer.indptr, layer.indices, [1, 1], [1, 1], [1, 1], 1)
    for asked, taken in (("dense", "dense"), ("native", "native"), ("auto", "native")):
        out = torch.ops.gossamer.sparse_conv2d(*arguments, asked)
        assert path_of(out) == taken
        torch.testing.assert_close(out, layer(x))
    with pytest.raises(ValueError, match="a path is one of auto, native, dense; 'fast' was given"):
        torch.ops.gossamer.sparse_conv2d(*arguments, "fast")
