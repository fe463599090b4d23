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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gossamer.files import is_count, is_number, parse_json

Row = dict[str, Any]
Axis = Literal["params", "madds", "bytes", "ms_image", "ms_batch"]

METHODS = ("thin", "sparse", "hybrid")
FILE = "results.jsonl"
log = logging.getLogger("gossamer")


def append(path: Path, row: Row) -> None:
    """Add one line to the file, whole or not at all, also when several processes write it at once.

    A line that an interrupted write left without its end is closed first, so that it damages nothing after it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
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

    Lines that are damaged, or that this package cannot have written, are counted in a warning and left out; so are runs
    that ended well but lack a number. A missing file is a `FileNotFoundError` that says what makes one.
    """
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: give the folder that `gossamer sweep ... --out FOLDER` wrote")
    runs: dict[str, Row] = {}
    for row in lines(path, lambda row: "run" in row and _has_fitting(row, _FIELDS)):
        runs[row["run"]] = {**runs.get(row["run"], {}), **row}
    torn = [name for name, row in runs.items() if row.get("status") == "done" and not row.keys() >= _NEEDED]
    if torn:
        log.warning("%s: %d runs lack numbers and are left out (the first is %s)", path, len(torn), torn[0])
    return [row for name, row in runs.items() if name not in torn]


def lines(path: Path, fits: Callable[[Row], bool]) -> Iterator[Row]:
    """The rows of a file of JSON lines that fit; the others are counted in a warning."""
    wrong = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and fits(row):
            yield row
        else:
            wrong.append(number)
    if wrong:
        first = f"line {wrong[0]} is" if len(wrong) == 1 else f"{len(wrong)} lines are"
        more = "" if len(wrong) == 1 else f", line {wrong[0]} the first"
        log.warning("%s: %s damaged or foreign and left out%s (what is missing will be done again)", path, first, more)


def done(rows: Iterable[Row]) -> list[Row]:
    """The runs that ended well."""
    return [row for row in rows if row.get("status") == "done"]


def finished(folder: Path) -> list[Row]:
    """The runs in a folder; ValueError when none of them ended well."""
    rows = read(folder)
    if not done(rows):
        errors = "; ".join(f"{row['run']}: {row.get('error')}" for row in rows)
        raise ValueError(f"{folder} holds no finished run to report on ({errors or 'it has no result lines'})")
    return rows


def title(rows: Iterable[Row]) -> str:
    """Network and data of the runs that ended well, as they may be printed and drawn."""
    config: Row = next((row["config"] for row in done(rows) if row.get("config")), {})
    text = f"{config.get('model', 'unknown')} on {config.get('data', 'unknown')}"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


# -- what a line may hold ----------------------------------------------------------------------------------------------


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def _is_cost(value: Any) -> bool:
    return is_number(value) and value >= 0


def _is_missing_or_cost(value: Any) -> bool:
    return value is None or _is_cost(value)


Fields = dict[str, Callable[[Any], bool]]


def _has_fitting(row: Any, fields: Fields) -> bool:
    return isinstance(row, dict) and all(fields[name](value) for name, value in row.items() if name in fields)


def _has(row: Any, fields: Fields) -> bool:
    return isinstance(row, dict) and all(name in row and fits(row[name]) for name, fits in fields.items())


POINT: Fields = {"step": is_count, "density": _is_share, "accuracy": _is_share, "loss": is_number}
POINT |= {"seconds": _is_cost, "cpu_seconds": _is_cost}
"""What a point of a curve (`grow.CurvePoint`) holds."""
_EPOCH: Fields = {"epoch": is_count, "loss": is_number, "test_accuracy": _is_share}


def is_point(row: Any) -> bool:
    """Whether this is a point of a curve."""
    return _has(row, POINT)


def _is_curve(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(is_point(point) for point in value)


def _is_history(value: Any) -> bool:
    return isinstance(value, list) and all(_has(epoch, _EPOCH) for epoch in value)


_FIELDS: Fields = {
    **dict.fromkeys(("run", "method", "error", "traceback", "version"), _is_text),
    "status": lambda value: value in ("done", "failed"),
    **dict.fromkeys(("alpha", "width", "density", "accuracy"), _is_share),
    **dict.fromkeys(("round", "skipped"), is_count),
    **dict.fromkeys(("params", "madds"), _is_cost),
    **dict.fromkeys(
        ("bytes", "ms_image", "ms_batch", "train_images_per_s", "peak_memory", "train_seconds"), _is_missing_or_cost
    ),
    **dict.fromkeys(("config", "machine"), _is_mapping),
    "history": _is_history,
    "curve": _is_curve,
}
_NEEDED = {"run", "method", "alpha", "width", "density", "accuracy", "params", "madds"}
"""What a run that ended well must say of itself."""


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

    def cost(self, kind: Axis) -> float | None:
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


def pareto(points: Iterable[Point], kind: Axis) -> list[Point]:
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
