"""Memory between two pages that may not be touched, for tests of what native code reads and writes."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np


class Guarded:
    """Exactly `count` numbers, flush with the forbidden page behind them (`at_end`) or before them."""

    def __init__(self, count: int, at_end: bool, dtype: type[np.generic] = np.float32) -> None:
        page, size = mmap.PAGESIZE, count * np.dtype(dtype).itemsize
        room = -(-size // page) * page
        self._map = mmap.mmap(-1, room + 2 * page)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._libc = ctypes.CDLL(None)
        self._libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        assert self._libc.mprotect(self._base, page, 0) == 0
        assert self._libc.mprotect(self._base + page + room, page, 0) == 0
        self._size = room + 2 * page
        self.address = self._base + page + (room - size if at_end else 0)
        self.values = np.frombuffer((ctypes.c_byte * size).from_address(self.address), dtype)

    def __del__(self) -> None:
        self._libc.mprotect(self._base, self._size, 3)
