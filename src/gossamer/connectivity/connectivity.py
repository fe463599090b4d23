"""Which input channels each output channel listens to (the paper, section 3.2): one frozen value for every pattern."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gossamer.connectivity import balanced, uniform
from gossamer.connectivity.hashing import derive

PATTERNS = ("balanced", "uniform")


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
    ) -> Connectivity:
        """Random connections (section 3.2): a `density` in (0, 1] of those possible, the same for a seed everywhere.

        `balanced`: exactly round(density * possible) connections, but at least one for every channel; fan-ins differ
        by at most one, and so do fan-outs. `uniform` (the paper's): every connection gets a uniform score and is on
        when its score is below the density; outputs are topped up to ceil(density * inputs), and an input nobody
        listens to gets one connection. Raises ValueError for a density outside (0, 1] or an unknown pattern.
        """
        _check_channels(in_channels, out_channels, groups)
        none = np.zeros(out_channels + 1, np.int32)
        empty = cls(in_channels, out_channels, none, none[:0], groups, pattern, seed)
        return empty.grow(density)

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
        Raises ValueError when the density is outside (0, 1] or below what exists.
        """
        check_density(density)
        width, height = self.in_channels // self.groups, self.out_channels // self.groups
        goals = None
        if self.pattern == "balanced":
            # One split for all groups, so that fan-ins differ by at most one over the whole layer.
            goal = max(round(density * self.possible), max(width, height) * self.groups)
            goals = [goal // self.groups + (g < goal % self.groups) for g in range(self.groups)]
        if round(density * self.possible) < self.connections and not self.repaired:
            raise ValueError(
                f"cannot grow to density {density:g}: the pattern already has density {self.density:g} "
                f"({self.connections} of {self.possible} connections)"
            )
        old = self.mask()
        new = old.copy()
        repaired = 0
        for g in range(self.groups):
            block = np.s_[g * height : (g + 1) * height, g * width : (g + 1) * width]
            seed = derive(self.seed, f"group {g}")
            if goals is not None:
                new[block] = balanced.balanced(old[block], goals[g], seed)
            else:
                new[block], added = uniform.uniform(old[block], density, seed)
                repaired += added
        if goals is not None:
            repaired = max(0, int(new.sum()) - round(density * self.possible))
        return self.from_positions(
            self.in_channels,
            self.out_channels,
            np.flatnonzero(new),
            groups=self.groups,
            pattern=self.pattern,
            seed=self.seed,
            repaired=repaired,
        )

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
        return (
            f"Connectivity({self.in_channels} -> {self.out_channels}, {self.connections} connections, "
            f"density {self.density:.4g}{groups})"
        )


def check_density(density: float, what: str = "density") -> None:
    """Raise unless `density` is a number in (0, 1]."""
    if isinstance(density, bool) or not isinstance(density, (int, float, np.floating)):
        raise TypeError(f"{what} must be a number in (0, 1], got {type(density).__name__} {density!r}")
    if not (math.isfinite(density) and 0 < density <= 1):
        raise ValueError(f"{what} must be in (0, 1], got {density!r}")


def _check_channels(in_channels: int, out_channels: int, groups: int) -> None:
    if in_channels < 1 or out_channels < 1:
        raise ValueError(f"channel counts must be positive, got {in_channels} -> {out_channels}")
    if groups < 1 or in_channels % groups or out_channels % groups:
        raise ValueError(f"groups must divide both channel counts, got {groups} for {in_channels} -> {out_channels}")


def _check_pattern(pattern: str) -> None:
    if pattern not in PATTERNS:
        raise ValueError(f"pattern must be one of {', '.join(PATTERNS)}, got {pattern!r}")
