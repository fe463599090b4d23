"""What every data set's two halves can do, and the order in which an epoch visits the images.

The order is a pure function of a seed: a resumed run skips to its step, and every process takes its share of one order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    Batch = tuple[torch.Tensor, torch.Tensor]  # images uint8 [n, c, h, w], labels int64 [n]


@dataclass(frozen=True)
class Share:
    """Which part of every batch a process takes: rows `rank`, `rank + world`, ... of it."""

    rank: int = 0
    world: int = 1

    def of(self, rows: np.ndarray) -> np.ndarray:
        """This process's rows."""
        return rows[self.rank :: self.world]


WHOLE = Share()


class Split(Protocol):
    """Images with labels, in batches."""

    def __len__(self) -> int:
        """Number of images."""

    @property
    def skipped(self) -> Mapping[str, str]:
        """Unreadable images met so far: path -> what is wrong with it."""

    def training_batches(self, batch_size: int, seed: int, start: int = 0, share: Share = WHOLE) -> Iterator[Batch]:
        """One epoch in the order and with the augmentation that `seed` gives, from batch `start` on."""

    def test_batches(self, batch_size: int, share: Share = WHOLE) -> Iterator[Batch]:
        """Every image once, unchanged, in order."""


def steps_per_epoch(size: int, batch_size: int) -> int:
    """Whole batches in an epoch; a set smaller than a batch is one batch. Images left over sit this epoch out."""
    return max(1, size // batch_size)


def epoch_order(size: int, batch_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images of each batch, int64 `[steps, batch]`, and a seed for each batch, int64 `[steps]`."""
    generator = np.random.Generator(np.random.PCG64(seed))
    steps, batch = steps_per_epoch(size, batch_size), min(size, batch_size)
    order = generator.permutation(size)[: steps * batch].reshape(steps, batch)
    return order, generator.integers(2**62, size=steps)
