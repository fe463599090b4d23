"""Data sets: `load` finds one by name or path and gives its two splits, which yield batches of uint8 images.

Images stay uint8 `[n, c, h, w]` until they are on the device that trains; `DataSet.normalise` makes them float there.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from gossamer.data import arrays, pictures, sources

if TYPE_CHECKING:
    from collections.abc import Callable

    from gossamer.data.split import Split

LARGEST_SIDE = 4096
Augment = Literal["auto", "none", "shift", "shift-flip"]


@dataclass(frozen=True)
class Description:
    """What a network and its predictions need to know of a data set.

    `image_shape` is (channels, height, width); a picture is scaled to `shorter_side` (0: that of the images) before its
    middle is cut out.
    `mean` and `std` are those of each channel over the training set, with 255 as 1.

    Raises ValueError, in one sentence, for what describes no data set.
    """

    name: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shorter_side: int = dataclasses.field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        texts, shape = self.classes, self.image_shape
        if not isinstance(self.name, str) or not isinstance(texts, tuple) or not all(type(c) is str for c in texts):
            raise ValueError("a data set's name and classes must be texts")
        whole = isinstance(shape, tuple) and len(shape) == 3 and all(type(n) is int for n in shape)
        if not texts or not whole or not all(0 < n <= LARGEST_SIDE for n in shape):
            raise ValueError(f"a data set needs classes, and images of three sizes from 1 to {LARGEST_SIDE}")
        if type(self.shorter_side) is not int or not 0 <= self.shorter_side <= 2 * LARGEST_SIDE:
            raise ValueError(f"the shorter side of a picture must be a whole number up to {2 * LARGEST_SIDE}")
        for values, low in ((self.mean, -1e9), (self.std, 1e-9)):
            numbers = isinstance(values, tuple) and all(type(v) in (int, float) and low <= v <= 1e9 for v in values)
            if not numbers or len(values) != shape[0]:
                raise ValueError("a data set needs a mean and a deviation above 0 for each channel")

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 `[n, c, h, w]` -> float32 with mean 0 and deviation 1 over the training set, on the images' device."""
        mean, std = (torch.tensor(v, device=images.device).view(1, -1, 1, 1) * 255 for v in (self.mean, self.std))
        return (images.float() - mean) / std


@dataclass(frozen=True)
class DataSet(Description):
    """A described data set with its training and test images."""

    train: Split
    test: Split

    @property
    def description(self) -> Description:
        """The same without the images."""
        return Description(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Description)})


def load(
    name: str,
    root: str | Path | None = None,
    *,
    image_size: int | None = None,
    augment: Augment = "auto",
    workers: int = 2,
) -> DataSet:
    """The data set `name`: one of `sources.NAMES`, an `.npz` file, or a folder of class folders.

    Arguments:
        root: where the named sets lie or are downloaded to; default $GOSSAMER_DATA, else a user cache folder.
        image_size: side of the images. Default: the set's own; for image folders 224.
        augment: changes to training images. "auto": shifts by up to an eighth of the side, and mirror images where
            there is colour; for image folders random resized crops and mirror images.
        workers: processes that decode the images of an image folder.

    Raises FileNotFoundError or ValueError, in one sentence, when there is no such set or its files are unusable.
    """
    if name in sources.NAMES:
        return _in_memory(name, sources.NAMES[name], sources.data_root(root), image_size, augment)
    path = Path(name).expanduser()
    if path.suffix == ".npz":
        return _in_memory(path.stem, sources.npz, path, image_size, augment)
    if is_image_folder(name):
        size = image_size or 224
        train, test, classes = pictures.splits(path, size, augment, workers)
        shorter = pictures.shorter_side(size)
        shape = (3, size, size)
        return DataSet(path.name, classes, shape, pictures.MEAN, pictures.STD, train, test, shorter_side=shorter)
    known = ", ".join(sources.NAMES)
    raise FileNotFoundError(
        f"there is no data set or folder {name!r}; known are {known}, an .npz file or an image folder"
    )


def is_image_folder(name: str) -> bool:
    """Whether `load(name)` would read a folder of class folders."""
    return name not in sources.NAMES and Path(name).expanduser().is_dir()


def _in_memory(
    name: str, read: Callable[[Path], sources.Arrays], where: Path, image_size: int | None, augment: Augment
) -> DataSet:
    """The data set that `read(where)` returns, resized, normalised and ready to be augmented."""
    images, labels, test_images, test_labels, classes = read(where)
    mean, std = arrays.channel_statistics(images)
    if image_size is not None:
        images, test_images = arrays.resize(images, image_size), arrays.resize(test_images, image_size)
    channels, height, width = images.shape[1:]
    if augment == "auto":
        augment = "shift-flip" if channels == 3 else "shift"
    shift = 0 if augment == "none" else max(height, width) // 8
    train = arrays.ArraySplit(images, labels, shift=shift, flip=augment == "shift-flip")
    test = arrays.ArraySplit(test_images, test_labels)
    shape = (channels, height, width)
    return DataSet(name, classes, shape, mean, std, train, test)
