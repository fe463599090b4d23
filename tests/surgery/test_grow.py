"""Growth keeps what has been learnt: kernels, optimizer state, function, and the life of every channel."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gossamer as gs
from gossamer.surgery.gradients import DenseGradients
from gossamer.surgery.grow import sparse_layers

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.5),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}
STARTS = {("adagrad", "sum"): 0.5, ("rprop", "step_size"): 0.01}
"""What an optimizer's own state begins with, where it is not zero."""


def network(density: float = 0.1, pattern: str = "balanced", groups: int = 1) -> nn.Module:
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1, groups=groups),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 12, 4, padding="same", padding_mode="reflect", bias=False),
        nn.BatchNorm2d(12),
    )
    return gs.sparsify(dense, density, pattern=pattern)


def step(model: nn.Module, optimizer: torch.optim.Optimizer | None = None, seed: int = 0) -> Tensor:
    """A step on images that the seed gives; the loss."""
    images = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(seed))
    loss = model(images).sin().mean()
    loss.backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()
    return loss


def by_position(layer: gs.SparseConv2d, values: Tensor) -> dict[int, Tensor]:
    """Rows of the connections, by their place in the full matrix."""
    return dict(zip(layer.connectivity.positions.tolist(), values.detach().clone(), strict=True))


def kernels(model: nn.Module) -> dict[str, dict[int, Tensor]]:
    return {name: by_position(layer, layer.weight) for name, layer in sparse_layers(model).items()}


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[tuple[str, str], dict[int, Tensor]]:
    """Every per-connection tensor of the optimizer's state, by layer and name."""
    found = {}
    for name, layer in sparse_layers(model).items():
        for key, value in optimizer.state[layer.weight].items():
            if isinstance(value, Tensor) and value.ndim == 3:
                assert value.shape[0] == layer.connectivity.connections
                found[name, key] = by_position(layer, value)
    return found


# -- densify -------------------------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(
    stages=st.lists(st.sampled_from([0.02, 0.15, 0.4, 0.7, 1.0]), min_size=2, max_size=3, unique=True).map(sorted),
    pattern=st.sampled_from(["balanced", "uniform"]),
    groups=st.sampled_from([1, 2]),
    chosen=st.booleans(),
)
def test_growth_is_nested_and_exact_without_dead_channels(
    stages: list[float], pattern: str, groups: int, chosen: bool
) -> None:
    model = network(stages[0], pattern, groups)
    for density in stages[1:]:
        before = kernels(model)
        gradients = None
        if chosen:
            with DenseGradients(model) as gradients:
                step(model)
        gs.densify(model, density=density, gradients=gradients)
        for name, layer in sparse_layers(model).items():
            after = by_position(layer, layer.weight)
            assert before[name].keys() <= after.keys()
            assert all(torch.equal(after[p], before[name][p]) for p in before[name])
            c = layer.connectivity
            if pattern == "balanced":
                least = max(c.in_channels, c.out_channels)
                assert c.connections == max(round(density * c.possible), least, len(before[name]))
            assert c.density >= density - 0.5 / c.possible - (0.1 if pattern == "uniform" else 0)
        assert gs.dead_channels(model, (8, 6, 6)) == {}
    gs.densify(model, density=1.0)
    assert all(layer.connectivity.density == 1 for layer in sparse_layers(model).values())


def test_factor_multiplies_the_connections_up_to_all() -> None:
    model = network(0.2)
    counts = [[layer.connectivity.connections for layer in sparse_layers(model).values()]]
    for _ in range(3):
        gs.densify(model, factor=2)
        counts.append([layer.connectivity.connections for layer in sparse_layers(model).values()])
    assert counts == [[26, 38], [52, 76], [104, 152], [128, 192]]


@pytest.mark.parametrize("chosen", [False, True])
def test_zero_kernels_preserve_the_function(chosen: bool) -> None:
    model = network().eval()
    images = torch.randn(3, 8, 6, 6)
    expected = model(images)
    for density in (0.2, 0.5, 1.0):
        gradients = None
        if chosen:
            with DenseGradients(model) as gradients:
                step(model)
        gs.densify(model, density=density, gradients=gradients)
        torch.testing.assert_close(model(images), expected)


def test_random_kernels_lie_within_the_fan_in_and_repeat() -> None:
    torch.manual_seed(1)
    one = network(0.1)
    two = copy.deepcopy(one)
    before = kernels(one)
    gs.densify(one, density=0.5, init="random")
    torch.manual_seed(2)  # processes of one training have other seeds, and must grow alike
    gs.densify(two, density=0.5, init="random")
    for name, layer in sparse_layers(one).items():
        assert torch.equal(layer.weight, sparse_layers(two)[name].weight)
        new = [kernel for p, kernel in by_position(layer, layer.weight).items() if p not in before[name]]
        bound = (layer.connectivity.fan_in.min() * layer.weight[0].numel()) ** -0.5
        largest = torch.stack(new).abs().max()
        assert 0.8 * bound < largest <= bound


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_follows_the_connections(name: str) -> None:
    """Through growths and a rewiring: rows of connections that stay are kept, rows of new ones are fresh."""
    model = network(0.1)
    optimizer = OPTIMIZERS[name](model.parameters())
    parameters = list(model.parameters())
    changes: list[Callable[[], object]] = [
        lambda: gs.densify(model, density=0.3, optimizer=optimizer),
        lambda: gs.densify(model, factor=2, optimizer=optimizer, init="random"),
        lambda: gs.rewire(model, 0.4, optimizer=optimizer),
        lambda: gs.densify(model, density=1.0, optimizer=optimizer),
    ]
    for seed, change in enumerate(changes):
        step(model, optimizer, seed)
        before = state(model, optimizer)
        scalars = {k: v for k, v in optimizer.state[parameters[0]].items() if not isinstance(v, Tensor) or v.ndim == 0}
        change()
        after = state(model, optimizer)
        assert after.keys() == before.keys() != set()
        fresh = 0
        for at, rows in after.items():
            for position, row in rows.items():
                if position in before[at]:
                    assert torch.equal(row, before[at][position])
                else:
                    fresh += 1
                    assert (row == STARTS.get((name, at[1]), 0.0)).all()
        assert fresh > 0
        assert scalars == {k: optimizer.state[parameters[0]][k] for k in scalars}
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    loss = step(model, optimizer, seed=9)
    assert loss.isfinite()


def test_growth_while_the_last_loss_is_still_held() -> None:
    """A loop that keeps `loss` keeps its graph, and with it autograd's notion of the old shape."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for density in (0.2, 0.4, 0.8):
        losses.append(step(model, optimizer))
        gs.densify(model, density=density, optimizer=optimizer)
        assert all(layer.weight.grad is None for layer in sparse_layers(model).values())
    losses.append(step(model, optimizer))


def test_a_grown_model_trains_as_one_that_was_always_so_dense() -> None:
    """Against the same pattern with the new kernels at zero, made without growth."""
    grown = network(0.1)
    gs.densify(grown, density=0.6)
    patterns = {name: layer.connectivity for name, layer in sparse_layers(grown).items()}
    straight = copy.deepcopy(network(0.1))
    for name, layer in sparse_layers(straight).items():
        weight = torch.zeros(patterns[name].connections, *layer.kernel_size)
        weight[torch.from_numpy(np.isin(patterns[name].positions, layer.connectivity.positions))] = (
            layer.weight.detach()
        )
        layer.replace_connectivity(patterns[name], weight)
    for model in (grown, straight):
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        for seed in range(3):
            step(model, optimizer, seed)
    for a, b in zip(grown.parameters(), straight.parameters(), strict=True):
        assert torch.equal(a, b)


def test_layers_that_are_denser_stay_as_they_are() -> None:
    dense = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Conv2d(16, 12, 3))
    model = gs.sparsify(dense, 0.1, allocation={"0": 0.5})
    gs.densify(model, density=0.3)
    assert [layer.connectivity.connections for layer in sparse_layers(model).values()] == [64, round(0.3 * 192)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"density": 0.1}, r"cannot grow to density 0\.1: every layer has more, the sparsest 0\.2969"),
        ({"density": 1.5}, r"density must be in \(0, 1\], got 1\.5"),
        ({"density": 0.0}, r"density must be in \(0, 1\], got 0\.0"),
        ({"factor": 0.5}, r"factor must be at least 1, got 0\.5"),
        ({}, "either density= or factor="),
        ({"density": 0.5, "factor": 2}, "either density= or factor="),
        ({"density": 0.5, "init": "ones"}, 'init must be "zero" or "random"'),
    ],
)
def test_impossible_growth_is_an_error_and_changes_nothing(arguments: dict[str, Any], message: str) -> None:
    model = network(0.3)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        gs.densify(model, **arguments)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_models_that_cannot_grow() -> None:
    with pytest.raises(ValueError, match="no sparse layers to grow: sparsify it first"):
        gs.densify(nn.Conv2d(3, 4, 3), density=0.5)
    with pytest.raises(ValueError, match="no sparse layers"):
        gs.rewire(nn.Conv2d(3, 4, 3))
    model = network()
    with pytest.raises(ValueError, match="LBFGS keeps one history"):
        gs.densify(model, density=0.5, optimizer=torch.optim.LBFGS(model.parameters()))
    tied = nn.Sequential(gs.SparseConv2d(8, 8, 3, density=0.5), gs.SparseConv2d(8, 8, 3, density=0.5))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="'1': it shares its kernels with '0'"):
        gs.densify(tied, density=0.7)


# -- gradients of absent connections -------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_are_those_of_the_dense_layer(groups: int) -> None:
    """What `DenseGradients` sees is what autograd finds for the same model with all connections, the absent ones zero."""
    model = network(0.3, groups=groups)
    full = gs.densify(copy.deepcopy(model), density=1.0)
    with DenseGradients(model) as gradients:
        for seed in range(2):  # gradients of several passes add up
            step(model, seed=seed)
            step(full, seed=seed)
    for name, layer in sparse_layers(model).items():
        dense = sparse_layers(full)[name]
        missing = ~np.isin(dense.connectivity.positions, layer.connectivity.positions)
        expected = dense.weight.grad[torch.from_numpy(missing)].flatten(1).square().sum(1)
        np.testing.assert_allclose(gradients.scores(layer, name), expected.numpy(), rtol=1e-4)


def test_growth_by_gradient_takes_the_largest() -> None:
    model = network(0.1)
    with DenseGradients(model) as gradients:
        step(model)
    layer = sparse_layers(model)["0"]
    scores = gradients.scores(layer)
    missing = np.setdiff1d(np.arange(128), layer.connectivity.positions)
    gs.densify(model, density=0.25, gradients=gradients)
    new = np.intersect1d(layer.connectivity.positions, missing)
    taken = np.isin(missing, new)
    assert 0 < taken.sum() == 32 - 16
    assert scores[taken].min() >= scores[~taken].max()


def test_no_gradient_seen_is_an_error() -> None:
    model = network()
    with DenseGradients(model) as gradients, torch.no_grad():
        model(torch.randn(1, 8, 6, 6))
    with pytest.raises(ValueError, match="no gradient has reached layer '0'"):
        gs.densify(model, density=0.5, gradients=gradients)


# -- rewire --------------------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(
    density=st.sampled_from([0.1, 0.3, 0.8, 1.0]),
    fraction=st.sampled_from([0.05, 0.3, 0.9]),
    pattern=st.sampled_from(["balanced", "uniform"]),
    chosen=st.booleans(),
)
def test_rewiring_keeps_the_count_and_the_strong(density: float, fraction: float, pattern: str, chosen: bool) -> None:
    model = network(density, pattern)
    before = kernels(model)
    gradients = None
    if chosen:
        with DenseGradients(model) as gradients:
            step(model)
    gs.rewire(model, fraction, gradients=gradients)
    assert gs.dead_channels(model, (8, 6, 6)) == {}
    for name, layer in sparse_layers(model).items():
        after = by_position(layer, layer.weight)
        assert len(after) == len(before[name])
        kept = before[name].keys() & after.keys()
        dropped = before[name].keys() - kept
        assert len(dropped) <= round(fraction * len(before[name]))
        assert all(torch.equal(after[p], before[name][p]) for p in kept)
        c = layer.connectivity
        strength = {p: float(kernel.norm()) for p, kernel in before[name].items()}
        for p in dropped:  # its output and its input keep a stronger one
            row, column = divmod(p, c.in_channels)
            assert any(q // c.in_channels == row and strength[q] >= strength[p] for q in kept)
            assert any(q % c.in_channels == column and strength[q] >= strength[p] for q in kept)


def test_rewiring_drops_the_weakest_and_goes_elsewhere_each_time() -> None:
    model = gs.sparsify(nn.Sequential(nn.Conv2d(64, 64, 1)), 0.5)
    layer = sparse_layers(model)["0"]
    seen = [set(layer.connectivity.positions.tolist())]
    for _ in range(2):
        strength = layer.weight.detach().flatten(1).norm(dim=1)
        weakest = strength.argsort()[:100].tolist()
        positions = layer.connectivity.positions
        gs.rewire(model, 100 / 2048, init="random")
        seen.append(set(layer.connectivity.positions.tolist()))
        assert seen[-2] - seen[-1] == {int(positions[i]) for i in weakest}
    assert (seen[1] - seen[0]) != (seen[2] - seen[1])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_impossible_fractions(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\)"):
        gs.rewire(network(), fraction)


# -- with the rest of PyTorch --------------------------------------------------------------------------------------------


def test_compiled_models_compile_anew_only_at_growth() -> None:
    model = network(0.1)
    compilations = 0

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        nonlocal compilations
        compilations += 1
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    counts = []
    for density in (0.2, 0.4, 0.8):
        for seed in range(3):
            torch.testing.assert_close(step(compiled, optimizer, seed), step(model, None, seed), rtol=1, atol=1)
            optimizer.zero_grad()
        counts.append(compilations)
        for seed in range(2):
            step(compiled, optimizer, seed)
        assert compilations == counts[-1]
        gs.densify(model, density=density, optimizer=optimizer)
    assert counts[0] >= 1
    assert counts[-1] <= 3 * counts[0]
    model.eval()
    images = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(compiled(images), model(images))


def test_gradient_growth_tells_that_a_compiled_model_hides_them() -> None:
    model = network()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    step(compiled)
    with DenseGradients(model) as gradients:
        step(compiled)
    with pytest.raises(ValueError, match="no gradient has reached layer"):
        gs.densify(model, density=0.5, gradients=gradients)
    with DenseGradients(model) as gradients, torch.compiler.set_stance("force_eager"):
        step(compiled)
    gs.densify(model, density=0.5, gradients=gradients)


def test_saved_and_loaded_between_growths(tmp_path: Any) -> None:
    """The pattern's history travels with it: what is loaded grows as what was saved."""
    model = network(0.1)
    gs.densify(model, density=0.3)
    gs.rewire(model, 0.2)
    gs.save(model, tmp_path / "model.safetensors")
    again = network(0.1)
    gs.load(again, tmp_path / "model.safetensors")
    for m in (model, again):
        gs.rewire(gs.densify(m, density=0.5, init="random"), 0.3)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
