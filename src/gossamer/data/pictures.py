"""Image folders: one folder of files for each class, decoded and cropped in worker processes as ImageNet usually is."""

from __future__ import annotations

import importlib
import os
import stat
import warnings
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
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
UNREADABLE = (OSError, ValueError)
"""What `read_picture` raises for files that are damaged, too large or no images."""


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
    found = {}
    for half, names in FOLDERS.items():
        where = next((path / name for name in names if (path / name).is_dir()), None)
        if where is None:
            raise FileNotFoundError(
                f"{path} has no folder of {half} images; it needs {' or '.join(names)}, one folder a class"
            )
        classes = sorted(entry.name for entry in os.scandir(where) if _is_folder(entry))
        if not classes:
            raise ValueError(f"{where} holds no class folders; images belong in {where}/CLASS/")
        files = [(path, label) for label, name in enumerate(classes) for path in _images(where / name)]
        if not files:
            raise ValueError(f"{where} holds no images; known endings are {', '.join(ENDINGS)}")
        found[half] = classes, files
    (classes, training), (others, validation) = found["training"], found["validation"]
    if classes != others:
        different = ", ".join(sorted(set(classes) ^ set(others))[:5])
        raise ValueError(f"training and validation images of {path} have different class folders: {different}")
    return (
        FolderSplit(ImageFiles(training, size, augment), workers),
        FolderSplit(ImageFiles(validation, size, augment), workers),
        tuple(classes),
    )


def _images(folder: Path) -> list[str]:
    """The files below a folder that are named like images, in order. Links are followed, but into no folder twice."""
    found: dict[str, list[str]] = {}
    seen: set[tuple[int, int]] = set()
    waiting = [str(folder)]
    while waiting:
        here = waiting.pop()
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        inside = [entry.path for entry in entries if _is_folder(entry)]
        waiting += reversed(inside)
        found[here] = [e.path for e in entries if e.name.lower().endswith(ENDINGS) and e.path not in inside]
    return [path for here in sorted(found) for path in found[here]]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


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
    """The Pillow image in a file, in colour or grey. Raises one of UNREADABLE."""
    from PIL import Image

    if channels not in (1, 3):
        raise ValueError(f"pictures have 1 or 3 channels, not {channels}")
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no regular file")  # reading from a pipe would wait for ever
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _in_bytes(image).convert("RGB" if channels == 3 else "L")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except OSError:
        raise
    except Exception as error:  # Pillow's readers can trip over a damaged file anywhere
        raise ValueError(str(error) or type(error).__name__) from error


def _in_bytes(image: Any) -> Any:
    """The image in 8 bits a channel. Pillow cuts the values of wider grey images off instead of scaling them."""
    from PIL import Image

    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its pixels ({image.mode}) have no known range")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def _collate(samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor, list[Failure]]:
    """Readable images in one tensor, their labels, and all failures."""
    images = [image for image, _, _ in samples if image is not None]
    labels = torch.tensor([label for image, label, _ in samples if image is not None], dtype=torch.int64)
    stacked = torch.stack(images) if images else torch.empty(0, 3, 1, 1, dtype=torch.uint8)
    return stacked, labels, [failure for _, _, failures in samples for failure in failures]
