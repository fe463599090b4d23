"""Data sets: what is loaded, in which order, how it is augmented, and what bad files lead to."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gossamer import data
from gossamer.data.arrays import ArraySplit, channel_statistics, resize
from gossamer.data.pictures import read_picture
from gossamer.data.split import Share, epoch_order


def test_digits_are_all_there_in_two_disjoint_halves() -> None:
    digits = data.load("digits")
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert digits.image_shape == (1, 8, 8)
    assert digits.classes == tuple("0123456789")
    for split in (digits.train, digits.test):
        _, labels = next(iter(split.test_batches(len(split))))
        assert (torch.bincount(labels, minlength=10) / len(labels)).min() > 0.07


def test_digits_do_not_import_scikit_learn() -> None:
    code = "import sys; from gossamer import data; data.load('digits'); sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_normalised_training_images_have_mean_0_and_deviation_1() -> None:
    digits = data.load("digits")
    images, _ = next(iter(digits.train.test_batches(len(digits.train))))
    floats = digits.normalise(images)
    assert floats.mean().abs() < 1e-5
    assert (floats.std() - 1).abs() < 1e-3


@given(size=st.integers(1, 200), batch=st.integers(1, 64), seed=st.integers(0, 2**62))
def test_an_epoch_visits_no_image_twice_and_is_the_same_for_a_seed(size: int, batch: int, seed: int) -> None:
    order, seeds = epoch_order(size, batch, seed)
    assert order.shape == (max(1, size // batch), min(size, batch))
    assert len(np.unique(order)) == order.size
    again = epoch_order(size, batch, seed)
    assert np.array_equal(order, again[0])
    assert np.array_equal(seeds, again[1])


def numbered(count: int, channels: int = 1, side: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Random images, each labelled with its index."""
    images = np.random.default_rng(0).integers(1, 256, (count, channels, side, side), dtype=np.uint8)
    return images, np.arange(count)


@given(start=st.integers(0, 5), world=st.integers(1, 4))
def test_processes_share_each_batch_and_a_resumed_epoch_is_its_own_rest(start: int, world: int) -> None:
    split = ArraySplit(*numbered(50), shift=2, flip=True)
    whole = list(split.training_batches(8, seed=3))[start:]
    shares = [list(split.training_batches(8, 3, start, Share(rank, world))) for rank in range(world)]
    for step, (images, labels) in enumerate(whole):
        for rank, mine in enumerate(shares):
            assert torch.equal(mine[step][0], images[rank::world])
            assert torch.equal(mine[step][1], labels[rank::world])


def test_augmented_images_are_shifted_and_mirrored_originals() -> None:
    images, labels = numbered(40)
    split = ArraySplit(images, labels, shift=1, flip=True)
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    seen = set()
    for changed, indices in split.training_batches(10, seed=1):
        for image, index in zip(changed.numpy(), indices.tolist(), strict=True):
            ways = {
                (down, right, mirror): padded[index, :, down : down + 6, right : right + 6][
                    :, :, :: -1 if mirror else 1
                ]
                for down in range(3)
                for right in range(3)
                for mirror in (False, True)
            }
            found = [way for way, expected in ways.items() if np.array_equal(image, expected)]
            assert len(found) == 1
            seen.update(found)
    assert len(seen) > 10


def test_augment_none_and_test_batches_leave_images_alone() -> None:
    split = data.load("digits", augment="none").train
    assert isinstance(split, ArraySplit)
    images, labels = next(iter(split.training_batches(64, seed=0)))
    matches = (split.images[:, None] == images.numpy()[None]).all(axis=(2, 3, 4))
    assert matches.any(axis=0).all()
    unchanged = torch.cat([batch for batch, _ in split.test_batches(100)])
    assert np.array_equal(unchanged.numpy(), split.images)
    assert len(labels) == 64


def test_statistics_and_resizing() -> None:
    images, _ = numbered(20, channels=3)
    means, stds = channel_statistics(images)
    assert means == pytest.approx(tuple((images / 255).mean(axis=(0, 2, 3))))
    assert stds == pytest.approx(tuple((images / 255).std(axis=(0, 2, 3))))
    flat = np.full((3, 1, 4, 4), 7, np.uint8)
    assert np.array_equal(resize(flat, 9), np.full((3, 1, 9, 9), 7, np.uint8))
    assert data.load("digits", image_size=12).image_shape == (1, 12, 12)


# -- .npz -------------------------------------------------------------------------------------------------------------


def write_npz(path: Path, **changes: np.ndarray | None) -> Path:
    arrays: dict[str, np.ndarray | None] = {
        "x_train": np.arange(6 * 8 * 8 * 3, dtype=np.uint8).reshape(6, 8, 8, 3),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": np.zeros((3, 8, 8, 3), np.uint8),
        "y_test": np.array([0, 1, 3]),
        **changes,
    }
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_npz_with_channels_last_first_or_none(tmp_path: Path) -> None:
    last = data.load(str(write_npz(tmp_path / "last.npz")))
    assert (last.image_shape, last.num_classes, last.name) == ((3, 8, 8), 4, "last")
    images, _ = next(iter(last.train.test_batches(6)))
    first = write_npz(tmp_path / "first.npz", x_train=images.numpy(), x_test=np.zeros((3, 3, 8, 8), np.uint8))
    assert torch.equal(next(iter(data.load(str(first)).train.test_batches(6)))[0], images)
    grey = write_npz(tmp_path / "g.npz", x_train=np.zeros((6, 8, 8), np.uint8), x_test=np.zeros((3, 8, 8), np.uint8))
    assert data.load(str(grey)).image_shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"x_test": None}, "lacks an array"),
        ({"x_train": np.zeros((6, 8, 8, 3))}, "is float64"),
        ({"x_train": np.zeros((6, 8, 8, 5), np.uint8)}, "should be 1 or 3"),
        ({"y_train": np.array([0, 1])}, "needed are 6 class numbers"),
        ({"y_train": np.array([0, 1, 2, 0, 1, -1])}, "class numbers from 0"),
        ({"y_test": np.array([0.5, 1, 2])}, "float64"),
        ({"x_test": np.zeros((3, 4, 4, 3), np.uint8)}, "but test images"),
        ({"y_train": np.array([object()] * 6)}, "plain arrays"),
    ],
)
def test_unusable_npz_is_one_sentence(tmp_path: Path, changes: dict[str, np.ndarray | None], complaint: str) -> None:
    path = write_npz(tmp_path / "bad.npz", **changes)
    with pytest.raises(ValueError, match=complaint) as error:
        data.load(str(path))
    assert "bad.npz" in str(error.value)
    assert "\n" not in str(error.value)


def test_npz_that_is_something_else(tmp_path: Path) -> None:
    path = tmp_path / "text.npz"
    path.write_text("not an archive")
    with pytest.raises(ValueError, match=r"text\.npz cannot be read"):
        data.load(str(path))
    with pytest.raises(FileNotFoundError, match="no file"):
        data.load(str(tmp_path / "none.npz"))


# -- names ------------------------------------------------------------------------------------------------------------


def test_unknown_name_lists_what_is_known() -> None:
    with pytest.raises(FileNotFoundError, match=r"no data set or folder 'minst'; known are digits, mnist"):
        data.load("minst")


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_named_set_that_is_neither_there_nor_reachable(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("GOSSAMER_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="could not be downloaded") as error:
        data.load(name)
    assert str(tmp_path) in str(error.value)
    assert "--data-root or GOSSAMER_DATA" in str(error.value)


def test_named_set_in_torchvisions_layout(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 30), ("t10k", 10)):
        images = np.arange(count * 28 * 28).astype(np.uint8)
        header = b"".join(n.to_bytes(4, "big") for n in (0x803, count, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = bytes(i % 10 for i in range(count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(b"".join(n.to_bytes(4, "big") for n in (0x801, count)) + labels)
    mnist = data.load("mnist", tmp_path)
    assert (len(mnist.train), len(mnist.test), mnist.image_shape) == (30, 10, (1, 28, 28))
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\1 damaged")
    with pytest.raises(ValueError, match="are damaged"):
        data.load("mnist", tmp_path)


# -- image folders ----------------------------------------------------------------------------------------------------


def write_folder(path: Path, train: str = "train", val: str = "val", per_class: int = 4) -> Path:
    random = np.random.default_rng(0)
    for half in (train, val):
        for name in ("ant", "bee"):
            (path / half / name).mkdir(parents=True)
            for i in range(per_class):
                picture = random.integers(0, 256, (40 + 10 * i, 60, 3), dtype=np.uint8)
                Image.fromarray(picture).save(path / half / name / f"{i}.jpg")
    return path


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("training", "validation")])
def test_folder(tmp_path: Path, train: str, val: str) -> None:
    photos = data.load(str(write_folder(tmp_path, train, val)), image_size=32, workers=0)
    assert photos.classes == ("ant", "bee")
    assert photos.image_shape == (3, 32, 32)
    batches = list(photos.test.test_batches(3))
    assert [len(labels) for _, labels in batches] == [3, 3, 2]
    assert batches[0][0].dtype == torch.uint8
    assert batches[0][0].shape == (3, 3, 32, 32)
    first = tmp_path / val / "ant" / "0.jpg"
    assert torch.equal(read_picture(first, photos.image_shape, photos.shorter_side), batches[0][0][0])


def test_folder_is_the_same_with_any_number_of_workers_and_processes(tmp_path: Path) -> None:
    path = str(write_folder(tmp_path))
    alone, many = (data.load(path, image_size=32, workers=workers).train for workers in (0, 2))
    epoch = list(alone.training_batches(4, seed=5))
    for (images, labels), (others, other_labels) in zip(epoch, many.training_batches(4, seed=5), strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)
    second = list(alone.training_batches(4, 5, 1, Share(1, 2)))
    assert torch.equal(second[0][0], epoch[1][0][1::2])
    assert not torch.equal(next(alone.training_batches(4, seed=6))[0], epoch[0][0])


def test_unreadable_images_are_named_and_skipped(tmp_path: Path) -> None:
    path = write_folder(tmp_path)
    torn, empty, text = (path / half / "bee" / "1.jpg" for half in ("train", "val", "val"))
    torn.write_bytes(torn.read_bytes()[:300])
    empty.write_bytes(b"")
    text = path / "val" / "bee" / "2.jpg"
    text.write_text("no picture")
    photos = data.load(str(path), image_size=32, workers=1)
    batches = list(photos.train.training_batches(4, seed=0))
    assert [len(labels) for _, labels in batches] == [4, 4]
    assert list(photos.train.skipped) == [str(torn)]
    assert sum(len(labels) for _, labels in photos.test.test_batches(3)) == 6
    assert set(photos.test.skipped) == {str(empty), str(text)}
    assert "cannot identify image" in photos.test.skipped[str(text)]


def test_folder_of_which_nothing_can_be_read(tmp_path: Path) -> None:
    path = write_folder(tmp_path, per_class=1)
    for file in (path / "train").rglob("*.jpg"):
        file.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of the 2 training images can be read"):
        list(data.load(str(path), image_size=32, workers=0).train.training_batches(2, seed=0))


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder of training images; it needs train or training"):
        data.load(str(tmp_path))
    path = write_folder(tmp_path)
    (path / "val" / "wasp").mkdir()
    with pytest.raises(ValueError, match="different class folders: wasp"):
        data.load(str(path))
    (path / "val" / "wasp").rmdir()
    for file in (path / "val").rglob("*.jpg"):
        os.remove(file)
    with pytest.raises(ValueError, match="holds no images"):
        data.load(str(path))
    for name in ("ant", "bee"):
        (path / "val" / name).rmdir()
    with pytest.raises(ValueError, match="holds no class folders"):
        data.load(str(path))


# -- files that claim more than they hold -------------------------------------------------------------------------------


def huge_png(path: Path) -> None:
    """A PNG of 60000 x 60000 pixels in a hundred bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def test_pictures_that_are_too_large_or_no_files_are_skipped_with_a_count(tmp_path: Path) -> None:
    path = write_folder(tmp_path)
    there = path / "val" / "ant"
    huge_png(there / "huge.png")
    (there / "loop.png").symlink_to("loop.png")
    (there / "round").symlink_to(there)  # what is below is listed once
    os.mkfifo(there / "pipe.png")
    photos = data.load(str(path), image_size=32, workers=1)
    assert sum(len(labels) for _, labels in photos.test.test_batches(3)) == 8
    reasons = {Path(name).name: reason for name, reason in photos.test.skipped.items()}
    assert set(reasons) == {"huge.png", "loop.png", "pipe.png"}
    assert "pixels" in reasons["huge.png"]
    assert "no regular file" in reasons["pipe.png"]


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_grey_pictures_of_16_bits_keep_their_shades(ending: str, tmp_path: Path) -> None:
    shades = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(shades).save(tmp_path / f"grey.{ending}")
    for channels in (1, 3):
        found = read_picture(tmp_path / f"grey.{ending}", (channels, 64, 64), 64).numpy()
        assert np.abs(found[0] - shades / 257).max() <= 1
    Image.fromarray(shades.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="no known range"):
        read_picture(tmp_path / "float.tif", (1, 64, 64), 64)


def member(shape: str, dtype: str = "|u1", content: bytes = b"") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_npz_members_that_claim_what_they_do_not_hold(compression: int, tmp_path: Path) -> None:
    path = write_npz(tmp_path / "bad.npz")
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for wrong in ("(1000000000000, 8, 8, 3)", "(-6, 8, 8, 3)", "(" * 400, "(6, 8, 8, 3)"):
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in {**parts, "x_train.npy": member(wrong)}.items():
                archive.writestr(name, content)
        with pytest.raises(ValueError, match=r"bad\.npz cannot be read") as error:
            data.load(str(path))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("label", [2**62, 2**16])
def test_labels_without_end_are_refused(label: int, tmp_path: Path) -> None:
    path = write_npz(tmp_path / "bad.npz", y_train=np.array([0, 1, 2, 0, 1, label]))
    with pytest.raises(ValueError, match=rf"class number {label}; there can be 65,536"):
        data.load(str(path))
