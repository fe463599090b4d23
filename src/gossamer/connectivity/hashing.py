"""Random numbers that never change: a counter hash (SplitMix64), not a generator whose stream a release may alter."""

from __future__ import annotations

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def hashes(seed: int, count: int) -> np.ndarray:
    """`count` independent uint64, the same for a seed on every platform and in every version."""
    start = np.uint64(derive(seed, "stream"))
    return mixed(start + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64))


def permutation(seed: int, count: int) -> np.ndarray:
    """A random order of 0 .. count-1."""
    return np.argsort(hashes(seed, count), kind="stable")


def derive(seed: int, name: str) -> int:
    """A seed below 2**63 for a named part of something that has one seed: layers, groups, attempts."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "little") >> 1


def mixed(z: np.ndarray) -> np.ndarray:
    """The hash of each uint64."""
    z = (z ^ (z >> np.uint64(30))) * _MULTIPLIERS[0]
    z = (z ^ (z >> np.uint64(27))) * _MULTIPLIERS[1]
    return z ^ (z >> np.uint64(31))
