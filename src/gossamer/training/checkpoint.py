"""Checkpoints: files that are complete or not there, and that are read without running code from them."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch

FORMAT = 2


def write(path: Path, content: bytes | memoryview) -> None:
    """Replace the file at once: whoever reads it, also after a power cut, finds the old content or the new.

    Raises OSError in one sentence, with the old file intact, when the disk is full or not writable.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        kept = "; the earlier one is intact" if path.exists() else ""
        part.unlink(missing_ok=True)
        raise OSError(f"could not write {path} ({error.strerror or error}){kept}") from error


def save(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, texts and nestings of them."""
    buffer = io.BytesIO()  # torch's own file writer hides a full disk behind an internal error
    torch.save({"format": FORMAT, **state}, buffer)
    write(path, buffer.getbuffer())


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote. Raises ValueError for any other file, and runs nothing that a file may contain."""
    content = io.BytesIO(path.read_bytes())
    try:
        state = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no checkpoint can trip torch's reader anywhere
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is no checkpoint, or is damaged ({reason}); remove it to start anew") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of this version of gossamer; remove it to start anew")
    return state
