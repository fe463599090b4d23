"""The paper's pattern (section 3.2): every connection has a uniform score and is on when that is below the density."""

from __future__ import annotations

import math

import numpy as np

from gossamer.connectivity.hashing import derive, hashes


def uniform(old: np.ndarray, density: float, seed: int) -> tuple[np.ndarray, int]:
    """Connections whose score is below the density; see `Pattern`.

    Every output keeps at least its ceil(density * inputs) lowest scores, every input at least its lowest.
    """
    new = old.copy()
    repaired = 0
    for g in range(len(old)):
        new[g], added = _grown(old[g], density, derive(seed, f"group {g}"))
        repaired += added
    return new, repaired


def _grown(old: np.ndarray, density: float, seed: int) -> tuple[np.ndarray, int]:
    inputs = old.shape[1]
    scores = hashes(seed, old.size).reshape(old.shape)
    on = old | (density >= 1) | (scores < np.uint64(min(density * 2.0**64, 2.0**64 - 2048)))
    repaired = int((~on.any(1)).sum())
    enough = math.ceil(density * inputs - 1e-9)
    short = np.flatnonzero(on.sum(1) < enough)
    if short.size:
        ranked = np.where(old[short], np.uint64(0), scores[short])
        lowest = np.argpartition(ranked, enough - 1, axis=1)[:, :enough]
        on[short[:, None], lowest] = True
    deaf = np.flatnonzero(~on.any(0))
    on[scores[:, deaf].argmin(0), deaf] = True
    return on, repaired + deaf.size
