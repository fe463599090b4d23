"""The timer, held against calls that count and sleep: turns, runs, and the difference between the clock and CPU time."""

from __future__ import annotations

import time

from gossamer.timing import take_turns


def test_calls_take_turns() -> None:
    order: list[str] = []
    timings = take_turns([lambda: order.append("a"), lambda: order.append("b")], 0, least=3, in_a_row=2)
    assert "".join(order) == "ab" + "aabb" * 2
    assert [t.runs for t in timings] == [4, 4]


def test_sleep_is_on_the_clock_alone() -> None:
    (timing,) = take_turns([lambda: time.sleep(0.01)], 0, least=3)
    assert 0.01 <= timing.best <= timing.median
    assert timing.cpu < timing.best
