"""What the benchmark scripts share: the fastest run of each call, the machine's peak, and the line that names it all."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from gossamer.kernels import cpu
from gossamer.timing import Call, take_turns
from gossamer.training.run_folder import machine


def fastest(calls: Sequence[Call], seconds: float, in_a_row: int = 1) -> list[float]:
    """Seconds of each call's fastest run, all taking turns (`gossamer.timing`)."""
    return [timing.best for timing in take_turns(calls, seconds, in_a_row=in_a_row)]


def agree(ours: Call, theirs: Call) -> None:
    """The gate before a figure: raises AssertionError unless both compute the same, up to float32's rounding."""
    a, b = ours(), theirs()
    assert isinstance(a, torch.Tensor)
    assert isinstance(b, torch.Tensor)
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()) if b.numel() else 0)


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
