"""Incremental training (paper, 3.2.1 and 5.3): dense from scratch beside networks that grow dense while they train.

`courses` says what to compare; each run is one of `sweep`, with a curve of its accuracy beside its result line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer.data.split import WHOLE, Share
from gossamer.experiments import results, workers
from gossamer.experiments.results import Row
from gossamer.experiments.runs import train_run
from gossamer.experiments.sweep import Run, Size

if TYPE_CHECKING:
    from gossamer.data.split import Batch, Split
    from gossamer.training.run import Training

VARIANTS: dict[str, dict[str, Any]] = {
    "zero": {"grow_by": "random", "grow_init": "zero"},
    "random": {"grow_by": "random", "grow_init": "random"},
    "gradient": {"grow_by": "gradient", "grow_init": "zero"},
    "channels": {"grow_by": "channels", "grow_init": "random"},
}
"""What grows: random connections that start at zero, or from random kernels, or those of largest gradient; or, in a thin
dense network of as many params, whole channels with fresh weights (the paper's counter-example)."""
CURVE = "curve.jsonl"


@dataclass(frozen=True)
class Course(Size):
    """A network that starts at density `start` and doubles its connections after every `every` steps."""

    start: float = 0.01
    every: int = 100
    variant: str = "zero"

    @property
    def name(self) -> str:
        return self.method

    @property
    def settings(self) -> dict[str, Any]:
        return {"density": 1.0, "grow_from": self.start, "grow_every": self.every, **VARIANTS[self.variant]}

    @classmethod
    def of(cls, start: float, every: int, variant: str) -> Course:
        name = f"from-{start:g}-every-{every}" + ("" if variant == "zero" else f"-{variant}")
        return cls(name, 1.0, start=start, every=every, variant=variant)


def courses(starts: Sequence[float], periods: Sequence[float], variants: Sequence[str]) -> list[Size]:
    """The dense network, and a course for each start, doubling period (steps) and kind of new connections."""
    for start in starts:
        if not 0 < start < 1:
            raise ValueError(f"start {start:g} is not a density below 1")
    for period in periods:
        if period < 1 or period != int(period):
            raise ValueError(f"period {period:g} is not a whole number of steps")
    for variant in variants:
        if variant not in VARIANTS:
            raise ValueError(f"there is no variant {variant!r}; there are {', '.join(VARIANTS)}")
    grown = [Course.of(s, int(p), v) for v in variants for s in starts for p in periods]
    return [Size.dense(), *grown]


def execute(runs: Sequence[Run], folder: Path, *, points: int = 50, images: int = 2000) -> Iterator[Row]:
    """One run at a time. Each curve has `points` points and one before and after each growth, on about `images` test images."""
    return workers.each(runs, folder, 1, partial(grow_run, points=points, images=images))


def grow_run(run: Run, folder: Path, *, points: int, images: int) -> Row:
    """Train one run, measuring its curve on the way; its result line."""
    curve = Curve(folder / "runs" / run.name / CURVE, points, images)
    row = train_run(run, folder, timed=False, after_step=curve)
    return {**row, "curve": curve.read()}


@dataclass(frozen=True)
class CurvePoint:
    """How far a run is: steps and seconds of training, the density, and accuracy and loss on part of the test set."""

    step: int
    seconds: float
    cpu_seconds: float
    density: float
    accuracy: float
    loss: float


class Curve:
    """Measures a run after every so many steps and around each growth; the points are kept in a file of JSON lines."""

    def __init__(self, path: Path, points: int, images: int) -> None:
        self.path, self.points, self.images = path, points, images
        self.density = -1.0

    def __call__(self, run: Training) -> bool:
        """The `after_step` of a training run; changes nothing."""
        from gossamer.training.evaluation import evaluate

        now = run.density
        grown, self.density = now != self.density, now
        growing = run.growth is not None and run.growth.due
        every = max(1, run.total_steps // self.points)
        if grown or growing or run.step % every == 0 or run.step == run.total_steps:
            part = Part(run.dataset.test, self.images)
            loss, accuracy = evaluate(run.model, part, run.prepare, run.batch_size, run.team)
            point = CurvePoint(run.step, run.seconds, run.cpu_seconds, now, accuracy, loss)
            if run.team.leads:
                results.append(self.path, asdict(point))
        return False

    def read(self) -> list[dict[str, Any]]:
        """The points by step. Of one that was measured twice, because a run was resumed, the later counts."""
        points = results.lines(self.path, results.is_point)
        return [point for _, point in sorted({p["step"]: p for p in points}.items())]


@dataclass(frozen=True)
class Part:
    """About `images` of a split: whole batches, spread over it evenly."""

    whole: Split
    images: int

    @property
    def skipped(self) -> Any:
        return self.whole.skipped

    def __len__(self) -> int:
        return min(self.images, len(self.whole))

    def training_batches(self, *_: Any) -> Iterator[Batch]:
        raise TypeError("a part of a test set is not for training")

    def test_batches(self, batch_size: int, share: Share = WHOLE) -> Iterator[Batch]:
        stride = max(1, math.ceil(len(self.whole) / max(self.images, batch_size)))
        yield from islice(self.whole.test_batches(batch_size, share), 0, None, stride)
