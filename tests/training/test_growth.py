"""Density as a function of the step, and training that grows: interrupted, in two processes, by gradient."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import same_model
from safetensors.torch import load_file
from torch import nn

import gossamer as gs
from gossamer.surgery.schedule import Doubling, Ramp, Schedule
from gossamer.surgery.widen import Widening, narrow
from gossamer.training import checkpoint
from gossamer.training.config import TrainConfig
from gossamer.training.inference import evaluate
from gossamer.training.interrupt import Interrupted
from gossamer.training.run import Training
from gossamer.training.trainer import train

Start = Callable[..., "subprocess.Popen[str]"]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def model(density: float = 0.1) -> nn.Module:
    return gs.sparsify(nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 16, 3)), density)


def grown(config: TrainConfig, *, from_: float = 0.05, every: int = 5, by: str = "random") -> TrainConfig:
    return replace(config, grow_from=from_, grow_every=every, grow_by=by)


# -- schedules -----------------------------------------------------------------------------------------------------------


def test_doubling_is_the_papers() -> None:
    schedule = Doubling(0.01, every=10_000)
    assert [schedule(step) for step in (0, 9_999, 10_000, 25_000, 60_000)] == [0.01, 0.01, 0.02, 0.04, 0.64]
    assert schedule(70_000) == schedule(10**9) == 1.0
    assert Doubling(0.1, every=1, factor=3, end=0.5)(2) == 0.5


@given(
    start=st.floats(0.001, 0.9),
    every=st.integers(1, 20),
    steps=st.integers(1, 200),
    shape=st.sampled_from(["linear", "cosine", "cubic"]),
)
def test_ramps_rise_from_start_to_end(start: float, every: int, steps: int, shape: str) -> None:
    schedule = Ramp(start, steps, every, 1.0, shape)
    densities = [schedule(step) for step in range(steps + every + 1)]
    assert densities[0] == pytest.approx(start)
    assert densities[-1] == 1.0
    assert densities == sorted(densities)
    assert all(d == densities[step // every * every] for step, d in enumerate(densities))


def test_half_way_along_each_ramp() -> None:
    half = {shape: Ramp(0.2, 100, 1, 1.0, shape)(25) for shape in ("linear", "cosine", "cubic")}
    assert half == {
        "linear": pytest.approx(0.4),
        "cosine": pytest.approx(0.2 + 0.8 * 0.146447, rel=1e-5),
        "cubic": pytest.approx(0.2 + 0.8 * (1 - 0.75**3)),
    }


# -- Growth --------------------------------------------------------------------------------------------------------------


def test_growth_follows_any_function() -> None:
    m = model()
    growth = gs.Growth(m, None, lambda step: min(1.0, 0.1 + 0.3 * (step // 2)))
    changed = [growth.step() for _ in range(8)]
    assert changed == [False, True, False, True, False, True, False, False]
    assert growth.density == 1.0
    assert all(layer.connectivity.density == 1 for layer in m if isinstance(layer, gs.SparseConv2d))


@pytest.mark.parametrize("by", ["random", "gradient"])
def test_growth_goes_on_from_its_state(by: str) -> None:
    images = torch.randn(2, 16, 8, 8)

    def some_steps(m: nn.Module, optimizer: torch.optim.Optimizer, growth: gs.Growth, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            m(images).square().mean().backward()
            optimizer.step()
            growth.step()

    def start() -> tuple[nn.Module, torch.optim.Optimizer, gs.Growth]:
        torch.manual_seed(0)
        m = model()
        optimizer = torch.optim.AdamW(m.parameters(), lr=0.01)
        return m, optimizer, gs.Growth(m, optimizer, Doubling(0.1, every=3), by=by, init="random")

    whole = start()
    some_steps(*whole, 10)
    for cut in (2, 3, 4):  # before, at and after a growth
        first, second = start(), start()
        some_steps(*first, cut)
        for saved, fresh in zip(first, second, strict=True):
            fresh.load_state_dict(saved.state_dict())
        some_steps(*second, 10 - cut)
        for a, b in zip(whole[0].state_dict().values(), second[0].state_dict().values(), strict=True):
            assert torch.equal(a, b)


def test_hooks_are_there_only_before_a_growth_by_gradient() -> None:
    m = model()
    growth = gs.Growth(m, None, Doubling(0.1, every=3), by="gradient")
    hooked = []
    for _ in range(6):
        hooked.append(bool(m[0]._forward_hooks))
        m(torch.randn(1, 16, 8, 8)).sum().backward()
        growth.step()
    assert hooked == [False, False, True, False, False, True]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda step: 0.5 - 0.1 * step, r"falls from 0\.5 to 0\.4 after 1 steps; it may only rise"),
        (lambda step: 0.5 + step, r"density after 1 steps must be in \(0, 1\], got 1\.5"),
        (lambda step: 0.0, r"density after .* must be in \(0, 1\], got 0\.0"),
    ],
)
def test_impossible_schedules(schedule: Schedule, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gs.Growth(model(), None, schedule).step()


def test_growth_needs_something_to_grow() -> None:
    with pytest.raises(ValueError, match="no sparse layers to grow"):
        gs.Growth(nn.Conv2d(3, 4, 3), None, Doubling(0.1, 5))
    with pytest.raises(ValueError, match='by must be "random" or "gradient"'):
        gs.Growth(model(), None, Doubling(0.1, 5), by="size")


# -- in the training loop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["random", "gradient", "channels"])
def test_resumed_equals_uninterrupted_across_a_growth(tmp_path: Path, config: TrainConfig, by: str) -> None:
    config = grown(replace(config, epochs=2), by=by)
    whole = train(config, tmp_path / "whole", progress=False)
    assert [entry["density"] for entry in whole.history] == [pytest.approx(0.2, abs=0.05), pytest.approx(0.8, abs=0.05)]
    for cut in (4, 5, 6):

        def stop(run: Training, cut: int = cut) -> bool:
            if run.step == cut:
                signal.raise_signal(signal.SIGTERM)
            return False

        folder = tmp_path / f"cut-{cut}"
        with pytest.raises(Interrupted):
            train(config, folder, progress=False, after_step=stop)
        assert checkpoint.load(folder / "checkpoint.pt")["step"] == cut
        train(config, folder, progress=False, resume=True)
        assert same_model(tmp_path / "whole", folder)


def test_a_run_that_reaches_full_density_is_laid_out_as_a_dense_one(tmp_path: Path, config: TrainConfig) -> None:
    layouts = []

    def note(run: Training) -> bool:
        layouts.append(run.layout)
        return False

    config = replace(grown(config, from_=0.25, every=4), epochs=1)
    result = train(config, tmp_path / "run", progress=False, after_step=note)
    assert layouts == [torch.contiguous_format] * 7 + [torch.channels_last] * 4
    dense = train(replace(config, grow_from=None), tmp_path / "dense", progress=False)
    assert (result.params, result.madds) == (dense.params, dense.madds)
    assert result.history[-1]["density"] == 1.0


def test_channels_are_added_to_what_has_been_learnt() -> None:
    """The paper's counter-example: old weights and their momentum lead, the rest is fresh, the end is the whole network."""
    torch.manual_seed(0)
    full = gs.models.create("cifar", image_size=8)
    model = narrow(full, 0.1, (3, 8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    growth = Widening(model, optimizer, Doubling(0.1, every=2, factor=4), full, (3, 8, 8))
    parameters = dict(model.named_parameters())
    widths = []
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        before = {name: p.detach().clone() for name, p in parameters.items()}
        momentum = {name: optimizer.state[p]["momentum_buffer"].clone() for name, p in parameters.items()}
        grown = growth.step()
        widths.append(model.conv1[0].weight.shape[0])
        for name, p in model.named_parameters():
            assert p is parameters[name]
            corner = tuple(slice(size) for size in before[name].shape)
            assert torch.equal(p[corner], before[name])
            assert torch.equal(optimizer.state[p]["momentum_buffer"][corner], momentum[name])
            assert optimizer.state[p]["momentum_buffer"].norm() == pytest.approx(momentum[name].norm().item(), rel=1e-5)
            if grown and p.dim() > 1 and p.shape != before[name].shape:
                assert p.norm() > 1.1 * before[name].norm()
    assert widths == [21, 41, 41, 64, 64]
    assert growth.density == 1.0
    assert (model.conv2[0].in_channels, model.conv2[1].num_features, model.fc1[0].in_features) == (64, 64, 256)
    assert gs.count(model, (3, 8, 8)) == gs.count(full, (3, 8, 8))


def test_a_run_that_grew_by_channels_can_be_evaluated(tmp_path: Path, config: TrainConfig) -> None:
    config = replace(grown(config, from_=0.3, every=4, by="channels"), epochs=1)
    result = train(config, tmp_path / "run", progress=False)
    dense = train(replace(config, grow_from=None), tmp_path / "dense", progress=False)
    assert (result.params, result.madds) == (dense.params, dense.madds)
    assert evaluate(tmp_path / "run", trust=True)["accuracy"] == pytest.approx(result.accuracy)


def test_two_processes_grow_alike(tmp_path: Path, config: TrainConfig, start: Start) -> None:
    """Also by gradient, which each process sees a part of; the network has no statistics that differ by process."""
    config = replace(grown(config, by="gradient"), model="networks:plain", epochs=2, lr=0.02, grow_init="random")
    train(config, tmp_path / "one", progress=False)
    process = start(config, tmp_path / "two", *TORCHRUN)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grow_from": 0.5, "density": 0.5}, r"grow_from is 0\.5; it must be below 0\.5, the density it grows to"),
        ({"grow_from": 0.0}, "grow_from is 0.0; it must be above 0"),
        ({"grow_every": 0}, "grow_every is 0; it must be above 0"),
        ({"grow_factor": 1.0}, "grow_factor is 1.0; it must be above 1"),
        ({"grow_until": 1.5}, "grow_until is 1.5; it must be above 0 and at most 1"),
    ],
)
def test_impossible_settings(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)  # type: ignore[arg-type]
