"""Files of ours that are complete or not there, and JSON that anybody may have written."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PART = ".part"
"""How the names of files that are being written end."""
LARGEST_JSON = 1 << 28


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new file to write, which takes the place of `path` at once when the block ends well.

    Whoever reads `path`, also after a power cut, finds the old content or the new, however many processes write it. A link
    keeps pointing where it did, an existing file keeps its permissions, and a new one gets those of the umask.

    Raises OSError in one sentence, with the old file intact, when the disk is full or not writable.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name[:100]}.{os.getpid()}-{secrets.token_hex(4)}{PART}")
    try:
        if target.exists() and not target.is_file():
            raise OSError("it is no regular file")
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        mode = (target if target.exists() else part).stat().st_mode & 0o7777
        yield part
        os.chmod(part, mode)  # the writer may have made the file anew, with a mode of its own
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError as error:
        kept = "; the earlier one is intact" if target.is_file() else ""
        raise OSError(f"could not write {path} ({error.strerror or error}){kept}") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(part)


def write(path: str | os.PathLike[str], content: bytes | memoryview) -> None:
    """Replace the content of a file at once, as `replacing` does."""
    with replacing(path) as part, open(part, "wb") as file:
        file.write(content)


def remove_parts(folder: Path) -> None:
    """Remove what processes that were killed have left half written. Only for a folder in which nobody else writes."""
    for part in folder.glob(f"*{PART}"):
        part.unlink(missing_ok=True)


def parse_json(text: str | bytes) -> Any:
    """What JSON says. ValueError for anything else, for numbers that are none or infinite, and for nesting without end."""
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def read_json(path: Path) -> Any:
    """What a JSON file says. OSError, or ValueError as in `parse_json`."""
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"it has more than {LARGEST_JSON:,} bytes")
    return parse_json(path.read_bytes())


def is_count(value: Any, most: int = 2**63 - 1) -> bool:
    """Whether a value of a file is a whole number from 0 to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def is_number(value: Any) -> bool:
    """Whether a value of a file is a number that one can calculate with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e100


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it has {text[:20]} where a number should be")
    return value
