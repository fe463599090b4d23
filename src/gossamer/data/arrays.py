"""Small sets: all images in memory as uint8, shifted and mirrored a batch at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from gossamer.data.split import WHOLE, Share, epoch_order

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gossamer.data.split import Batch


class ArraySplit:
    """Images uint8 `[n, c, h, w]` with labels int64 `[n]`; training shifts and mirrors them."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, *, shift: int = 0, flip: bool = False) -> None:
        self.images = np.ascontiguousarray(images)
        self.labels = labels.astype(np.int64)
        self.shift = shift
        self.flip = flip
        self.skipped: Mapping[str, str] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def training_batches(self, batch_size: int, seed: int, start: int = 0, share: Share = WHOLE) -> Iterator[Batch]:
        order, seeds = epoch_order(len(self), batch_size, seed)
        for rows, batch_seed in zip(order[start:], seeds[start:].tolist(), strict=True):
            # Drawn for the whole batch, so that an image is changed alike whichever process takes it.
            generator = np.random.Generator(np.random.PCG64(batch_seed))
            offsets = generator.integers(0, 2 * self.shift, (len(rows), 2), endpoint=True)
            mirrored = generator.random(len(rows)) < (0.5 if self.flip else 0)
            mine = share.of(rows)
            images = _changed(self.images[mine], self.shift, share.of(offsets), share.of(mirrored))
            yield torch.from_numpy(images), torch.from_numpy(self.labels[mine])

    def test_batches(self, batch_size: int, share: Share = WHOLE) -> Iterator[Batch]:
        mine = share.of(np.arange(len(self)))
        for start in range(0, len(mine), batch_size):
            rows = mine[start : start + batch_size]
            yield torch.from_numpy(self.images[rows]), torch.from_numpy(self.labels[rows])


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 `[n, c, h, w]`, from a histogram; 255 is 1."""
    values = np.arange(256) / 255
    shares = [np.bincount(images[:, c].reshape(-1), minlength=256) / images[:, c].size for c in range(images.shape[1])]
    means = [float(share @ values) for share in shares]
    stds = [float(np.sqrt(share @ (values - mean) ** 2)) for share, mean in zip(shares, means, strict=True)]
    return tuple(means), tuple(std or 1.0 for std in stds)


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 `[n, c, h, w]` -> `[n, c, size, size]`, bilinear with antialiasing, a thousand images at a time."""
    if images.shape[2:] == (size, size):
        return images
    resized = np.empty((*images.shape[:2], size, size), np.uint8)
    for start in range(0, len(images), 1000):
        part = torch.from_numpy(np.ascontiguousarray(images[start : start + 1000]))
        floats = F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True)
        resized[start : start + 1000] = floats.round().clamp(0, 255).to(torch.uint8).numpy()
    return resized


def _changed(images: np.ndarray, shift: int, offsets: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """Each image cut out of its zero-padded self at its `offsets` (0 .. 2*shift, down and right), maybe mirrored.

    Plain copies of memory: four times as fast as indexing in tensors, and they start no threads.
    """
    count, channels, height, width = images.shape
    padded = np.zeros((count, channels, height + 2 * shift, width + 2 * shift), np.uint8)
    padded[:, :, shift : shift + height, shift : shift + width] = images
    changed = np.empty_like(images)
    for i, ((down, right), mirror) in enumerate(zip(offsets.tolist(), mirrored.tolist(), strict=True)):
        window = padded[i, :, down : down + height, right : right + width]
        changed[i] = window[:, :, ::-1] if mirror else window
    return changed
