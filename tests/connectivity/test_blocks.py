"""Laws of shared inputs: `block` consecutive outputs of a group that listen to the same channels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gossamer.connectivity import PATTERNS, Connectivity, best_block

DENSITIES = st.floats(0.001, 1.0)
SEEDS = st.integers(0, 2**32)
NAMES = st.sampled_from(list(PATTERNS))


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """in_channels, out_channels, groups, block."""
    groups, block = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    return groups * draw(st.integers(1, 12)), groups * block * draw(st.integers(1, 9)), groups, block


def drawn(shape: tuple[int, int, int, int], density: float, seed: int, pattern: str = "balanced") -> Connectivity:
    """A pattern of blocks, where the density allows them."""
    inputs, outputs, groups, block = shape
    assume(best_block(inputs, outputs, density, groups, block) == block)
    return Connectivity.random(inputs, outputs, density, pattern=pattern, seed=seed, groups=groups, block=block)


def naive_block(c: Connectivity) -> int:
    """The definition of `Connectivity.block`, read off the matrix."""
    rows, height = c.mask(), c.out_channels // c.groups
    sizes = [b for b in range(1, height + 1) if height % b == 0 and (rows == np.repeat(rows[::b], b, axis=0)).all()]
    return max(sizes) if c.connections else 1


@given(shapes(), DENSITIES, SEEDS, NAMES)
def test_blocks_are_drawn_as_outputs_are(
    shape: tuple[int, int, int, int], density: float, seed: int, pattern: str
) -> None:
    inputs, outputs, groups, block = shape
    c = drawn(shape, density, seed, pattern)
    plain = Connectivity.random(inputs, outputs // block, density, pattern=pattern, seed=seed, groups=groups)
    assert np.array_equal(c.mask(), np.repeat(plain.mask(), block, axis=0))
    assert (c.pattern, c.seed, c.repaired) == (pattern, seed, block * plain.repaired)


@given(shapes(), DENSITIES, SEEDS)
def test_counts_are_exact_to_a_block_and_degrees_even(
    shape: tuple[int, int, int, int], density: float, seed: int
) -> None:
    inputs, outputs, _, block = shape
    c = drawn(shape, density, seed)
    assert c.connections == block * max(round(density * (c.possible // block)), inputs, outputs // block)
    assert abs(c.connections - max(density * c.possible, inputs, outputs)) <= block / 2 + 1e-6
    assert np.ptp(c.fan_in) <= 1
    assert np.ptp(c.fan_out) in (0, block)


@given(shapes(), DENSITIES, SEEDS, NAMES)
def test_no_channel_is_dead_and_groups_stay_apart(
    shape: tuple[int, int, int, int], density: float, seed: int, pattern: str
) -> None:
    c = drawn(shape, density, seed, pattern)
    assert c.fan_in.min() >= 1
    assert c.fan_out.min() >= shape[3]
    assert not (c.mask() & ~Connectivity.grouped(*shape[:3]).mask()).any()


@given(shapes(), DENSITIES, DENSITIES, SEEDS, NAMES)
def test_growth_is_nested_and_in_whole_blocks(
    shape: tuple[int, int, int, int], one: float, other: float, seed: int, pattern: str
) -> None:
    low, high = sorted((one, other))
    small = drawn(shape, low, seed, pattern)
    assume(small.repaired or small.connections <= small.asked(high))
    large = small.grow(high)
    assert not (small.mask() & ~large.mask()).any()
    assert small.block % shape[3] == 0
    assert large.block % small.block == 0
    if pattern == "balanced":
        assert large.connections == max(small.asked(high), small.connections)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(1, 2), st.data())
def test_the_block_is_read_from_the_rows(
    inputs: int, block: int, blocks: int, groups: int, data: st.DataObject
) -> None:
    allowed = Connectivity.grouped(groups * inputs, groups * blocks, groups).mask()
    some = data.draw(st.lists(st.booleans(), min_size=allowed.size, max_size=allowed.size))
    mask = np.repeat(np.array(some).reshape(allowed.shape) & allowed, block, axis=0)
    c = Connectivity.from_mask(mask, groups)
    assert c.block == naive_block(c)
    assert c.block % block == 0 or not c.connections


@given(shapes(), DENSITIES, SEEDS)
def test_merging_blocks_and_repeating_them(shape: tuple[int, int, int, int], density: float, seed: int) -> None:
    c = drawn(shape, density, seed)
    for block in (1, shape[3], c.block):
        merged = c.merged(block)
        assert np.array_equal(merged.mask(), c.mask()[::block])
        assert merged.repeated(block) == c


def test_of_the_full_and_the_empty_pattern() -> None:
    assert Connectivity.full(3, 12).block == 12
    assert Connectivity.grouped(4, 12, 2).block == 6
    empty = Connectivity.from_mask(np.zeros((8, 4), np.bool_))
    assert empty.block == 1
    assert empty.grow(0.5) == Connectivity.random(4, 8, 0.5)


@given(shapes(), DENSITIES)
def test_auto_forces_no_connections(shape: tuple[int, int, int, int], density: float) -> None:
    inputs, outputs, groups, _ = shape
    c = Connectivity.random(inputs, outputs, density, groups=groups, block="auto")
    block = best_block(inputs, outputs, density, groups)
    assert block in (1, 2, 4)
    assert c == Connectivity.random(inputs, outputs, density, groups=groups, block=block)
    assert c.connections <= max(density * c.possible, inputs, outputs) + block / 2 + 1e-6
    larger = [b for b in (2, 4) if b > block and outputs // groups % b == 0]
    assert all(b * inputs > max(density * c.possible, inputs, outputs) for b in larger)


def test_a_seed_gives_the_same_blocks_for_ever() -> None:
    heard = [Connectivity.random(6, 16, 0.4, seed=7, block=4, pattern=p).merged(4).positions.tolist() for p in PATTERNS]
    assert heard[0] == [2, 3, 6, 7, 9, 12, 13, 17, 22, 23]
    assert heard[1] == [0, 3, 4, 6, 7, 8, 9, 10, 11, 12, 16, 17, 18, 21, 23]


def test_redrawn_keeps_what_fits_of_the_block() -> None:
    c = Connectivity.random(64, 64, 0.1, seed=3, block=4)
    assert c.redrawn(32, 48, 0.1) == Connectivity.random(32, 48, 0.1, seed=3, block=4)
    assert c.redrawn(32, 32, 0.1).block == 2  # 32 outputs of density 0.1 hear each input three times: not a block of 4
    assert c.redrawn(32, 45, 0.1).block == 1


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match=r"blocks of 4 do not divide 10 outputs; the largest below that fit are of 2"):
        Connectivity.random(16, 20, 0.5, groups=2, block=4)
    with pytest.raises(ValueError, match=r"density of at least 0\.0625, .* got 0\.04; the largest below .* of 2"):
        Connectivity.random(64, 64, 0.04, block=4)
    for block in (0, -2, 1.5, True, "all"):
        with pytest.raises(ValueError, match='block must be a positive integer or "auto"'):
            Connectivity.random(8, 8, 0.5, block=block)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"has no blocks of 4 outputs"):
        Connectivity.random(8, 8, 0.5, block=2).merged(4)
