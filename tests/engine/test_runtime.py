"""A program away from PyTorch: the runtime of NumPy and the library alone, threads, and C."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gossamer as gs
from engine.mutations import valid_files
from gossamer import runtime
from gossamer.engine.program import Program, compile

ROOT = Path(__file__).parent.parent.parent


def small() -> nn.Module:
    torch.manual_seed(0)
    return gs.sparsify(gs.models.create("mnist", num_classes=10), 0.1).eval()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a small compiled network that takes [1, 28, 28]."""
    path = tmp_path_factory.mktemp("programs") / "digits.gossamer"
    compile(small(), torch.zeros(4, 1, 28, 28)).save(path)
    return path


def test_without_pytorch(digits: Path) -> None:
    """Import, loading and the first result load neither torch nor safetensors; the time they take is printed."""
    code = f"""
import sys, time
start = time.perf_counter()
import numpy
from gossamer import runtime
program = runtime.load({str(digits)!r})
scores = program(numpy.ones((2, 1, 28, 28), numpy.float32))
print(f"{{time.perf_counter() - start:.3f}} s to the first result", file=sys.stderr)
assert scores.shape == (2, 10) and scores.dtype == numpy.float32
heavy = {{"torch", "safetensors", "scipy", "PIL"}} & sys.modules.keys()
assert not heavy, heavy
numpy.save({str(digits.with_suffix(".npy"))!r}, scores)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    print(ended.stderr)
    with torch.no_grad():
        want = small()(torch.ones(2, 1, 28, 28))
    assert np.allclose(np.load(digits.with_suffix(".npy")), want.numpy(), atol=1e-5 * want.abs().max().item())


def test_tensors_and_arrays(digits: Path) -> None:
    program = Program.load(digits)
    images = torch.rand(3, 1, 28, 28)
    made = program(images)
    assert isinstance(made, torch.Tensor)
    assert np.array_equal(made.numpy(), program(images.numpy()))
    assert np.array_equal(made.numpy(), program(**{program.inputs[0].name: images.double()}).numpy())
    assert np.array_equal(made.numpy(), pickle.loads(pickle.dumps(program))(images).numpy())
    assert program(images[:0]).shape == (0, 10)
    with pytest.raises(ValueError, match="batches up to 4; 5 images were given"):
        program(torch.rand(5, 1, 28, 28))
    with pytest.raises(ValueError, match=r"\[n, 1, 28, 28\]; \[3, 1, 28, 27\] was given"):
        program(images[..., :27])
    with pytest.raises(TypeError, match=r"takes 1 input\(s\)"):
        program(images, images)
    with pytest.raises(TypeError, match="no further input named 'y'"):
        program(y=images)


def test_saved_whole_or_not_at_all(digits: Path, tmp_path: Path) -> None:
    program = runtime.load(digits)
    program.save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == digits.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    (tmp_path / "b").write_bytes(digits.read_bytes()[:-1])
    with pytest.raises(ValueError, match="b: this is not a program that can be run: "):
        runtime.load(tmp_path / "b")
    with pytest.raises(FileNotFoundError):
        runtime.load(tmp_path / "c")


def test_it_says_what_it_is(digits: Path) -> None:
    program = runtime.load(digits, threads=1)
    text = str(program)
    assert all(layer.name in text for layer in program.layers)
    assert str(program.weight_bytes // 1000) in text.replace(",", "")
    profile = program.profile(np.zeros((4, 1, 28, 28), np.float32))
    assert len(profile.seconds) == len(program.layers)
    assert all(s > 0 for s in profile.seconds)
    assert all(layer.name in str(profile) for layer in program.layers)


def test_several_threads_run_one_program(digits: Path) -> None:
    program = runtime.load(digits, threads=2)
    images = np.random.default_rng(0).random((8, 4, 1, 28, 28), np.float32)
    want = [program(batch) for batch in images]
    wrong = []

    def work(which: int) -> None:
        for _ in range(20):
            if not np.array_equal(program(images[which]), want[which]):
                wrong.append(which)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_c_program_classifies_a_picture(digits: Path, tmp_path: Path) -> None:
    library = runtime.library_path()
    built = tmp_path / "classify"
    flags = [
        "-std=c99",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-I",
        "csrc",
        "-L",
        str(library.parent),
        "-lgossamer",
        f"-Wl,-rpath,{library.parent}",
    ]
    subprocess.run(["cc", "examples/c/classify.c", *flags, "-o", built], cwd=ROOT, check=True)
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    (tmp_path / "a.pgm").write_bytes(b"P5\n28 28\n255\n" + pixels.tobytes())
    ended = subprocess.run([built, digits, tmp_path / "a.pgm"], capture_output=True, text=True, check=True)
    scores = runtime.load(digits)(pixels[None, None].astype(np.float32) / 255)[0]
    said = [line.split() for line in ended.stdout.splitlines()]
    assert [int(place) for place, _ in said] == np.argsort(-scores)[:5].tolist()
    assert np.allclose([float(score) for _, score in said], np.sort(scores)[::-1][:5], rtol=1e-4)
    (tmp_path / "bad").write_bytes(valid_files()[0][:-4])
    for arguments, sentence in (
        ([digits, digits], "is no binary PGM or PPM"),
        ([tmp_path / "bad", tmp_path / "a.pgm"], "another number of bytes|outside"),
    ):
        ended = subprocess.run([built, *arguments], capture_output=True, text=True)
        assert ended.returncode == 1
        assert any(part in ended.stderr for part in sentence.split("|"))
