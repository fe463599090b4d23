"""Dead channels are found in anybody's pattern, and repaired with few connections."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gossamer as gs
import nets
from gossamer.graph.paths import Dead


def _with_masks(model: nn.Module, density: float, seed: int) -> nn.Module:
    model = gs.sparsify(model, 1.0)
    rng = np.random.default_rng(seed)
    for layer in model.modules():
        if isinstance(layer, gs.SparseConv2d):
            mask = layer.connectivity.mask() & (rng.random((layer.out_channels, layer.in_channels)) < density)
            pattern = gs.Connectivity.from_mask(mask, layer.groups)
            layer.replace_connectivity(pattern, torch.randn(pattern.connections, *layer.kernel_size))
    return model


def test_a_chain_with_holes() -> None:
    model = nn.Sequential(
        gs.SparseConv2d(1, 3, 1, connectivity=gs.Connectivity.from_mask(np.array([[1], [1], [0]], bool))),
        gs.SparseConv2d(3, 2, 1, connectivity=gs.Connectivity.from_mask(np.array([[1, 0, 1], [0, 0, 1]], bool))),
    )
    assert gs.dead_channels(model, (1, 4, 4)) == {
        "0": Dead(no_image=[2], no_prediction=[1], connections=1),
        "1": Dead(no_image=[1], no_prediction=[], connections=2),
    }


@settings(max_examples=15)
@given(
    st.sampled_from([*nets.FOLLOWED, nets.Padded]),
    st.floats(0.001, 1),
    st.sampled_from(["balanced", "uniform"]),
)
def test_sparsify_leaves_nothing_dead(network: type[nn.Module], density: float, pattern: str) -> None:
    model = gs.sparsify(network(), density, pattern=pattern)
    assert gs.dead_channels(model, nets.IMAGE) == {}


@settings(max_examples=15)
@given(st.sampled_from(nets.FOLLOWED), st.floats(0, 0.5), st.integers(0, 9))
def test_repair_revives_anybodys_pattern(network: type[nn.Module], density: float, seed: int) -> None:
    model = _with_masks(network().eval(), density, seed)
    repaired, added = gs.repair(model, nets.IMAGE)
    assert gs.dead_channels(repaired, nets.IMAGE) == {}
    count = [sum(m.weight.shape[0] for m in n.modules() if isinstance(m, gs.SparseConv2d)) for n in (model, repaired)]
    assert count[1] - count[0] == added
    assert (added == 0) == (gs.dead_channels(model, nets.IMAGE) == {})
    image = torch.randn(2, *nets.IMAGE, dtype=torch.float64)
    torch.testing.assert_close(repaired.double()(image), model.double()(image))  # new kernels start at zero


def test_repair_says_what_it_cannot_revive() -> None:
    with pytest.raises(ValueError, match="no connection of a sparse layer can revive the dead channels of 'stem'"):
        gs.repair(nets.Slicing(), nets.IMAGE)  # eight of the sixteen channels are thrown away by the model's own code


def test_the_papers_networks_have_no_dead_channel() -> None:
    for name in gs.models.names():
        model = gs.models.create(name, image_size=96 if name == "inception_v3" else None)
        assert gs.dead_channels(model, model.input_shape) == {}
