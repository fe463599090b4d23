"""Lemma 1 as a tool: permuted networks compute the same, signatures are connection trees, counts agree with brute force."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gossamer as gs
import nets
from gossamer.symmetry.automorphisms import Graph, _Search, automorphisms, log_factorial

Masks = list[np.ndarray]
PATCH = (4, 4)


def sparse(mask: np.ndarray, groups: int = 1) -> gs.SparseConv2d:
    """A layer with these connections and no two weights alike."""
    out_channels, in_channels = mask.shape
    return gs.SparseConv2d(
        in_channels, out_channels, 1, connectivity=gs.Connectivity.from_mask(mask.astype(bool), groups)
    )


def chain(masks: Masks) -> nn.Module:
    model = nn.Sequential(*[layer for mask in masks for layer in (sparse(mask), nn.ReLU())][:-1])
    model.input_shape = (masks[0].shape[1], *PATCH)
    return model


@st.composite
def random_masks(draw: st.DrawFn, most: int = 4, layers: int = 3) -> Masks:
    """Connections of a chain: few enough channels for brute force, so few that symmetries are common."""
    widths = [draw(st.integers(1, 2)), *draw(st.lists(st.integers(1, most), min_size=layers, max_size=layers))]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    density = draw(st.sampled_from([0.2, 0.5, 0.8]))
    return [rng.random((o, i)) < density for i, o in pairwise(widths)]


def brute_force(masks: Masks) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Every choice of permutations of the hidden layers that leaves all masks as they are; the ends are fixed."""

    def extend(done: tuple[tuple[int, ...], ...], before: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], ...]]:
        mask = masks[len(done)]
        last = len(done) == len(masks) - 1
        orders = [tuple(range(len(mask)))] if last else permutations(range(len(mask)))
        for order in orders:
            if (mask[list(order)][:, list(before)] == mask).all():
                yield from [done] if last else extend((*done, order), order)

    yield from extend((), tuple(range(masks[0].shape[1])))


# -- permute: Lemma 1 --------------------------------------------------------------------------------------------------


def any_order(model: nn.Module, shape: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {layer.name: rng.permutation(layer.channels) for layer in gs.symmetry.count(model, shape).layers}


def assert_same(one: nn.Module, other: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(3, *shape)
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(x), one.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("density", [1.0, 0.4])
@pytest.mark.parametrize("network", [nets.Residual, nets.Concatenating, nets.Gated])
def test_permuted_networks_compute_the_same(network: type[nn.Module], density: float) -> None:
    torch.manual_seed(0)
    model = network()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2)
    if density < 1:
        model = gs.sparsify(model, density)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    orders = any_order(model, nets.IMAGE)
    permuted = gs.symmetry.permute(model, orders, nets.IMAGE)
    assert_same(model, permuted, nets.IMAGE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    moved = [name for name, value in permuted.state_dict().items() if not torch.equal(value, before[name])]
    assert {f"{name}.weight" for name in orders} <= set(moved)
    back = gs.symmetry.permute(permuted, {name: np.argsort(order) for name, order in orders.items()}, nets.IMAGE)
    assert all(torch.equal(value, before[name]) for name, value in back.state_dict().items())


@pytest.mark.parametrize("name", ["mnist", "cifar"])
def test_the_papers_networks(name: str) -> None:
    torch.manual_seed(0)
    model = gs.models.create(name, image_size=8)
    for network in (model, gs.sparsify(model, 0.1)):
        shape = network.input_shape
        permuted = gs.symmetry.permute(network, any_order(network, shape))
        assert_same(network, permuted, shape)
        classifier = [m.classifier.weight for m in (network, permuted)]
        assert not torch.equal(*classifier)


def test_channel_k_of_the_copy_is_the_one_named() -> None:
    model = gs.models.create("mnist", image_size=8)
    order = np.random.default_rng(0).permutation(32)
    permuted = gs.symmetry.permute(model, {"conv1.0": order})
    assert torch.equal(permuted.conv1[0].weight, model.conv1[0].weight[order])
    assert torch.equal(permuted.conv2[0].weight, model.conv2[0].weight[:, order])


@pytest.mark.parametrize("density", [1.0, 0.5])
def test_groups_splits_and_shuffles_allow_what_keeps_them(density: float) -> None:
    torch.manual_seed(0)
    model = nets.Shuffling()
    model = gs.sparsify(model, density) if density < 1 else model
    within = np.concatenate([np.random.default_rng(0).permutation(8), 8 + np.arange(8)])
    halves = np.concatenate([12 + np.arange(12), np.arange(12)])
    shape = nets.IMAGE
    with pytest.raises(ValueError, match="'point'"):  # the second half is convolved, the first is not
        gs.symmetry.permute(model, {"stem": np.roll(np.arange(16), 1)}, shape)
    with pytest.raises(ValueError, match="2 groups of 'grouped'"):
        gs.symmetry.permute(model, {"stem": within}, shape)
    with pytest.raises(ValueError, match="2 groups of 'grouped'"):
        gs.symmetry.permute(model, {"grouped": halves}, shape)
    kept = np.array([1, 0, 3, 2, 5, 4, 7, 6])  # shuffled, channels 0-3 and 4-7 are different groups
    assert_same(model, gs.symmetry.permute(model, {"stem": [*kept, *8 + kept], "point": kept}, shape), shape)
    blocks = np.concatenate([np.arange(6, 12), np.arange(6), np.arange(12, 24)])  # blocks of the group normalisation
    assert_same(model, gs.symmetry.permute(model, {"grouped": blocks}, shape), shape)
    with pytest.raises(ValueError, match="group normalisation"):
        gs.symmetry.permute(model, {"grouped": np.concatenate([np.roll(np.arange(12), 1), np.arange(12, 24)])}, shape)
    assert not gs.symmetry.count(model, shape).layers[-1].exact


class TwoKinds(nn.Module):
    """Half the channels are rectified, half squashed: nothing the connections show."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.last = nn.Conv2d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(torch.cat([x[:, :4].relu(), x[:, 4:].tanh()], 1))


def test_no_wrong_network_is_returned() -> None:
    model = TwoKinds()
    with pytest.raises(ValueError, match="computes something else"):
        gs.symmetry.permute(model, {"stem": [4, 1, 2, 3, 0, 5, 6, 7]}, (3, 8, 8))
    assert_same(model, gs.symmetry.permute(model, {"stem": [3, 1, 2, 0, 7, 5, 6, 4]}, (3, 8, 8)), (3, 8, 8))


def test_refused_permutations() -> None:
    model = nets.Residual()

    def refusal(orders: dict[str, object]) -> str:
        with pytest.raises(ValueError) as error:  # noqa: PT011
            gs.symmetry.permute(model, orders, nets.IMAGE)
        return str(error.value)

    assert "no layer 'stam'" in refusal({"stam": range(12)})
    assert "0..11 once" in refusal({"stem": [0] * 12})
    assert "0..11 once" in refusal({"stem": range(11)})
    assert "must stay in place" in refusal({"classifier": [1, 0, 2, 3, 4]})
    swap, roll = [1, 0, *range(2, 12)], np.roll(np.arange(12), 1)
    assert "coupled" in refusal({"stem": swap, "shared": roll})
    assert_same(model, gs.symmetry.permute(model, {"stem": roll, "shared": roll}, nets.IMAGE), nets.IMAGE)
    with pytest.raises(ValueError, match="no input_shape"):
        gs.symmetry.permute(model, {})


# -- signatures --------------------------------------------------------------------------------------------------------


def naive_refinement(masks: Masks, downwards: bool) -> list[list[int]]:
    """Colours of every layer's channels, the image's first, by the textbook: rename (colour, neighbours' colours)."""
    widths = [masks[0].shape[1], *[len(mask) for mask in masks]]
    colours = [[n if n == 0 else -n for _ in range(width)] for n, width in enumerate(widths)]
    colours[0] = list(range(1, widths[0] + 1))
    if downwards:
        colours[-1] = [-1000 - k for k in range(widths[-1])]
    names: dict[object, int] = {}
    for _ in range(sum(widths) + 1):
        keys: list[list[object]] = []
        for n, own in enumerate(colours):
            below = masks[n - 1] if n else None
            above = masks[n] if downwards and n < len(masks) else None
            keys.append(
                [
                    (
                        colour,
                        sorted(np.array(colours[n - 1])[below[k]].tolist()) if below is not None else [],
                        sorted(np.array(colours[n + 1])[above[:, k]].tolist()) if above is not None else [],
                    )
                    for k, colour in enumerate(own)
                ]
            )
        colours = [[names.setdefault(repr(key), len(names) + 1) for key in layer] for layer in keys]
    return colours


def partition(colours: object) -> list[list[bool]]:
    values = np.asarray(colours)
    return (values[:, None] == values[None, :]).tolist()


@given(random_masks(most=6), st.booleans())
def test_signatures_against_the_textbook(masks: Masks, downwards: bool) -> None:
    found = gs.symmetry.signatures(chain(masks), downwards=downwards)
    for ours, expected in zip(found.values(), naive_refinement(masks, downwards)[1:], strict=True):
        assert partition(ours) == partition(expected)


@settings(max_examples=12)
@given(random_masks(), st.integers(0, 1000))
def test_signatures_follow_permutations(masks: Masks, seed: int) -> None:
    model = chain(masks)
    orders = any_order(model, model.input_shape, seed)
    permuted = gs.symmetry.permute(model, orders)
    for downwards in (False, True):
        before, after = (gs.symmetry.signatures(m, downwards=downwards) for m in (model, permuted))
        for name, signature in before.items():
            assert np.array_equal(after[name], signature[orders.get(name, np.arange(len(signature)))])


@pytest.mark.parametrize("network", [nets.Residual, nets.Concatenating, nets.Gated])
def test_signatures_follow_permutations_of_coupled_channels(network: type[nn.Module]) -> None:
    model = gs.sparsify(network(), 0.3)
    orders = any_order(model, nets.IMAGE)
    permuted = gs.symmetry.permute(model, orders, nets.IMAGE)
    before, after = (gs.symmetry.signatures(m, nets.IMAGE, downwards=True) for m in (model, permuted))
    for name, order in orders.items():
        assert np.array_equal(after[name], before[name][order])


def test_a_tree_by_hand() -> None:
    first = np.array([[1, 0], [1, 0], [0, 1], [1, 1]])
    second = np.array([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1]])
    model = chain([first, second, np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]])])
    up, both = gs.symmetry.signatures(model), gs.symmetry.signatures(model, downwards=True)
    assert [len(np.unique(s)) for s in up.values()] == [3, 2, 2]
    assert up["0"][0] == up["0"][1]
    assert up["2"][0] == up["2"][1]
    assert [len(np.unique(s)) for s in both.values()] == [4, 3, 3]  # each output of the network is a class of its own


# -- count -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", gs.models.names())
def test_dense_counts_are_lemma_1s_product(name: str) -> None:
    with torch.device("meta"):
        model = gs.models.create(name)
    hidden = {m.weight.shape[0] for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    found = gs.symmetry.count(model)
    assert found.exact
    assert {layer.channels for layer in found.layers} <= hidden
    sizes = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    sizes += [m.out_features for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "classifier"]
    assert found.log10 == pytest.approx(sum(math.log10(math.factorial(n)) for n in sizes))
    assert found.log10 == pytest.approx(found.dense)


@given(random_masks())
def test_counts_against_brute_force(masks: Masks) -> None:
    found = gs.symmetry.count(chain(masks))
    group = list(brute_force(masks))
    assert found.exact
    assert found.log10 == pytest.approx(math.log10(len(group)))
    for number, layer in enumerate(found.layers):
        here = [g for g in group if all(p == tuple(sorted(p)) for p in g[:number])]
        onwards = [g for g in here if g[number] == tuple(sorted(g[number]))]
        assert layer.log10 == pytest.approx(math.log10(len(here) / len(onwards)))


@settings(max_examples=25)
@given(st.integers(1, 2), st.sampled_from([(2, 2), (3, 2), (2, 3)]), st.integers(0, 2**32))
def test_counts_of_shared_inputs_against_brute_force(inputs: int, blocks: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = []
    for number in (*blocks, 2):  # of blocks of two outputs in each layer
        masks.append(np.repeat(rng.random((number, inputs)) < 0.6, 2, axis=0))
        inputs = 2 * number
    found = gs.symmetry.count(chain(masks))
    assert found.exact
    assert found.log10 == pytest.approx(math.log10(len(list(brute_force(masks)))))


def test_outputs_of_a_block_are_alike_only_where_all_of_them_are_heard_alike() -> None:
    model = gs.sparsify(gs.models.create("mnist", image_size=8), 0.2, block=4)
    found = {layer.name: layer for layer in gs.symmetry.count(model).layers}
    upwards = gs.symmetry.signatures(model)["conv3.0"].reshape(-1, 4)
    assert (upwards == upwards[:, :1]).all()
    assert found["conv2.0"].log10 < 1  # the next layer tells them apart
    assert found["conv3.0"].log10 == pytest.approx(512 / 4 * math.log10(math.factorial(4)))  # the classifier does not


@settings(max_examples=20)
@given(random_masks())
def test_symmetries_stay_within_signatures_and_change_no_connection(masks: Masks) -> None:
    model = chain(masks)
    classes = gs.symmetry.signatures(model, downwards=True)
    for orders in list(brute_force(masks))[-3:]:
        named = {str(2 * n): order for n, order in enumerate(orders)}
        for name, order in named.items():
            assert np.array_equal(classes[name], classes[name][list(order)])
        permuted = gs.symmetry.permute(model, named)
        for name, layer in model.named_modules():
            if isinstance(layer, gs.SparseConv2d):
                assert permuted.get_submodule(name).connectivity == layer.connectivity


class Sum(nn.Module):
    """y = a(x) + b(a(x)): the channels of a and b are coupled."""

    def __init__(self, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
        super().__init__()
        self.a, self.b, self.c = sparse(a), sparse(b), sparse(c)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.c(x + self.b(x))


@given(st.integers(1, 5), st.sampled_from([0.2, 0.5, 0.8]), st.integers(0, 2**32))
def test_coupled_counts_against_brute_force(width: int, density: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = (rng.random(shape) < density for shape in ((width, 2), (width, width), (2, width)))
    found = gs.symmetry.count(Sum(a, b, c), (2, *PATCH))
    ways = sum(
        (a[list(p)] == a).all() and (b[list(p)][:, list(p)] == b).all() and (c[:, list(p)] == c).all()
        for p in permutations(range(width))
    )
    assert found.exact
    assert found.layers[0].layers == ("a", "b")
    assert found.log10 == pytest.approx(math.log10(ways))


def test_channels_that_move_only_together() -> None:
    copies, inner = 7, np.array([[1, 1, 0], [0, 1, 1], [0, 0, 1]])
    model = chain([np.ones((21, 1)), np.kron(np.eye(copies), inner), np.ones((2, 21))])
    found = gs.symmetry.count(model)
    assert [layer.log10 for layer in found.layers] == pytest.approx([log_factorial(copies), 0])
    assert [layer.distinct for layer in found.layers] == [3, 3]


def test_what_refinement_alone_cannot_tell() -> None:
    ring = np.eye(6) + np.roll(np.eye(6), 1, axis=1)
    pairs = np.kron(np.eye(2), np.eye(3) + np.roll(np.eye(3), 1, axis=1))
    both = np.block([[ring, np.zeros((6, 6))], [np.zeros((6, 6)), pairs]])
    found = gs.symmetry.count(chain([np.ones((12, 1)), both, np.ones((1, 12))]))
    assert [layer.distinct for layer in found.layers] == [1, 1]
    assert found.exact
    assert found.log10 == pytest.approx(
        math.log10(12 * 6 * 6 * 2)
    )  # a ring of six, and two of three that may change places


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_groups_may_change_places(groups: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1, groups=groups), nn.Conv2d(16, 5, 1))
    width, height = 8 // groups, 16 // groups
    expected = log_factorial(groups) + groups * log_factorial(width), groups * log_factorial(height)
    if groups == 1:
        expected = log_factorial(8), log_factorial(16)
    found = gs.symmetry.count(model, (3, *PATCH))
    assert [layer.log10 for layer in found.layers] == pytest.approx(list(expected))


def test_a_search_given_up_leaves_a_bound_and_says_so() -> None:
    vertices = np.arange(12)
    tails, heads = vertices, np.where(vertices % 6 < 5, vertices + 1, vertices - 5)  # two directed rings of six
    graph = Graph(vertices, tails, heads, np.ones(12, np.uint64))
    colours, layer = np.ones(12, np.uint64), np.zeros(12, np.int64)
    logs, exact = automorphisms(graph, colours, layer, 1)
    assert exact.all()
    assert logs == pytest.approx([math.log10(6 * 6 * 2)])
    logs, exact = automorphisms(graph, colours, layer, 1, budget=100)
    assert not exact.any()
    assert logs == pytest.approx([log_factorial(12)])


@given(st.integers(2, 6), st.integers(0, 2**32), st.sampled_from([0.15, 0.3, 0.6]))
def test_automorphisms_of_any_graph(size: int, seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    edges = rng.random((2, size, size)) < density  # two labels, loops included
    layer = np.sort(rng.integers(0, 2, size))
    labels, tails, heads = np.nonzero(edges)
    graph = Graph(np.arange(size), tails, heads, labels.astype(np.uint64) + np.uint64(7))
    colours = layer.astype(np.uint64) + np.uint64(1)
    loops = edges[:, np.arange(size), np.arange(size)]
    colours = _Search(10**9)._refine(graph, colours + np.uint64(100) * loops[0] + np.uint64(1000) * loops[1])
    orders = [list(p) for p in permutations(range(size)) if (layer[list(p)] == layer).all()]
    ways = sum((edges[:, p][:, :, p] == edges).all() for p in orders)
    logs, exact = automorphisms(graph, colours, layer, 2)
    assert exact.all()
    assert logs.sum() == pytest.approx(math.log10(ways))


def test_a_graph_in_place_of_a_model() -> None:
    model = gs.models.create("mnist", image_size=8)
    graph = gs.ChannelGraph.of(model, model.input_shape)
    assert gs.symmetry.count(graph) == gs.symmetry.count(model)
    with pytest.raises(ValueError, match="no input_shape"):
        gs.symmetry.count(nets.Residual())
    with pytest.raises(ValueError, match="cannot follow the channels"):
        gs.symmetry.signatures(nets.Attending(), nets.IMAGE)


def test_the_page_on_symmetry_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "symmetry.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    assert code.count("assert") >= 8
    exec(compile(code, "docs/symmetry.md", "exec"), {})
