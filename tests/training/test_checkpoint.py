"""Checkpoints: whole or absent, and harmless to read."""

from __future__ import annotations

import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from gossamer.training import checkpoint


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: writing more fails as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_round_trip(tmp_path: Path) -> None:
    state: dict[str, Any] = {"weights": {"a": torch.randn(3)}, "step": 7, "history": [{"loss": 0.5, "name": "x"}]}
    checkpoint.save(tmp_path / "c.pt", state)
    loaded = checkpoint.load(tmp_path / "c.pt")
    assert torch.equal(loaded["weights"]["a"], state["weights"]["a"])
    assert (loaded["step"], loaded["history"]) == (7, state["history"])
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


def test_full_disk_keeps_the_earlier_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    checkpoint.save(path, {"step": 1})
    with room_for(2000), pytest.raises(OSError, match=r"could not write .* the earlier one is intact") as error:
        checkpoint.save(path, {"step": 2, "weights": torch.zeros(10_000)})
    assert "\n" not in str(error.value)
    assert checkpoint.load(path)["step"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.pt"]


class Harmful:
    """Pickles as a call that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    path, proof = tmp_path / "c.pt", tmp_path / "code was run"
    torch.save({"format": 2, "step": Harmful(proof)}, path)
    with pytest.raises(ValueError, match=r"c\.pt is no checkpoint"):
        checkpoint.load(path)
    path.write_bytes(pickle.dumps(Harmful(proof), protocol=2))
    with pytest.raises(ValueError, match=r"c\.pt is no checkpoint"):
        checkpoint.load(path)
    assert not proof.exists()


def test_damaged_and_foreign_files_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    checkpoint.save(path, {"weights": torch.zeros(1000)})
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:100], whole[:-200]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="or is damaged") as error:
            checkpoint.load(path)
        assert "\n" not in str(error.value)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="not a checkpoint of this version"):
        checkpoint.load(path)
