"""Which input channels each output channel listens to (the paper, section 3.2): one frozen value for every pattern."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from gossamer.connectivity.balanced import balanced
from gossamer.connectivity.uniform import uniform

Pattern = Callable[[np.ndarray, float, int], tuple[np.ndarray, int]]
"""(old connections, density, seed) -> (old and new ones together, how many of them only keep a channel alive).

Connections are boolean [groups, outputs, inputs], the channels being those of one group."""

PATTERNS: dict[str, Pattern] = {"balanced": balanced, "uniform": uniform}


@dataclass(frozen=True, eq=False)
class Connectivity:
    """The connections of one convolution, as compressed sparse rows (CSR) by output channel.

    Output `o` listens to the input channels `indices[indptr[o]:indptr[o + 1]]`, in ascending order. Full, grouped,
    depth-multiplier and random patterns are all this one type.

    >>> c = Connectivity.from_mask(np.array([[True, False, True], [False, True, False]]))
    >>> c.indptr.tolist(), c.indices.tolist()
    ([0, 2, 3], [0, 2, 1])

    `groups` says which connections are possible at all: those of a grouped convolution. `pattern` and `seed` say how
    the connections were drawn, so that `grow` goes on the same way; `repaired` how many of them were added to the
    density asked for, because without them a channel would be dead (section 5.1).
    """

    in_channels: int
    out_channels: int
    indptr: np.ndarray
    indices: np.ndarray
    groups: int = 1
    pattern: str = "balanced"
    seed: int = 0
    repaired: int = 0

    def __post_init__(self) -> None:
        _check_channels(self.in_channels, self.out_channels, self.groups)
        _check_pattern(self.pattern)
        for name in ("indptr", "indices"):
            given = np.asarray(getattr(self, name))
            if given.size and (given.dtype.kind not in "iu" or not 0 <= given.min() <= given.max() < 2**31):
                raise ValueError(
                    f"{name} must be whole numbers from 0 to 2^31 - 1, got {given.dtype} {given.min()}..{given.max()}"
                )
            array = given.astype(np.int32)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        self._check_rows()

    def _check_rows(self) -> None:
        if self.indptr.shape != (self.out_channels + 1,) or self.indptr[0] != 0 or (np.diff(self.indptr) < 0).any():
            raise ValueError(
                f"indptr must be {self.out_channels + 1} ascending offsets that start at 0 for "
                f"{self.out_channels} output channels, got shape {self.indptr.shape}"
            )
        if self.indices.shape != (self.indptr[-1],):
            raise ValueError(f"indptr ends at {self.indptr[-1]}, but indices has shape {self.indices.shape}")
        if self.indices.size and not 0 <= self.indices.min() <= self.indices.max() < self.in_channels:
            raise ValueError(
                f"indices must lie in 0..{self.in_channels - 1} (the input channels), "
                f"got {self.indices.min()}..{self.indices.max()}"
            )
        if (np.diff(self.positions) <= 0).any():
            raise ValueError("indices must ascend within each output channel, without repeats")
        rows = self.rows
        if (self.indices // (self.in_channels // self.groups) != rows // (self.out_channels // self.groups)).any():
            raise ValueError(f"a connection crosses the {self.groups} groups it should stay within")

    # -- construction -------------------------------------------------------------------------------------------------

    @classmethod
    def full(cls, in_channels: int, out_channels: int) -> Connectivity:
        """Every connection: the dense convolution."""
        return cls.grouped(in_channels, out_channels, 1)

    @classmethod
    def grouped(cls, in_channels: int, out_channels: int, groups: int) -> Connectivity:
        """Block-diagonal connections: the grouped convolution. `groups` must divide both channel counts."""
        _check_channels(in_channels, out_channels, groups)
        width, height = in_channels // groups, out_channels // groups
        first = np.arange(out_channels) // height * width
        indices = (first[:, None] + np.arange(width)).ravel()
        return cls(in_channels, out_channels, np.arange(out_channels + 1) * width, indices, groups)

    @classmethod
    def random(
        cls,
        in_channels: int,
        out_channels: int,
        density: float,
        *,
        pattern: str = "balanced",
        seed: int = 0,
        groups: int = 1,
        block: int | str = 1,
    ) -> Connectivity:
        """Random connections (section 3.2): a `density` in (0, 1] of those possible, the same for a seed everywhere.

        `balanced`: exactly round(density * possible) connections, but at least one for every channel; fan-ins differ
        by at most one, and so do fan-outs. `uniform` (the paper's): every connection gets a uniform score and is on
        when its score is below the density; outputs are topped up to ceil(density * inputs), and an input nobody
        listens to gets one connection.

        `block` consecutive outputs of a group listen to the same inputs, for kernels that use each loaded vector so often:
        what is drawn is (input, block) pairs, and all of the above holds for those. 1 is the paper's pattern; "auto" the
        largest of 4, 2 and 1 that divides the outputs of a group and forces no connections that the density does not
        ask for (see `best_block`).

        Raises ValueError for a density outside (0, 1], an unknown pattern, and a block that does not divide the outputs of
        a group or needs more density, as every input is heard by at least one block.
        """
        _check_channels(in_channels, out_channels, groups)
        check_density(density)
        none = np.zeros(out_channels + 1, np.int32)
        empty = cls(in_channels, out_channels, none, none[:0], groups, pattern, seed)
        return empty._grown(density, _checked_block(block, in_channels, out_channels, density, groups))

    @classmethod
    def from_mask(cls, mask: np.ndarray, groups: int = 1) -> Connectivity:
        """The connections that a boolean matrix [out_channels, in_channels] switches on."""
        mask = np.asarray(mask)
        if mask.ndim != 2 or mask.dtype != np.bool_:
            raise TypeError(f"mask must be a boolean matrix [out_channels, in_channels], got {mask.dtype} {mask.shape}")
        return cls.from_positions(mask.shape[1], mask.shape[0], np.flatnonzero(mask), groups=groups)

    @classmethod
    def from_positions(cls, in_channels: int, out_channels: int, positions: np.ndarray, **fields: Any) -> Connectivity:
        """From ascending flat positions `out * in_channels + in`, the inverse of `positions`."""
        rows, indices = np.divmod(np.asarray(positions, dtype=np.int64), in_channels)
        indptr = np.zeros(out_channels + 1, dtype=np.int64)
        counts = np.bincount(rows, minlength=out_channels)
        np.cumsum(counts, out=indptr[1:])
        return cls(in_channels, out_channels, indptr, indices, **fields)

    # -- views --------------------------------------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return int(self.indptr[-1])

    @property
    def possible(self) -> int:
        """How many connections there could be: all, or those within the groups."""
        return self.in_channels * self.out_channels // self.groups

    @property
    def density(self) -> float:
        """The fraction of the possible connections that exist (the paper's alpha)."""
        return self.connections / self.possible

    @property
    def fan_in(self) -> np.ndarray:
        """Connections of each output channel, [out_channels]."""
        return np.diff(self.indptr)

    @property
    def fan_out(self) -> np.ndarray:
        """Connections of each input channel, [in_channels]."""
        return np.bincount(self.indices, minlength=self.in_channels)

    @property
    def rows(self) -> np.ndarray:
        """The output channel of each connection, [connections]."""
        return np.repeat(np.arange(self.out_channels), self.fan_in)

    @property
    def positions(self) -> np.ndarray:
        """The flat position `out * in_channels + in` of each connection, ascending, [connections]."""
        return self.rows * self.in_channels + self.indices

    def mask(self) -> np.ndarray:
        """The boolean matrix [out_channels, in_channels] of live connections."""
        mask = np.zeros(self.out_channels * self.in_channels, dtype=np.bool_)
        mask[self.positions] = True
        return mask.reshape(self.out_channels, self.in_channels)

    @cached_property
    def block(self) -> int:
        """How many consecutive outputs of a group listen to the same inputs: the largest number for which all do.

        Derived from the rows, whoever made them. 1 for most patterns; all outputs of a group for a full pattern; 1 for an
        empty one, which shares nothing.
        """
        if not self.connections:
            return 1
        fan_in, rows = self.fan_in, self.rows
        before = np.arange(self.connections) - fan_in[rows]  # the same place in the row before, if that is as long
        new = np.bincount(rows, weights=self.indices[before] != self.indices, minlength=self.out_channels) > 0
        new[1:] |= fan_in[1:] != fan_in[:-1]
        # Blocks end where a row differs from the one before: their size divides all of these places.
        return int(np.gcd.reduce(np.append(np.flatnonzero(new), self.out_channels // self.groups)))

    # -- new values from this one -------------------------------------------------------------------------------------

    def transpose(self) -> Connectivity:
        """The same connections seen from the inputs: who listens to each input channel."""
        order = np.argsort(self.indices, kind="stable")
        indptr = np.concatenate([[0], np.cumsum(self.fan_out)])
        return replace(
            self,
            in_channels=self.out_channels,
            out_channels=self.in_channels,
            indptr=indptr,
            indices=self.rows[order],
        )

    def grow(self, density: float) -> Connectivity:
        """Every old connection and new ones beside them, up to `density` of those possible (section 3.2.1).

        `balanced` keeps fan-ins and fan-outs as even as the old connections allow: within one of each other, except
        where a tiny or uneven start leaves no such choice. `uniform` lowers the bar on the scores of the same seed.
        Outputs that share their inputs go on sharing them: growth is in whole blocks (`block`).
        Raises ValueError when the density is outside (0, 1] or below what exists.
        """
        return self._grown(density, self.block)

    def _grown(self, density: float, block: int) -> Connectivity:
        check_density(density)
        blocks = self.merged(block)
        if round(density * blocks.possible) < blocks.connections and not self.repaired:
            raise ValueError(
                f"cannot grow to density {density:g}: the pattern already has density {self.density:g} "
                f"({self.connections} of {self.possible} connections)"
            )
        new, repaired = PATTERNS[self.pattern](blocks._by_group(), density, self.seed)
        row, column = np.nonzero(new.reshape(blocks.out_channels, -1))
        first = row // new.shape[1] * new.shape[2]  # input of the output's group
        return self.from_positions(
            self.in_channels,
            blocks.out_channels,
            row * self.in_channels + first + column,
            groups=self.groups,
            pattern=self.pattern,
            seed=self.seed,
            repaired=repaired,
        ).repeated(block)

    def asked(self, density: float) -> int:
        """How many connections a density asks of this pattern: the whole number of blocks that is nearest."""
        return self.block * round(density * (self.possible // self.block))

    def merged(self, block: int) -> Connectivity:
        """Every `block` consecutive outputs, which must listen to the same inputs, as one output."""
        if self.connections and self.block % block:
            raise ValueError(f"{self!r} has no blocks of {block} outputs that share their inputs")
        return replace(
            self,
            out_channels=self.out_channels // block,
            indptr=np.concatenate([[0], np.cumsum(self.fan_in[::block])]),
            indices=self.indices[self.rows % block == 0],
            repaired=self.repaired // block,
        )

    def repeated(self, block: int) -> Connectivity:
        """Every output as `block` consecutive ones that listen to the same inputs; the inverse of `merged`."""
        fan_in = np.repeat(self.fan_in, block)
        indptr = np.concatenate([[0], np.cumsum(fan_in)])
        source = np.arange(indptr[-1]) + np.repeat(np.repeat(self.indptr[:-1], block) - indptr[:-1], fan_in)
        return replace(
            self,
            out_channels=self.out_channels * block,
            indptr=indptr,
            indices=self.indices[source],
            repaired=self.repaired * block,
        )

    def redrawn(
        self, in_channels: int, out_channels: int, density: float, *, groups: int = 1, seed: int | None = None
    ) -> Connectivity:
        """Random connections among other channels, drawn the way these were: in as large a part of `block` as fits."""
        block = best_block(in_channels, out_channels, density, groups, self.block)
        seed = self.seed if seed is None else seed
        return self.random(
            in_channels, out_channels, density, pattern=self.pattern, seed=seed, groups=groups, block=block
        )

    def _by_group(self) -> np.ndarray:
        """The possible connections, boolean [groups, outputs, inputs] with the channels of one group."""
        width, height = self.in_channels // self.groups, self.out_channels // self.groups
        there = np.zeros(self.possible, dtype=np.bool_)
        there[self.rows * width + self.indices % width] = True
        return there.reshape(self.groups, height, width)

    def drawn_like(self, other: Connectivity) -> Connectivity:
        """The same connections, to be grown the way `other` would be."""
        return replace(self, pattern=other.pattern, seed=other.seed, repaired=other.repaired)

    # -- value semantics ----------------------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        """Equal when the same connections exist among the same channels, however they were drawn."""
        if not isinstance(other, Connectivity):
            return NotImplemented
        shape = (self.in_channels, self.out_channels, self.groups)
        return (
            shape == (other.in_channels, other.out_channels, other.groups)
            and np.array_equal(self.indptr, other.indptr)
            and np.array_equal(self.indices, other.indices)
        )

    def __hash__(self) -> int:
        return hash((self.in_channels, self.out_channels, self.indptr.tobytes(), self.indices.tobytes()))

    def __repr__(self) -> str:
        groups = f", groups={self.groups}" if self.groups > 1 else ""
        block = f", block={self.block}" if self.block > 1 and self.density < 1 else ""
        return (
            f"Connectivity({self.in_channels} -> {self.out_channels}, {self.connections} connections, "
            f"density {self.density:.4g}{groups}{block})"
        )


def check_density(density: float, what: str = "density") -> None:
    """Raise unless `density` is a number in (0, 1]."""
    if isinstance(density, bool) or not isinstance(density, (int, float, np.floating)):
        raise TypeError(f"{what} must be a number in (0, 1], got {type(density).__name__} {density!r}")
    if not (math.isfinite(density) and 0 < density <= 1):
        raise ValueError(f"{what} must be in (0, 1], got {density!r}")


def best_block(in_channels: int, out_channels: int, density: float, groups: int = 1, most: int = 4) -> int:
    """The largest divisor of `most` that divides the outputs of a group and forces no more connections than asked for.

    An input that is heard at all costs a connection for each output of a block. So blocks of B outputs need a density
    of B / outputs, lest an input is dead, or connections beyond it; outputs that need one each anyway allow them too.
    """
    return max(b for b in range(1, most + 1) if most % b == 0 and _fits(b, in_channels, out_channels, density, groups))


def _fits(block: int, in_channels: int, out_channels: int, density: float, groups: int) -> bool:
    asked = round(density * (in_channels * out_channels // groups // block))
    divides = out_channels // groups % block == 0
    return block == 1 or (divides and in_channels <= max(asked, out_channels // block))


def _checked_block(block: int | str, *layer: Any) -> int:
    """The block as a number, if it fits `layer`: in_channels, out_channels, density, groups."""
    if block == "auto":
        return best_block(*layer)
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise ValueError(f'block must be a positive integer or "auto", got {block!r}')
    if not _fits(block, *layer):
        _, outputs, density, groups = layer
        nearest = max(b for b in range(1, block) if _fits(b, *layer))
        if outputs // groups % block:
            why = f"blocks of {block} do not divide {outputs // groups} outputs"
        else:
            least = block * groups / outputs
            why = f"blocks of {block} need a density of at least {least:.4g}, lest an input is dead, got {density:g}"
        raise ValueError(f"{why}; the largest below that fit are of {nearest}")
    return block


def _check_channels(in_channels: int, out_channels: int, groups: int) -> None:
    if in_channels < 1 or out_channels < 1:
        raise ValueError(f"channel counts must be positive, got {in_channels} -> {out_channels}")
    if groups < 1 or in_channels % groups or out_channels % groups:
        raise ValueError(f"groups must divide both channel counts, got {groups} for {in_channels} -> {out_channels}")


def _check_pattern(pattern: str) -> None:
    if pattern not in PATTERNS:
        raise ValueError(f"pattern must be one of {', '.join(PATTERNS)}, got {pattern!r}")
