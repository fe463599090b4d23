"""Figures in the paper's style (its Figures 2 to 5): accuracy against params, madds and milliseconds, log x."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gossamer import files
from gossamer.experiments.results import Axis, Point, Row, curves, summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

LABELS = {"thin": "dense, thinned channels", "sparse": "sparse connections", "hybrid": "thinned and sparse"}
COLOURS = {"thin": "#1f77b4", "sparse": "#d62728", "hybrid": "#2ca02c"}
MARKERS = {"thin": "o", "sparse": "s", "hybrid": "D"}
AXES: dict[Axis, str] = {
    "params": "params (convolutions)",
    "madds": "multiply-adds (convolutions)",
    "bytes": "bytes on disk",
    "ms_image": "milliseconds, one image",
    "ms_batch": "milliseconds, one batch",
}
SIZE: tuple[Axis, ...] = ("params", "madds")
TIME: tuple[Axis, ...] = ("ms_image", "ms_batch")


def draw(rows: Sequence[Row], out: Path, *, title: str) -> list[Path]:
    """Write `accuracy.svg` and `.png` (params beside madds) into `out`, and `latency.*` where times were measured.

    Returns the files written. The mean over rounds is drawn, with its standard deviation as a bar.
    """
    points = summarise(rows)
    paths = _draw(points, SIZE, out / "accuracy", title)
    if any(p.ms_image is not None for p in points):
        paths += _draw(points, TIME, out / "latency", title)
    return paths


def _draw(points: Sequence[Point], kinds: Sequence[Axis], stem: Path, title: str) -> list[Path]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(kinds), 3.4), layout="constrained")
    for index, kind in enumerate(kinds, start=1):
        _plot(figure.add_subplot(1, len(kinds), index), points, kind)
    figure.suptitle(title, fontsize=10)
    return save(figure, stem)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as `.svg` and `.png`; names that it shows may hold any character, also those of mathtext. Without
    the date, so that the same lines give the same files.
    """
    for text in _texts(figure):
        text.set_parse_math(False)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(stem.name + suffix) for suffix in (".svg", ".png")]
    for path in paths:
        content = io.BytesIO()
        kind = path.suffix[1:]
        figure.savefig(content, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {})
        files.write(path, content.getbuffer())
    return paths


def _texts(figure: Figure) -> Iterator[Text]:
    """Titles, labels and legends; numbers on logarithmic axes are written in mathtext and stay so."""
    yield from figure.texts
    for axes in figure.axes:
        yield from (axes.title, axes.xaxis.label, axes.yaxis.label)
        legend = axes.get_legend()
        if legend is not None:
            yield from legend.get_texts()


def _plot(axes: Axes, points: Sequence[Point], kind: Axis) -> None:
    for method, curve in curves(points).items():
        measured = [p for p in curve if p.cost(kind) is not None]
        axes.errorbar(
            [p.cost(kind) or 0.0 for p in measured],
            [100 * p.accuracy for p in measured],
            yerr=[100 * p.spread for p in measured],
            label=LABELS[method],
            color=COLOURS[method],
            marker=MARKERS[method],
            linestyle="none" if method == "hybrid" else "-",
            markersize=4,
            linewidth=1.2,
            capsize=2,
        )
    axes.set_xscale("log")
    axes.set_xlabel(AXES[kind])
    axes.set_ylabel("test accuracy, %")
    axes.grid(visible=True, which="major", linewidth=0.4)
    axes.legend(fontsize=8, loc="lower right")
