"""The one timer: many runs of several calls that take turns, on the clock and in CPU time.

Shared machines interrupt whatever runs longer than a scheduler's slice. So the calls take turns, which is unfair to none, and
CPU time, which does not count interruptions, stands beside the clock's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the fastest run and the median by the clock, the least CPU time (of all threads), and the runs."""

    best: float
    median: float
    cpu: float
    runs: int


def take_turns(calls: Sequence[Call], seconds: float, *, least: int = 5, in_a_row: int = 1) -> list[Timing]:
    """Run each call once, then all of them in turn: at least `least` times each, and as often as fit in `seconds` for each.

    Several runs `in_a_row` keep apart runtimes with threads of their own: an OpenMP team goes on spinning for milliseconds
    after its last work, and meets the next call.
    """
    for call in calls:
        call()
    clock: list[list[float]] = [[] for _ in calls]
    cpu: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    while len(clock[0]) < least or time.perf_counter() - start < seconds * len(calls):
        for call, by_clock, by_cpu in zip(calls, clock, cpu, strict=True):
            for _ in range(in_a_row):
                begun, used = time.perf_counter(), time.process_time()
                call()
                by_clock.append(time.perf_counter() - begun)
                by_cpu.append(time.process_time() - used)
    return [Timing(min(c), statistics.median(c), min(u), len(c)) for c, u in zip(clock, cpu, strict=True)]
