"""What the passes are for: how few operations are left."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo import IMAGE, ZOO

import gossamer as gs
import nets
from gossamer.engine.capture import capture
from gossamer.engine.ir import madds
from gossamer.engine.passes import simplify


def _kinds(model: nn.Module, shape: tuple[int, ...] = IMAGE) -> list[str]:
    return [o.kind for o in simplify(capture(model.eval(), shape)).operations]


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("conv, norm, relu", ["conv"]),
        ("norm, conv", ["conv"]),
        ("norm, padded conv", ["affine", "conv"]),
        ("norm, sparse conv", ["conv"]),
        ("norm, relu, conv", ["affine", "conv"]),
        ("norm, linear", ["linear"]),
        ("average, points", ["conv", "pool"]),
        ("padded conv", ["conv"]),
        ("conv of everything", ["linear"]),
        ("residual", ["conv", "conv"]),
        ("gate", ["reduce", "linear", "binary"]),
        ("channels last", ["norm", "conv", "conv"]),
        ("dropout", ["binary"]),
        ("shuffle", ["copy", "affine"]),
        ("x sigmoid", ["affine", "affine", "binary"]),
        ("transposed apart", ["conv", "copy"]),
    ],
)
def test_what_is_left(name: str, kinds: list[str]) -> None:
    assert _kinds(ZOO[name]) == kinds


def test_sparse_layers_with_norm_sum_and_relu_are_one_operation_each() -> None:
    model = gs.sparsify(gs.models.create("torchvision:resnet18", num_classes=5), 0.1)
    kinds = _kinds(model, (3, 64, 64))
    assert kinds.count("conv") == 20
    assert sorted(set(kinds)) == ["conv", "linear", "pool", "reduce"]


def test_multiply_adds_are_those_of_the_model() -> None:
    model = gs.sparsify(nets.Residual(), 0.5).eval()
    graph = simplify(capture(model, nets.IMAGE))
    cost = gs.count(model, nets.IMAGE)
    classifier = 20 * 5
    assert sum(map(madds, graph.operations)) == cost.madds + classifier
    assert "relu  # " in str(graph)


def test_a_value_that_somebody_else_reads_is_not_swallowed() -> None:
    conv, norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv, norm

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.conv(x)
            return self.norm(y).relu(), y

    assert _kinds(Both()) == ["conv", "affine"]
