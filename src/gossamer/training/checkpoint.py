"""Checkpoints: files that are complete or not there, and that are read without running code from them."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer import files
from gossamer.storage import digest

FORMAT = 3
_READS = 100


def save(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, texts and nestings of them, with a digest of it all."""
    state = _mapped(state, _whole)
    buffer = io.BytesIO()  # torch's own file writer hides a full disk behind an internal error
    torch.save({"format": FORMAT, "digest": _digest(state), **state}, buffer)
    files.write(path, buffer.getbuffer())


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote. Raises ValueError for any other file, and runs nothing that a file may contain.

    torch opens a file that it maps more than once: where another process has replaced it meanwhile, it is read again.
    """
    for _ in range(_READS):
        before = _identity(path)
        try:
            return _load(path)
        except ValueError:
            if _identity(path) == before:
                raise
    return _load(path)


def _identity(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _load(path: Path) -> dict[str, Any]:
    try:
        _check_archive(path)
        # Mapped into memory, because torch's reader checks the sizes that a file claims only then.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise _VersionError(f"{path} is not a checkpoint of this version of gossamer; remove it to start anew")
        found = state.pop("digest")
        del state["format"]
        state = _mapped(state, _own, budget=[path.stat().st_size])
        if _digest(state) != found:
            raise ValueError("its content is not what was saved")
    except _VersionError:
        raise
    except Exception as error:  # a file that is no checkpoint can trip torch's reader anywhere
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is no checkpoint, or is damaged ({reason[:200]}); remove it to start anew") from None
    return state


class _VersionError(ValueError):
    pass


def _check_archive(path: Path) -> None:
    """Raise for an archive whose parts claim to be larger than the whole, as compressed ones would."""
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError("it claims to hold more than it does")


def _mapped(value: Any, change: Callable[[Tensor], Tensor], budget: list[int] | None = None, depth: int = 0) -> Any:
    """The same nesting with every tensor changed. `budget`: how many values there can be, since each takes a byte."""
    if budget is not None:
        budget[0] -= 1
        if budget[0] < 0 or depth > 16:
            raise ValueError("it repeats itself without end")
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(item, change, budget, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, change, budget, depth + 1) for item in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"it holds a {type(value).__name__}")


def _whole(tensor: Tensor) -> Tensor:
    """A tensor that lies in memory as often as it says."""
    tensor = tensor.detach().cpu()
    return tensor if _fits(tensor) else tensor.contiguous()


def _own(tensor: Tensor) -> Tensor:
    """A copy in memory of a tensor that lies in a file."""
    if type(tensor) is not Tensor or tensor.layout != torch.strided or not _fits(tensor):
        raise ValueError("it has a tensor that is larger than what it holds of it")
    return tensor.clone()


def _fits(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _digest(state: dict[str, Any]) -> str:
    tensors: dict[str, Tensor] = {}

    def text(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors[str(len(tensors))] = value
            return {"tensor": len(tensors)}
        if isinstance(value, dict):
            return {"keys": [[text(key), text(item)] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return {type(value).__name__: [text(item) for item in value]}
        return value

    return digest(json.dumps(text(state)), tensors)
