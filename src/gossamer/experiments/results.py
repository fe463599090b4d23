"""Results are data: one JSON line a run in `results.jsonl`, and what tables, figures and the report read from them.

A line names its run in `run`. A later line with the same name replaces the fields it holds, so a failed run that later
succeeds, or a run that is measured again, needs no line to be rewritten.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Row = dict[str, Any]
Cost = Literal["params", "madds", "bytes", "ms_image", "ms_batch"]

METHODS = ("thin", "sparse", "hybrid")
FILE = "results.jsonl"
log = logging.getLogger("gossamer")


def append(path: Path, row: Row) -> None:
    """Add one line to the file, whole or not at all, also when several processes write it at once.

    A line that an interrupted write left without its end is closed first, so that it damages nothing after it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        size = os.fstat(handle).st_size
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        line = (b"\n" if torn else b"") + json.dumps(row, allow_nan=False).encode() + b"\n"
        if os.write(handle, line) != len(line):
            os.ftruncate(handle, size)
            raise OSError(f"{path}: the disk is full; the result of run {row.get('run')} was not written")
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: Path) -> list[Row]:
    """The runs of a results file (or of a folder that holds one), in order; the lines of one run are merged.

    A damaged line is named in a warning and left out. A missing file is a `FileNotFoundError` that says what makes one.
    """
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: give the folder that `gossamer sweep ... --out FOLDER` wrote")
    runs: dict[str, Row] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name = row["run"]
        except (ValueError, TypeError, KeyError):
            log.warning("%s: line %d is damaged and left out (its run will be done again)", path, number)
            continue
        runs[name] = {**runs.get(name, {}), **row}
    return list(runs.values())


def done(rows: Iterable[Row]) -> list[Row]:
    """The runs that ended well."""
    return [row for row in rows if row.get("status") == "done"]


@dataclass(frozen=True)
class Point:
    """The runs of one method at one size: means over rounds, and the spread of the accuracy.

    `alpha` is the size asked for (the density of the matched sparse network). Numbers that no run measured are None.
    """

    method: str
    alpha: float
    width: float
    density: float
    rounds: int
    accuracy: float
    spread: float
    params: float
    madds: float
    bytes: float | None
    ms_image: float | None
    ms_batch: float | None
    train_images_per_s: float | None
    peak_memory: float | None
    train_seconds: float | None

    def cost(self, kind: Cost) -> float | None:
        value: float | None = getattr(self, kind)
        return value


def summarise(rows: Iterable[Row]) -> list[Point]:
    """One `Point` for each method and size, by method and then by rising size; failed runs left out."""
    groups: dict[tuple[str, float, float], list[Row]] = {}
    for row in done(rows):
        groups.setdefault((row["method"], row["width"], row["density"]), []).append(row)
    points = [_point(*key, group) for key, group in groups.items()]
    return sorted(points, key=lambda p: (p.method, p.alpha, p.params))


def _point(method: str, width: float, density: float, rows: list[Row]) -> Point:
    def mean(key: str) -> float | None:
        values = [row[key] for row in rows if row.get(key) is not None]
        return statistics.fmean(values) if values else None

    accuracies = [row["accuracy"] for row in rows]
    return Point(
        method=method,
        alpha=rows[0]["alpha"],
        width=width,
        density=density,
        rounds=len(rows),
        accuracy=statistics.fmean(accuracies),
        spread=statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        params=statistics.fmean(row["params"] for row in rows),
        madds=statistics.fmean(row["madds"] for row in rows),
        bytes=mean("bytes"),
        ms_image=mean("ms_image"),
        ms_batch=mean("ms_batch"),
        train_images_per_s=mean("train_images_per_s"),
        peak_memory=mean("peak_memory"),
        train_seconds=mean("train_seconds"),
    )


def curves(points: Iterable[Point]) -> dict[str, list[Point]]:
    """The curve of each method that was run. The dense network, run once for both, is the right end of both."""
    points = list(points)
    dense = [p for p in points if p.method == "dense"]
    found = {method: [p for p in points if p.method == method] for method in METHODS}
    ends = {"thin": dense, "sparse": dense, "hybrid": []}
    drawn = {method: sorted(found[method] + ends[method], key=lambda p: p.params) for method in METHODS}
    return {method: curve for method, curve in drawn.items() if curve}


def pareto(points: Iterable[Point], kind: Cost) -> list[Point]:
    """The points that no other beats: each one that is cheaper is less accurate. By rising cost."""
    measured = [p for p in points if p.cost(kind) is not None]
    front: list[Point] = []
    for point in sorted(measured, key=lambda p: (p.cost(kind), -p.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


COLUMNS = {
    "method": "method",
    "alpha": "alpha",
    "width": "width",
    "density": "density",
    "rounds": "rounds",
    "accuracy": "accuracy",
    "spread": "accuracy s.d.",
    "params": "params",
    "madds": "madds",
    "bytes": "bytes on disk",
    "ms_image": "ms, 1 image",
    "ms_batch": "ms, batch",
    "train_images_per_s": "training images/s",
    "peak_memory": "peak memory, MB",
    "train_seconds": "training s",
}
"""Field of `Point` -> heading of the tables, in their order. CSV files take the fields' own names and units (bytes)."""
