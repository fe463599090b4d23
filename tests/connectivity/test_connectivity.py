"""Laws of `Connectivity`: what every pattern is, whatever its shape, density and seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.connectivity import PATTERNS, Connectivity

CHANNELS = st.integers(1, 40)
DENSITIES = st.floats(0.001, 1.0)
SEEDS = st.integers(0, 2**32)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int]:
    groups = draw(st.integers(1, 4))
    return groups * draw(st.integers(1, 12)), groups * draw(st.integers(1, 12)), groups


@given(shapes(), DENSITIES, SEEDS)
def test_balanced_is_exact_and_even(shape: tuple[int, int, int], density: float, seed: int) -> None:
    inputs, outputs, groups = shape
    c = Connectivity.random(inputs, outputs, density, seed=seed, groups=groups)
    assert c.connections == max(round(density * c.possible), max(inputs, outputs))
    assert np.ptp(c.fan_in) <= 1
    assert np.ptp(c.fan_out) <= 1
    assert c.repaired == c.connections - round(density * c.possible)


@given(shapes(), DENSITIES, SEEDS)
def test_uniform_gives_every_output_its_share(shape: tuple[int, int, int], density: float, seed: int) -> None:
    inputs, outputs, groups = shape
    c = Connectivity.random(inputs, outputs, density, pattern="uniform", seed=seed, groups=groups)
    assert c.fan_in.min() >= np.ceil(density * inputs / groups - 1e-9)


@given(shapes(), DENSITIES, SEEDS, st.sampled_from(list(PATTERNS)))
def test_no_channel_is_dead(shape: tuple[int, int, int], density: float, seed: int, pattern: str) -> None:
    inputs, outputs, groups = shape
    c = Connectivity.random(inputs, outputs, density, pattern=pattern, seed=seed, groups=groups)
    assert c.fan_in.min() >= 1
    assert c.fan_out.min() >= 1
    allowed = Connectivity.grouped(inputs, outputs, groups).mask()
    assert not (c.mask() & ~allowed).any()


def test_uniform_keeps_the_density_it_was_asked_for() -> None:
    c = Connectivity.random(512, 512, 0.1, pattern="uniform", seed=3)
    assert 0.1 <= c.density < 0.11  # topping the short outputs up adds a little


@given(CHANNELS, CHANNELS, DENSITIES, DENSITIES, SEEDS, st.sampled_from(list(PATTERNS)))
def test_growth_is_nested(i: int, o: int, one: float, other: float, seed: int, pattern: str) -> None:
    low, high = sorted((one, other))
    small = Connectivity.random(i, o, low, pattern=pattern, seed=seed)
    if small.connections > small.asked(high) and not small.repaired:
        with pytest.raises(ValueError, match="cannot grow"):
            small.grow(high)
        return
    large = small.grow(high)
    assert not (small.mask() & ~large.mask()).any()
    assert large.pattern == pattern
    assert large.seed == seed
    if pattern == "balanced":  # exact up to a block: the rows of a few channels can be alike by chance
        assert large.connections == max(small.asked(high), small.connections, i, o)


@given(st.integers(16, 64), st.integers(16, 64), st.lists(st.floats(0.05, 1), min_size=3, max_size=3), SEEDS)
def test_balanced_stays_even_as_it_grows(i: int, o: int, densities: list[float], seed: int) -> None:
    first, *rest = sorted(densities)
    c = Connectivity.random(i, o, first, seed=seed)
    for density in rest:
        c = c.grow(density)
        assert np.ptp(c.fan_in) <= 1
        assert np.ptp(c.fan_out) <= 1


def test_uniform_growth_lowers_the_bar_on_the_same_scores() -> None:
    small = Connectivity.random(64, 96, 0.1, pattern="uniform", seed=5)
    drawn = Connectivity.random(64, 96, 0.3, pattern="uniform", seed=5)
    grown = small.grow(0.3)
    assert not (drawn.mask() & ~grown.mask()).any()
    assert grown.connections - drawn.connections < 10  # repairs of the small pattern that the large one does not need


@given(shapes(), DENSITIES, SEEDS, st.sampled_from(list(PATTERNS)))
def test_transposing_twice_is_the_identity(
    shape: tuple[int, int, int], density: float, seed: int, pattern: str
) -> None:
    inputs, outputs, groups = shape
    c = Connectivity.random(inputs, outputs, density, pattern=pattern, seed=seed, groups=groups)
    assert np.array_equal(c.transpose().mask(), c.mask().T)
    assert c.transpose().transpose() == c


@given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_a_mask_round_trips(inputs: int, outputs: int, random: object) -> None:
    mask = np.array([[random.random() < 0.4 for _ in range(inputs)] for _ in range(outputs)])  # type: ignore[attr-defined]
    c = Connectivity.from_mask(mask)
    assert np.array_equal(c.mask(), mask)
    assert c.connections == mask.sum()
    assert Connectivity.from_positions(inputs, outputs, c.positions) == c


def test_a_seed_gives_the_same_pattern_for_ever() -> None:
    balanced = Connectivity.random(8, 6, 0.25, seed=7)
    uniform = Connectivity.random(8, 6, 0.25, seed=7, pattern="uniform")
    assert balanced.positions.tolist() == [1, 6, 14, 15, 18, 19, 24, 29, 36, 37, 41, 47]
    assert uniform.positions.tolist() == [0, 3, 6, 8, 10, 11, 17, 21, 23, 29, 30, 36, 38, 39, 42, 46]
    assert Connectivity.random(8, 6, 0.25, seed=8) != balanced


def test_full_and_grouped() -> None:
    assert Connectivity.full(3, 5).mask().all()
    assert Connectivity.full(3, 5).density == 1
    grouped = Connectivity.grouped(4, 6, 2)
    assert grouped.mask().astype(int).tolist() == [[1, 1, 0, 0]] * 3 + [[0, 0, 1, 1]] * 3
    assert grouped.density == 1
    assert grouped == Connectivity.random(4, 6, 1.0, groups=2)


def test_a_connectivity_is_frozen_and_hashable() -> None:
    c = Connectivity.full(2, 2)
    with pytest.raises(AttributeError):
        c.groups = 2  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        c.indices[0] = 1
    assert hash(c) == hash(Connectivity.full(2, 2))
    assert c != "a string"
    assert "4 connections" in repr(c)


@pytest.mark.parametrize("density", [0, -0.1, 1.5, float("nan"), float("inf")])
def test_impossible_densities(density: float) -> None:
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\], got"):
        Connectivity.random(4, 4, density)


@pytest.mark.parametrize("density", ["0.5", None, True])
def test_densities_of_the_wrong_type(density: object) -> None:
    with pytest.raises(TypeError, match="density must be a number"):
        Connectivity.random(4, 4, density)  # type: ignore[arg-type]


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match="pattern must be one of balanced, uniform, got 'random'"):
        Connectivity.random(4, 4, 0.5, pattern="random")
    with pytest.raises(ValueError, match="groups must divide both channel counts, got 3 for 4 -> 6"):
        Connectivity.grouped(4, 6, 3)
    with pytest.raises(ValueError, match="channel counts must be positive, got 0 -> 4"):
        Connectivity.full(0, 4)
    with pytest.raises(ValueError, match=r"cannot grow to density 0\.2: the pattern already has density 0\.5"):
        Connectivity.random(8, 8, 0.5).grow(0.2)
    with pytest.raises(TypeError, match="boolean matrix"):
        Connectivity.from_mask(np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"indices must lie in 0\.\.1"):
        Connectivity(2, 1, np.array([0, 1]), np.array([5]))
    with pytest.raises(ValueError, match="ascend within each output"):
        Connectivity(2, 1, np.array([0, 2]), np.array([1, 0]))
    with pytest.raises(ValueError, match="indptr must be 3 ascending offsets"):
        Connectivity(2, 2, np.array([0, 1]), np.array([0]))
    with pytest.raises(ValueError, match="crosses the 2 groups"):
        Connectivity(2, 2, np.array([0, 1, 2]), np.array([1, 1]), groups=2)
