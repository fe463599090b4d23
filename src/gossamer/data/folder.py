"""Image folders: one folder of files for each class, decoded and cropped in worker processes as ImageNet usually is."""

from __future__ import annotations

import importlib
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from gossamer.data.split import WHOLE, Share, epoch_order

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gossamer.data.split import Batch

    Failure = tuple[str, str]  # path, reason
    Key = tuple[int, int | None]  # which image; seed of its augmentation, None to leave it as it is
    Sample = tuple[torch.Tensor | None, int, list[Failure]]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's training set; what pretrained networks expect."""

FOLDERS = {"training": ("train", "training"), "validation": ("val", "validation", "test")}
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
"""What Pillow raises for files that are damaged or no images (SyntaxError is its word for a broken PNG)."""


class ImageFiles(Dataset["Sample"]):
    """Image files with class numbers; an item is decoded, cropped to `size` and augmented by the seed in its key."""

    def __init__(self, files: Sequence[tuple[str, int]], size: int, augment: str) -> None:
        v2 = _transforms()
        self.files = list(files)
        self.middle = _middle(shorter_side(size), (size, size))
        flips = [] if augment == "shift" else [v2.RandomHorizontalFlip()]
        crops = v2.Compose([v2.RandomResizedCrop(size), *flips, v2.PILToTensor()])
        self.augmented = self.middle if augment == "none" else crops

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: Key) -> Sample:
        """Image (None if unreadable), label, failures. In training the next readable image stands in for a bad one."""
        index, seed = key
        failures: list[Failure] = []
        for path, label in self._from(index) if seed is not None else [self.files[index]]:
            try:
                return self._read(path, seed), label, failures
            except UNREADABLE as error:
                failures.append((path, str(error).splitlines()[0] if str(error) else type(error).__name__))
        if seed is not None:
            raise ValueError(
                f"none of the {len(self)} training images can be read; the first failed with {failures[0]}"
            )
        return None, -1, failures

    def _from(self, index: int) -> Iterator[tuple[str, int]]:
        yield from self.files[index:]
        yield from self.files[:index]

    def _read(self, path: str, seed: int | None) -> torch.Tensor:
        """uint8 `[3, size, size]`."""
        with torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.manual_seed(seed)
            image: torch.Tensor = (self.middle if seed is None else self.augmented)(_decoded(path, 3))
        return image


class FolderSplit:
    """The images of one half of a folder, decoded by `workers` processes."""

    def __init__(self, files: ImageFiles, workers: int) -> None:
        self.files = files
        self.workers = workers
        self.skipped: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.files)

    def training_batches(self, batch_size: int, seed: int, start: int = 0, share: Share = WHOLE) -> Iterator[Batch]:
        order, seeds = epoch_order(len(self), batch_size, seed)
        keys = np.stack([order, seeds[:, None] + np.arange(order.shape[1])], axis=2)[start:]
        return self._batches([[(i, s) for i, s in share.of(batch).tolist()] for batch in keys])

    def test_batches(self, batch_size: int, share: Share = WHOLE) -> Iterator[Batch]:
        mine = share.of(np.arange(len(self))).tolist()
        return self._batches([[(i, None) for i in mine[s : s + batch_size]] for s in range(0, len(mine), batch_size)])

    def _batches(self, keys: list[list[Key]]) -> Iterator[Batch]:
        loader = DataLoader(self.files, batch_sampler=keys, num_workers=self.workers, collate_fn=_collate)
        for images, labels, failures in loader:
            self.skipped.update(failures)
            if len(labels):
                yield images, labels


def splits(path: Path, size: int, augment: str, workers: int) -> tuple[FolderSplit, FolderSplit, tuple[str, ...]]:
    """Training and validation images of `path`, and the class names: the folder names, sorted."""
    from gossamer._torchvision import torchvision

    found = {}
    for half, names in FOLDERS.items():
        where = next((path / name for name in names if (path / name).is_dir()), None)
        if where is None:
            raise FileNotFoundError(
                f"{path} has no folder of {half} images; it needs {' or '.join(names)}, one folder a class"
            )
        try:
            found[half] = torchvision.datasets.ImageFolder(where, allow_empty=True)
        except FileNotFoundError:
            raise ValueError(f"{where} holds no class folders; images belong in {where}/CLASS/") from None
        if not found[half].samples:
            raise ValueError(
                f"{where} holds no images; known endings are {', '.join(torchvision.datasets.folder.IMG_EXTENSIONS)}"
            )
    train, val = found["training"], found["validation"]
    if train.classes != val.classes:
        different = ", ".join(sorted(set(train.classes) ^ set(val.classes))[:5])
        raise ValueError(f"training and validation images of {path} have different class folders: {different}")
    return (
        FolderSplit(ImageFiles(train.samples, size, augment), workers),
        FolderSplit(ImageFiles(val.samples, size, augment), workers),
        tuple(train.classes),
    )


def shorter_side(size: int) -> int:
    """Shorter side to which a picture is scaled before its middle `size` x `size` is cut out, as for ImageNet."""
    return round(size / 0.875)


def read_picture(path: str | Path, shape: tuple[int, int, int], shorter: int) -> torch.Tensor:
    """A picture file as uint8 `shape` (channels, height, width): its middle, scaled. Raises one of UNREADABLE."""
    picture: torch.Tensor = _middle(shorter or min(shape[1:]), shape[1:])(_decoded(path, shape[0]))
    return picture


def _middle(shorter: int, size: tuple[int, int]) -> Any:
    """The transform from a Pillow image to the uint8 tensor of its middle."""
    v2 = _transforms()
    return v2.Compose([v2.Resize(shorter), v2.CenterCrop(size), v2.PILToTensor()])


def _transforms() -> Any:
    importlib.import_module("gossamer._torchvision")
    return importlib.import_module("torchvision.transforms.v2")


def _decoded(path: str | Path, channels: int) -> Any:
    """The Pillow image in a file, in colour or grey."""
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB" if channels == 3 else "L")


def _collate(samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor, list[Failure]]:
    """Readable images in one tensor, their labels, and all failures."""
    images = [image for image, _, _ in samples if image is not None]
    labels = torch.tensor([label for image, label, _ in samples if image is not None], dtype=torch.int64)
    stacked = torch.stack(images) if images else torch.empty(0, 3, 1, 1, dtype=torch.uint8)
    return stacked, labels, [failure for _, _, failures in samples for failure in failures]
