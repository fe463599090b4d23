"""What a person sees while a network trains: a live bar in a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

QUIET_SECONDS = 30.0
"""Without a terminal, a long epoch says where it is this often."""


class Reporter:
    """Shows steps and epochs of one run; a context manager. With `show` false it says nothing."""

    def __init__(self, total_steps: int, done_steps: int, epochs: int, *, show: bool = True) -> None:
        self.console = Console(quiet=not show, soft_wrap=True, highlight=False)
        self.total_steps = total_steps
        self.epochs = epochs
        self.first = done_steps
        self.started = self.last_line = time.monotonic()
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (show and self.console.is_terminal),
        )
        self.task = self.bar.add_task("", total=total_steps, completed=done_steps, epoch="", figures="")

    def __enter__(self) -> Reporter:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def step(self, step: int, epoch: int, loss: float, accuracy: float, images_per_s: float) -> None:
        """After step number `step` (from 1) of epoch `epoch` (from 0), with the epoch's averages so far."""
        figures = f"loss {loss:.4f}  accuracy {accuracy:6.2%}  {images_per_s:,.0f} images/s"
        self.bar.update(self.task, completed=step, epoch=f"{epoch + 1}/{self.epochs}", figures=figures)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.last_line > QUIET_SECONDS:
            self.last_line = now
            left = (now - self.started) / (step - self.first) * (self.total_steps - step)
            self.say(f"step {step}/{self.total_steps}  {figures}  {_clock(left)} left")

    def epoch(self, record: dict[str, Any]) -> None:
        """After an epoch, with its entry of the history."""
        self.last_line = time.monotonic()
        self.say(
            f"epoch {record['epoch']}/{self.epochs}  loss {record['loss']:.4f}  "
            f"accuracy {record['train_accuracy']:.2%}  test {record['test_accuracy']:.2%}  "
            f"{record['images_per_s']:,.0f} images/s  {_clock(record['seconds'])}"
        )

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        self.console.print(text, markup=False)


def _clock(seconds: float) -> str:
    """12.3 s, 4 min 05 s or 2 h 07 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
