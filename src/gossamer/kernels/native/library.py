"""The shared library of csrc/, which knows neither Python nor PyTorch, found in the installed package and called by ctypes."""

from __future__ import annotations

import ctypes
import os

from gossamer.runtime import library_path

LIBRARY = ctypes.CDLL(str(library_path()))
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
        "library": str(library_path()),
    }
