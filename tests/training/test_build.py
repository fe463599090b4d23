"""From a configuration to a network: seeds, densities, and the paper's rule for a single input channel."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gossamer as gs
from gossamer.data import Description
from gossamer.training.build import build_model, density
from gossamer.training.config import TrainConfig

MNIST = Description("mnist", tuple("0123456789"), (1, 28, 28), (0.0,), (1.0,))


def sparse_layers(model: torch.nn.Module) -> list[gs.SparseConv2d]:
    return [module for module in model.modules() if isinstance(module, gs.SparseConv2d)]


def test_the_seed_decides_weights_and_patterns() -> None:
    config = TrainConfig(density=0.1)
    first, again, other = (build_model(replace(config, seed=seed), MNIST).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(first[name].shape != other[name].shape or not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("block", [4, "auto"])
def test_outputs_share_inputs_in_blocks(block: Literal[4, "auto"]) -> None:
    config = TrainConfig.from_dict(json.loads(json.dumps(TrainConfig(density=0.2, block=block).to_dict())))
    layers = sparse_layers(build_model(config, MNIST))
    assert len(layers) == 3
    assert all(layer.connectivity.block % 4 == 0 for layer in layers)


def test_thinned_then_sparsified() -> None:
    model = build_model(TrainConfig(width=0.5, density=0.25), MNIST)
    assert [layer.out_channels for layer in sparse_layers(model)] == [16, 32, 256]
    assert density(model) == pytest.approx(0.25, abs=0.01)
    assert density(build_model(TrainConfig(width=0.5), MNIST)) == 1


@settings(max_examples=8, deadline=None)
@given(
    alpha=st.floats(0.02, 0.9),
    seed=st.integers(0, 100),
    pattern=st.sampled_from(["balanced", "uniform"]),
)
def test_dropped_filters_have_no_connections_and_the_next_layer_as_many_as_before(
    alpha: float, seed: int, pattern: str
) -> None:
    keep = TrainConfig(density=alpha, pattern=pattern, seed=seed)  # type: ignore[arg-type]
    kept = sparse_layers(build_model(keep, MNIST))
    model = build_model(replace(keep, first_layer="sqrt"), MNIST)
    first, second, third = sparse_layers(model)
    filters = first.connectivity.fan_in > 0
    assert filters.sum() == math.ceil(math.sqrt(alpha) * 32 - 1e-9)
    assert np.array_equal(second.connectivity.fan_out > 0, filters)
    before = kept[1].connectivity.connections
    assert abs(second.connectivity.connections - before) <= max(0.3 * before, 64)
    if pattern == "balanced":
        assert second.connectivity.connections == min(before, int(filters.sum()) * 64)
    assert third.connectivity == kept[2].connectivity
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    grown = second.connectivity.grow(min(1.0, second.connectivity.density * 1.5))
    assert grown.connections >= second.connectivity.connections


def test_keeping_all_filters_is_the_default_and_colour_has_nothing_to_drop() -> None:
    assert sparse_layers(build_model(TrainConfig(density=0.1), MNIST))[0].connectivity.connections == 32
    colour = Description("c", tuple("0123456789"), (3, 32, 32), (0.0,) * 3, (1.0,) * 3)
    config = TrainConfig(model="cifar", density=0.1)
    keep, sqrt = (build_model(replace(config, first_layer=rule), colour) for rule in ("keep", "sqrt"))
    assert all(torch.equal(a, b) for a, b in zip(keep.parameters(), sqrt.parameters(), strict=True))


def test_the_first_convolution_can_stay_whole() -> None:
    colour = Description("c", tuple("0123456789"), (3, 32, 32), (0.0,) * 3, (1.0,) * 3)
    model = build_model(TrainConfig(model="vgg11", density=0.05, block=4, first_layer="whole"), colour)
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | gs.SparseConv2d)]
    assert [type(m) for m in convolutions] == [torch.nn.Conv2d, *[gs.SparseConv2d] * 7]
    assert all(layer.connectivity.block == 4 for layer in sparse_layers(model))
