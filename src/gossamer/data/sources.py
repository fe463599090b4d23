"""Where small sets come from: files that scikit-learn installs, torchvision's loaders, .npz files."""

from __future__ import annotations

import importlib.util
import math
import os
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]
"""Training images uint8 `[n, c, h, w]`, their labels, test images, their labels, class names."""


CLASSES = 1 << 16
"""How many classes a set may have: each is an output of the network."""
DEFLATED = 1040
"""How many bytes one byte of a compressed archive can stand for at most."""
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def data_root(root: str | Path | None) -> Path:
    """The folder of the named data sets: `root`, else $GOSSAMER_DATA, else the user's cache."""
    if root is not None:
        return Path(root).expanduser()
    if configured := os.environ.get("GOSSAMER_DATA"):
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gossamer" / "data"


def digits(_root: Path) -> Arrays:
    """1797 handwritten digits of 8x8 pixels, 1437 to train on (Alpaydin and Kaynak, in scikit-learn).

    The file is read without importing scikit-learn, which would load a second OpenMP runtime beside torch's.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "the data set digits comes with scikit-learn; install it with `pip install scikit-learn`"
        )
    table = np.loadtxt(Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",", dtype=np.int64)
    images = np.round(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = table[:, 64]
    order = np.argsort(np.arange(len(labels)) * 0x9E3779B1 % 2**32)  # a fixed mix: neighbours have one writer
    train, test = order[:1437], order[1437:]
    return images[train], labels[train], images[test], labels[test], tuple("0123456789")


def npz(path: Path) -> Arrays:
    """x_train, y_train, x_test, y_test of an .npz file: uint8 `[n, h, w]` or `[n, h, w, c]`, and class numbers."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    names = ("x_train", "y_train", "x_test", "y_test")
    try:
        with zipfile.ZipFile(path) as archive:
            there = {entry.filename: entry for entry in archive.infolist()}
            lacking = [name for name in names if f"{name}.npy" not in there]
            parts = {} if lacking else {name: _array(archive, there[f"{name}.npy"]) for name in names}
    except Exception as error:  # what a damaged archive can make of its readers is not known
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path} cannot be read as an .npz file of plain arrays: {reason}") from None
    if lacking:
        raise ValueError(f"{path} lacks an array: {lacking[0]}; needed are {', '.join(names)}")
    images = [_planes(parts[name], f"{name} of {path}") for name in ("x_train", "x_test")]
    labels = [_labels(parts[f"y_{s}"], len(parts[f"x_{s}"]), f"y_{s} of {path}") for s in ("train", "test")]
    if images[0].shape[1:] != images[1].shape[1:]:
        raise ValueError(f"{path} holds training images {images[0].shape[1:]} but test images {images[1].shape[1:]}")
    classes = tuple(str(label) for label in range(int(max(part.max() for part in labels)) + 1))
    return images[0], labels[0], images[1], labels[1], classes


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """The plain array in a member of an archive, when there is as much of it as it claims."""
    if entry.file_size > DEFLATED * max(1, entry.compress_size):
        raise ValueError(f"{entry.filename} claims {entry.file_size:,} bytes in {entry.compress_size:,}")
    with archive.open(entry) as member:
        version = np.lib.format.read_magic(member)
        if version not in HEADERS:
            raise ValueError(f"{entry.filename} is no plain array")
        shape, _, dtype = HEADERS[version](member)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or min(shape, default=0) < 0 or size != entry.file_size - member.tell():
            raise ValueError(f"{entry.filename} claims {dtype} {list(shape)}, and holds {entry.file_size:,} bytes")
    with archive.open(entry) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _planes(images: np.ndarray, what: str) -> np.ndarray:
    """`[n, h, w]`, `[n, h, w, c]` or `[n, c, h, w]`, c 1 or 3, as `[n, c, h, w]`."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.size == 0:
        raise ValueError(
            f"{what} is {images.dtype} {list(images.shape)}; needed is uint8 [n, h, w] or [n, h, w, 1 or 3]"
        )
    if images.ndim == 3:
        return images[:, None]
    if images.shape[3] in (1, 3):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if images.shape[1] in (1, 3):
        return images
    raise ValueError(f"{what} has shape {list(images.shape)}; its last number should be 1 or 3, the channels")


def _labels(labels: np.ndarray, count: int, what: str, classes: int = CLASSES) -> np.ndarray:
    """`count` class numbers from 0, else ValueError."""
    if labels.dtype.kind not in "iu" or labels.reshape(-1).shape != (count,) or labels.min() < 0:
        raise ValueError(f"{what} is {labels.dtype} {list(labels.shape)}; needed are {count} class numbers from 0")
    if labels.max() >= classes:
        raise ValueError(f"{what} has class number {labels.max()}; there can be {classes:,} classes")
    return labels.reshape(-1)


def _downloaded(dataset: Callable[..., Any], name: str, folder: Path, root: Path) -> list[Any]:
    """The training and test halves under `root`, downloaded if they are not there."""
    try:
        return [dataset(root, train=half) for half in (True, False)]
    except RuntimeError as error:
        if not str(error).startswith("Dataset not found"):
            raise
    try:
        return [dataset(root, train=half, download=True) for half in (True, False)]
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".:")
        raise FileNotFoundError(
            f"{name} is not in {folder} and could not be downloaded ({reason}); put its files there, or name "
            "the folder that holds them with --data-root or GOSSAMER_DATA"
        ) from None


def _from_torchvision(name: str, folder: str, root: Path) -> Arrays:
    """torchvision's data set class `name` under `root`, downloaded when it is not there."""
    from gossamer._torchvision import torchvision

    dataset = getattr(torchvision.datasets, name)
    try:
        train, test = _downloaded(dataset, name, root / folder, root)
    except FileNotFoundError:
        raise
    except Exception as error:  # torchvision's readers believe what a file says
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the files of {name} in {root / folder} are damaged ({reason}); delete that folder") from None
    images = [_planes(np.asarray(part.data), name) for part in (train, test)]
    classes = tuple(train.classes)
    labels = [
        _labels(np.asarray(part.targets), len(part.data), f"the labels of {name}", len(classes))
        for part in (train, test)
    ]
    return images[0], labels[0], images[1], labels[1], classes


NAMES: dict[str, Callable[[Path], Arrays]] = {
    "digits": digits,
    "mnist": partial(_from_torchvision, "MNIST", "MNIST/raw"),
    "fashion-mnist": partial(_from_torchvision, "FashionMNIST", "FashionMNIST/raw"),
    "cifar10": partial(_from_torchvision, "CIFAR10", "cifar-10-batches-py"),
    "cifar100": partial(_from_torchvision, "CIFAR100", "cifar-100-python"),
}
"""The data sets that have a name, and how each is read from the data folder."""
