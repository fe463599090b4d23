"""Which calls are layers, with which weight, and how the weight reached the operator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
import nets
from gossamer.graph.channels import ChannelGraph
from gossamer.graph.classes import Classes
from gossamer.graph.tracing import trace
from gossamer.graph.uses import Use, Uses


class Weights(nn.Module):
    """A weight by every way: a layer's, transposed twice, kept as [inputs, outputs], a part, computed, and a fixed table."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, groups=2)
        self.up = nn.ConvTranspose2d(6, 6, 2)
        self.first = nn.Linear(6, 6)
        self.matrix, self.square = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6, 6))
        self.parts = nn.Linear(6, 12)
        self.register_buffer("table", torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.conv(x)).mean((2, 3))
        x = F.linear(self.first(x), self.square.t().t())
        x = x @ self.matrix
        x = F.linear(x, self.parts.weight[:6])
        x = F.linear(x, self.square * 2)
        x = x @ self.table
        return x.t() @ x


def test_every_way_to_a_weight() -> None:
    recorded = trace(Weights(), (4, 8, 8))
    uses = list(Uses.of(recorded).calls.values())

    def told(use: Use) -> tuple[str, str, str | None, bool]:
        return use.kind, use.name, recorded.parameter(use.weight), use.whole

    assert [told(use) for use in uses] == [
        ("conv", "conv", "conv.weight", True),
        ("conv", "up", "up.weight", True),
        ("linear", "first", "first.weight", True),
        ("linear", "", "square", True),
        ("linear", "", "matrix", False),  # [inputs, outputs]
        ("linear", "parts", "parts.weight", False),  # half of it
        ("linear", "", None, False),  # computed
        ("linear", "", "table", False),
    ]
    assert [use.groups for use in uses[:3]] == [2, 1, 1]
    assert [use.transposed for use in uses[:3]] == [False, True, False]
    assert [len(use.learnt) for use in uses] == [1, 1, 1, 1, 1, 1, 1, 0]
    products = [call for call in recorded.calls if call.name == "aten.mm" and Uses.of(recorded).get(call) is None]
    assert len(products) == 1
    cost = gs.count(Weights(), (4, 8, 8))
    assert cost.product_madds == 36
    assert (cost.linear_params, cost.classifier_params, cost.biases, cost.norms) == (36 * 3 + 72, 0, 6 + 6 + 6 + 12, 0)
    assert (cost.linear_madds, cost.classifier_madds) == (5 * 36, 36)


@pytest.mark.parametrize("density", [0.5, 1.0])
def test_sparse_layers_are_uses_however_they_are_computed(density: float) -> None:
    recorded = trace(gs.sparsify(nets.Shuffling(), density), nets.IMAGE)
    uses = {use.name: use for use in Uses.of(recorded).calls.values()}
    assert list(uses) == ["stem", "point", "depthwise", "grouped", "classifier"]
    assert uses["grouped"].groups == 2
    assert all(recorded.parameter(use.weight) == f"{name}.weight" for name, use in uses.items())
    assert all(use.call.given[0].shape[1] == 16 for use in (uses["grouped"],))


def test_matrices_stored_otherwise_are_refused_by_the_channel_graph() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.matrix = nn.Conv2d(3, 6, 1), nn.Parameter(torch.randn(6, 5))

        def forward(self, x: Tensor) -> Tensor:
            return self.stem(x).mean((2, 3)) @ self.matrix

    assert gs.count(Turned(), nets.IMAGE).classifier_params == 30
    with pytest.raises(ValueError, match="cannot follow the channels"):
        ChannelGraph.of(Turned(), nets.IMAGE)


def test_classes_are_known_by_their_layers_at_any_width() -> None:
    wide, thin = (ChannelGraph.of(m, nets.IMAGE) for m in (nets.Residual(), gs.thin(nets.Residual(), 0.5, nets.IMAGE)))
    known = []
    for graph in (wide, thin):
        classes = Classes(graph)
        made_by = classes.made_by(graph.layers)
        calls = {call.name: call for call in graph.layers}
        assert set(made_by[classes.of[graph.image]]) == {0}
        known.append({name: set(made_by[classes.of[call.outputs]].tolist()) for name, call in calls.items()})
        assert known[-1]["stem"] == known[-1]["shared"] != known[-1]["down"] == known[-1]["shortcut"]
        assert sorted(classes.order.tolist()) == list(range(graph.size + 1))
    assert known[0] == known[1]
