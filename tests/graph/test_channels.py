"""The channel graph: who feeds whom, checked against what perturbing a real network shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import gossamer as gs
import nets
from gossamer.graph.channels import ChannelGraph, components


@given(st.integers(1, 30), st.data())
def test_components_against_a_plain_search(count: int, data: st.DataObject) -> None:
    node = st.integers(0, count - 1)
    pairs = np.array(data.draw(st.lists(st.tuples(node, node), max_size=40))).reshape(-1, 2)
    expected = list(range(count))
    for _ in range(count):
        for a, b in pairs:
            expected[a] = expected[b] = min(expected[a], expected[b])
    assert components(count, pairs).tolist() == expected


@pytest.mark.parametrize("network", [*nets.FOLLOWED, nets.Padded])
def test_paths_from_the_image_are_those_that_change_with_it(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = gs.sparsify(network().eval(), 1.0)
    layers = [m for m in model.modules() if isinstance(m, gs.SparseConv2d)]
    rng = np.random.default_rng(0)
    for layer in layers:  # somebody's pattern: with holes, whole channels deaf and mute
        mask = layer.connectivity.mask() & (rng.random((layer.out_channels, layer.in_channels)) < 0.25)
        pattern = gs.Connectivity.from_mask(mask, layer.groups)
        layer.replace_connectivity(pattern, torch.randn(pattern.connections, *layer.kernel_size))
    graph = ChannelGraph.of(model, nets.IMAGE)
    uses: dict[str, list[np.ndarray]] = {}
    for call in graph.layers:
        uses.setdefault(call.name, []).append(graph.from_image[call.outputs])
    seen = {name: np.logical_or.reduce(alive) for name, alive in uses.items()}
    found = _reached_from_image(model)
    for name, alive in found.items():
        assert seen[name].tolist() == alive.tolist(), name


def _reached_from_image(model: nn.Module) -> dict[str, np.ndarray]:
    """Which output channels of each layer differ from image to image, by trying."""
    outputs: dict[str, list[torch.Tensor]] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: outputs.setdefault(name, []).append(out))
        for name, module in model.named_modules()
        if isinstance(module, (gs.SparseConv2d, nn.Linear))
    ]
    with torch.no_grad():
        model(10 * torch.randn(32, *nets.IMAGE, generator=torch.Generator().manual_seed(1)))
    for hook in hooks:
        hook.remove()
    alive = {}
    for name, calls in outputs.items():
        axis = 1 if isinstance(model.get_submodule(name), gs.SparseConv2d) else -1
        differs = [(out - out[:1]).abs().movedim(axis, 0).flatten(1).amax(1).numpy() > 0 for out in calls]
        alive[name] = np.logical_or.reduce(differs)
    return alive


def test_coupled_channels_share_a_class() -> None:
    graph = ChannelGraph.of(nets.Residual(), nets.IMAGE)
    calls = {call.name: call for call in graph.layers}
    classes = {name: graph.classes[call.outputs].tolist() for name, call in calls.items()}
    assert classes["stem"] == classes["shared"]
    assert classes["down"] == classes["shortcut"]
    assert not set(classes["stem"]) & set(classes["down"])
    assert graph.classes[graph.parameters["norm.weight"]].tolist() == classes["stem"]
    assert sum(call.name == "shared" for call in graph.layers) == 2


def test_concatenation_keeps_the_order() -> None:
    graph = ChannelGraph.of(nets.Concatenating(), nets.IMAGE)
    calls = {call.name: call for call in graph.layers}
    side_by_side = np.concatenate([calls["left"].outputs, calls["right"].outputs])
    assert calls["both"].inputs.tolist() == side_by_side.tolist()
    flattened = graph.classes[calls["hidden"].inputs]
    assert flattened.tolist() == np.repeat(graph.classes[side_by_side], 16).tolist()


@pytest.mark.parametrize("network", nets.FOLLOWED)
def test_full_sparse_layers_are_followed_as_dense_ones(network: type[nn.Module]) -> None:
    dense, full = (ChannelGraph.of(m, nets.IMAGE) for m in (network(), gs.sparsify(network(), 1.0)))
    assert full.classes.tolist() == dense.classes.tolist()
    for one, other in zip(dense.layers, full.layers, strict=True):
        assert (one.weight, one.groups, one.inputs.tolist()) == (other.weight, other.groups, other.inputs.tolist())
        sparse = one.kind == "conv" and not one.depthwise
        assert (other.connectivity.density if other.connectivity else None) == (1 if sparse else None)


def test_shuffle_interleaves() -> None:
    graph = ChannelGraph.of(nets.Shuffling(), nets.IMAGE)
    calls = {call.name: call for call in graph.layers}
    joined = np.concatenate([calls["stem"].outputs[:8], calls["depthwise"].outputs])
    assert calls["grouped"].inputs.tolist() == joined.reshape(2, 8).T.ravel().tolist()
    assert calls["depthwise"].depthwise


@pytest.mark.parametrize(("conv", "axes"), [(nn.Conv1d, 1), (nn.Conv2d, 2), (nn.Conv3d, 3)])
def test_sequences_images_and_videos(conv: type[nn.Module], axes: int) -> None:
    model = nn.Sequential(conv(3, 8, 3), nn.ReLU(), conv(8, 4, 3))
    batch = torch.zeros(2, 3, *[9] * axes)
    assert gs.thin(model, 0.5, batch)[0](batch).shape[1] == 4
    alone = torch.zeros(3, *[9] * axes)
    if axes == 2:
        assert gs.thin(model, 0.5, alone)[0](alone).shape[0] == 4


def test_the_model_is_left_as_it_was() -> None:
    model = nets.Residual().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ChannelGraph.of(model, nets.IMAGE, training=True)
    assert model.training
    assert model.norm.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not model._forward_hooks


def test_what_cannot_be_followed_is_named() -> None:
    with pytest.raises(ValueError, match=r"cannot follow the channels through the model: it has .*bmm"):
        ChannelGraph.of(nets.Attending(), nets.IMAGE)
    with pytest.raises(ValueError, match=r"does not run on inputs of shape \[1, 4, 16, 16\] in 'stem'"):
        ChannelGraph.of(nets.Residual(), (4, 16, 16))
    with pytest.raises(TypeError, match="example inputs must be a tensor"):
        ChannelGraph.of(nets.Residual(), "an image")  # type: ignore[arg-type]
    up = nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.Conv2d(4, 2, 1))
    with pytest.raises(ValueError, match="through '0': it has a transposed convolution"):
        ChannelGraph.of(up, nets.IMAGE)
