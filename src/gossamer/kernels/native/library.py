"""The shared library of csrc/, which knows neither Python nor PyTorch, found in the installed package and called by ctypes."""

from __future__ import annotations

import ctypes
import importlib
import os
from pathlib import Path


def _find_library() -> Path:
    """The shared library inside the installed package; an editable install rebuilds it here when csrc/ has changed."""
    try:
        native = importlib.import_module("gossamer._native")
    except ModuleNotFoundError as error:
        raise ImportError(
            "gossamer's native library is missing: this copy of gossamer was not built. Run `pip install .` (or "
            "`pip install -e .`) in its source tree, which needs CMake and a C++17 compiler."
        ) from error
    return Path(native.__path__[0]) / native.library


library_path = _find_library()


LIBRARY = ctypes.CDLL(str(library_path))
for _function in ("status_text", "isa", "isa_list", "version"):
    getattr(LIBRARY, f"gossamer_{_function}").restype = ctypes.c_char_p
LIBRARY.gossamer_status_text.argtypes = [ctypes.c_int]

if LIBRARY.gossamer_isa() is None:
    raise ImportError(
        f"GOSSAMER_ISA={os.environ['GOSSAMER_ISA']} is not an instruction set that this machine and this build of gossamer "
        f"have; it can be one of: {LIBRARY.gossamer_isa_list().decode()}."
    )


def info() -> dict[str, str]:
    """The native library's version, the instruction set in use, those it could use, and where the library lies."""
    return {
        "version": LIBRARY.gossamer_version().decode(),
        "isa": LIBRARY.gossamer_isa().decode(),
        "isa_available": LIBRARY.gossamer_isa_list().decode(),
        "library": str(library_path),
    }
