"""Blocks of outputs that share their inputs, through everything that is done to a network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.connectivity import Connectivity
from gossamer.layers import SparseConv2d
from gossamer.surgery.first_layer import drop_filters
from gossamer.surgery.gradients import absent

SHAPE = (1, 6, 6)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(32, 24, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


def blocks(model: nn.Module) -> list[int]:
    return [layer.connectivity.block for layer in model.modules() if isinstance(layer, SparseConv2d)]


def sharing(model: nn.Module, block: int) -> bool:
    return all(found % block == 0 for found in blocks(model))


def test_sparsify_in_blocks() -> None:
    model = gs.sparsify(network(), 0.4, block=4)
    assert blocks(model)[1:] == [4, 4]
    dense = nn.Sequential(*(layer.to_dense() if isinstance(layer, SparseConv2d) else layer for layer in model))
    images = torch.randn(2, *SHAPE)
    assert torch.allclose(model(images), dense(images), atol=1e-5)
    assert "blocks that share inputs (layers): 16 (1), 4 (2)" in str(model.sparsified)
    assert gs.sparsify(network(), 0.4)[4].connectivity.block == 1


def test_auto_takes_for_each_layer_what_costs_nothing() -> None:
    auto, plain = (gs.sparsify(network(), 0.1, block=block) for block in ("auto", 1))
    assert blocks(auto)[1:] == [2, 2]  # 24 outputs at 0.1: each input is heard 2.4 times
    for layer in auto.sparsified.layers:
        ours, theirs = (model.get_submodule(layer).connectivity for model in (auto, plain))
        assert abs(ours.connections - theirs.connections) <= ours.block / 2
    with pytest.raises(ValueError, match=r"cannot make '2' sparse: blocks of 4 need a density .*0\.25.*block=\"auto\""):
        gs.sparsify(network(), 0.1, block=4)
    with pytest.raises(ValueError, match=r"cannot make '2' sparse: blocks of 3 do not divide 16 outputs"):
        gs.sparsify(network(), 0.5, block=3, exclude=["0"])


def test_erdos_renyi_knows_what_blocks_need() -> None:
    model = gs.sparsify(network(), 0.3, block=4, allocation="erdos-renyi")
    assert sharing(model, 4)
    with pytest.raises(ValueError, match=r"erdos-renyi cannot reach density 0\.1 without dead channels"):
        gs.sparsify(network(), 0.1, block=4, allocation="erdos-renyi")


def test_thin_draws_the_blocks_anew() -> None:
    model = gs.thin(gs.sparsify(network(), 0.5, block=4), 0.5, SHAPE)
    assert [layer.out_channels for layer in model.modules() if isinstance(layer, SparseConv2d)] == [8, 16, 12]
    assert sharing(model, 4)


@pytest.mark.parametrize("gradient", [False, True])
def test_growth_and_rewiring_keep_the_blocks(gradient: bool) -> None:
    model = gs.sparsify(network(), 0.3, block=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for change in (
        lambda g: gs.rewire(model, 0.3, optimizer=optimizer, gradients=g),
        lambda g: gs.densify(model, density=0.5, optimizer=optimizer, gradients=g),
        lambda g: gs.densify(model, factor=1.5, optimizer=optimizer, gradients=g),
    ):
        before = [layer.connectivity for layer in model.modules() if isinstance(layer, SparseConv2d)]
        with gs.DenseGradients(model) as gradients:
            model(torch.randn(4, *SHAPE)).square().sum().backward()
        optimizer.step()
        change(gradients if gradient else None)
        assert sharing(model, 4)
        after = [layer.connectivity for layer in model.modules() if isinstance(layer, SparseConv2d)]
        assert after[1:] != before[1:]
        assert gs.dead_channels(model, SHAPE) == {}


def test_growth_by_gradient_takes_the_blocks_of_largest_sums() -> None:
    layer = gs.SparseConv2d(8, 16, 3, padding=1, density=0.25, block=4, seed=3)
    with gs.DenseGradients(layer) as gradients:
        layer(torch.randn(2, 8, 5, 5)).pow(3).sum().backward()
    old, scores = layer.connectivity, np.zeros((16, 8))
    gaps = absent(old)
    scores[gaps.rows, gaps.indices] = gradients.scores(layer)
    gs.densify(layer, density=0.5, gradients=gradients)
    sums = scores.reshape(4, 4, 8).sum(1)
    new = layer.connectivity.merged(4).mask() & ~old.merged(4).mask()
    assert new.sum() == 8
    assert sums[new].min() > np.max(sums[~new & ~old.merged(4).mask()])


def test_rewiring_drops_the_blocks_of_smallest_strength() -> None:
    layer = gs.SparseConv2d(32, 32, 1, density=0.5, block=4, seed=1)
    old = layer.connectivity
    norms = np.zeros((32, 32))
    norms[old.rows, old.indices] = layer.weight.detach().flatten(1).norm(dim=1).numpy()
    gs.rewire(layer, 0.1)
    there = old.merged(4).mask()
    dropped = there & ~layer.connectivity.merged(4).mask()
    strength = norms.reshape(8, 4, 32).sum(1)
    assert dropped.sum() == round(0.1 * there.sum())
    assert (strength[dropped].max() <= np.sort(strength[there])[2 * dropped.sum()]).all()


def test_repair_adds_whole_blocks() -> None:
    model = gs.sparsify(network(), 0.4, block=4)
    layer = model[4]
    mask = layer.connectivity.mask()
    mask[8:12] = False  # a deaf block
    mask[:, 3] = False  # an input that nobody hears
    c = Connectivity.from_mask(mask)
    layer.replace_connectivity(c, layer.weight.new_ones(c.connections, 1, 1))
    assert gs.dead_channels(model, SHAPE) != {}
    repaired, added = gs.repair(model, SHAPE)
    assert gs.dead_channels(repaired, SHAPE) == {}
    assert sharing(repaired, 4)
    assert added in (4, 8)


def test_the_first_layers_rule_keeps_the_blocks_of_the_next() -> None:
    model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3))
    model = drop_filters(gs.sparsify(model, 0.25, block=4), 0.25, SHAPE)
    assert model[0].connectivity.connections == 16
    assert model[2].connectivity.block == 4
    assert model[2].connectivity.connections == 256
