"""The main jobs, shared by `demo`, `sweep`, `grow` and `paper`: train what is missing, then a table and a report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from gossamer.experiments import grow, workers
from gossamer.experiments.results import read, summarise, title
from gossamer.experiments.sweep import Execute, Size, describe, sweep
from gossamer.report import growth, page, tables
from gossamer.training.config import TrainConfig


def run(
    base: TrainConfig,
    sizes: Sequence[Size],
    folder: Path,
    *,
    rounds: int = 1,
    execute: Execute | None = None,
    paper: str | None = None,
    again: bool = False,
) -> int:
    """Sweep, print the table, write the report and print its path. Returns the exit code: 1 when a run failed.

    Under torchrun every process takes part in each run, and the first one keeps the results.
    """
    check(base)
    if "RANK" in os.environ:
        say = print if os.environ["RANK"] == "0" else _silent
        rows = sweep(base, sizes, folder, workers.in_place, rounds=rounds, paper=paper, say=say)
    else:
        execute = execute or workers.processes
        rows = sweep(base, sizes, folder, execute, workers.measured, rounds=rounds, paper=paper, again=again)
    if os.environ.get("RANK", "0") != "0":
        return 0
    show(folder)
    bad = [row for row in rows if row["status"] == "failed"]
    for row in bad:
        print(describe(row))
    if bad:
        print(f"{len(bad)} runs failed; the same command tries them again")
    return 1 if bad else 0


def run_growth(
    base: TrainConfig, sizes: Sequence[Size], folder: Path, *, rounds: int = 1, points: int = 50, images: int = 2000
) -> int:
    """Train the courses that are missing, one at a time; print the table and write the report. Returns the exit code.

    `points` and `images` are those of each curve (`grow.execute`).
    """
    check(base)
    rows = sweep(base, sizes, folder, partial(grow.execute, points=points, images=images), rounds=rounds)
    growth.show(folder)
    return 1 if any(row["status"] == "failed" for row in rows) else 0


def _silent(_: str) -> None:
    """For the processes of torchrun that are not the first."""


def check(base: TrainConfig) -> None:
    """Find a wrong network or data set before any run starts, and download what must be, once."""
    import torch

    from gossamer import models
    from gossamer.training.build import load_data

    with torch.device("meta"):
        models.create(base.model)
    load_data(base)


def show(folder: Path) -> None:
    """Print the table of the folder of a sweep, or of `gossamer grow`, and write its report."""
    rows = read(folder)
    if growth.is_growth(rows):
        return growth.show(folder)
    written = page.write(folder)
    tables.show_points(summarise(rows), title(rows))
    print(f"figures: {', '.join(str(path) for path in written.figures if path.suffix == '.svg')}")
    print(f"table:   {written.table}")
    print(f"report:  {written.page.resolve()}")
