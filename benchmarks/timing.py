"""What the benchmark scripts share: whose turn it is, which run counts, the machine's peak, and the line that names it all."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Sequence

import torch

from gossamer.kernels import cpu
from gossamer.training.folder import machine

Call = Callable[[], object]


def fastest(calls: Sequence[Call], seconds: float, in_a_row: int = 1) -> list[float]:
    """Seconds of each call's fastest run: at least five, and as many as fit in `seconds` for each call.

    The calls take turns, so that a busy machine is unfair to none of them. Two runs `in_a_row` keep apart runtimes with
    threads of their own: an OpenMP team goes on spinning for milliseconds after its last work, and meets the next call.
    """
    for call in calls:
        call()
    best, runs, start = [math.inf] * len(calls), 0, time.perf_counter()
    while runs < 5 or time.perf_counter() - start < seconds * len(calls):
        for k, call in enumerate(calls):
            for _ in range(in_a_row):
                begin = time.perf_counter()
                call()
                best[k] = min(best[k], time.perf_counter() - begin)
        runs += in_a_row
    return best


def peak(seconds: float = 1.0) -> float:
    """Multiply-adds a second that this machine's best dense product reaches, a stand-in for the hardware's peak."""
    a = torch.randn(1024, 1024)
    return 1024**3 / fastest([lambda: a @ a], seconds)[0]


def keep_memory() -> None:
    """Stops glibc from handing large blocks back to the system after each call, whose return costs more than the layer."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD


def header(threads: str, *more: str) -> str:
    """One line: processor, cores, threads, instruction set, versions."""
    here = machine(torch.device("cpu"))
    parts = [
        f"{here['processor']}, {here['cores']} cores",
        f"{threads} thread{'' if threads == '1' else 's'}",
        cpu.info()["isa"],
        f"Python {here['python']}",
        f"torch {here['torch']}",
        f"gossamer {cpu.info()['version']}",
        *more,
    ]
    return ", ".join(parts)
