"""Ctrl-C and SIGTERM during training: the step is finished and a checkpoint written before the run ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A run ended by a signal, after its checkpoint was written. The text names what can be resumed."""


class StopRequest:
    """Whether someone asked the run to end."""

    def __init__(self) -> None:
        self.made = False

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        if self.made:
            raise KeyboardInterrupt
        self.made = True


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into `StopRequest.made`; a second one ends the program at once."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # Python lets only the main thread have handlers
        yield request
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
