"""The report of a sweep: an HTML page that opens offline, the figures, the table as CSV. It only reads result lines."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer import files
from gossamer.experiments import paper
from gossamer.experiments.results import COLUMNS, Axis, Point, Row, curves, done, finished, pareto, summarise, title
from gossamer.experiments.sweep import settings_of
from gossamer.report import figures

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

OWN_FIELDS = ("width", "density", "seed")
"""What differs between the runs of a sweep, so that it is no part of the common configuration."""


@dataclass(frozen=True)
class Report:
    """The files of one report."""

    page: Path
    table: Path
    figures: list[Path]


def write(folder: Path) -> Report:
    """Write `report.html`, `table.csv` and `figures/` into the folder of a sweep, from its result lines.

    A sweep that is one of the paper's experiments gets the paper's numbers beside its own. A folder without a finished
    run is a `ValueError`.
    """
    rows = finished(folder)
    points = summarise(rows)
    table = folder / "table.csv"
    write_csv(points, table)
    page = folder / "report.html"
    write_page(page, _page(rows, points, _beside(folder, rows)))
    return Report(page, table, figures.draw(rows, folder / "figures", title=title(rows)))


def _beside(folder: Path, rows: Sequence[Row]) -> paper.Beside | None:
    name = settings_of(folder)["paper"]
    return paper.beside(paper.find(name), rows) if name else None


def write_csv(points: Sequence[Point], path: Path) -> None:
    """The table of the report, one line for each method and size, unrounded; `COLUMNS` names the columns."""
    write_table(path, COLUMNS, ([getattr(point, field) for field in COLUMNS] for point in points))


def write_table(path: Path, headings: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """A CSV file, at once."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(headings)
    writer.writerows(rows)
    files.write(path, text.getvalue().encode(errors="replace"))


def write_page(path: Path, text: str) -> None:
    """An HTML page, at once."""
    files.write(path, text.encode(errors="replace"))


def cells(point: Point) -> list[str]:
    """A point as the text of a table row, in the order of `COLUMNS`."""

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [
        point.method,
        f"{point.alpha:.3g}",
        f"{point.width:.3g}",
        f"{point.density:.3g}",
        str(point.rounds),
        f"{100 * point.accuracy:.2f}%",
        f"{100 * point.spread:.2f}%",
        f"{point.params:,.0f}",
        f"{point.madds:,.0f}",
        number(point.bytes, ",.0f"),
        number(point.ms_image, ".3g"),
        number(point.ms_batch, ".3g"),
        number(point.train_images_per_s, ",.0f"),
        number(point.peak_memory and point.peak_memory / 1e6, ",.0f"),
        number(point.train_seconds, ".1f"),
    ]


def matched(points: Sequence[Point]) -> list[list[str]]:
    """Thin and sparse networks of one alpha side by side, as table rows: which is more accurate, and by how much."""
    thin, sparse = ({p.alpha: p for p in points if p.method == method} for method in ("thin", "sparse"))
    return [
        [
            f"{alpha:.3g}",
            f"{100 * thin[alpha].accuracy:.2f}%",
            f"{100 * sparse[alpha].accuracy:.2f}%",
            f"{100 * (sparse[alpha].accuracy - thin[alpha].accuracy):+.2f}",
            f"{thin[alpha].params:,.0f}",
            f"{sparse[alpha].params:,.0f}",
        ]
        for alpha in sorted(thin.keys() & sparse.keys())
    ]


def _page(rows: Sequence[Row], points: Sequence[Point], beside: paper.Beside | None) -> str:
    kinds: list[Axis] = ["params", "madds", "ms_image", "ms_batch"]
    kinds = [kind for kind in kinds if any(p.cost(kind) is not None for p in points)]
    front = pareto(points, "params")
    ended = done(rows)
    return render(
        title=title(rows),
        subtitle=_subtitle(ended),
        timed="ms_image" in kinds,
        plots=[html(_cost_figure(points, kind)) for kind in kinds],
        training=[
            html(_history_figure(ended, "test_accuracy", "test accuracy, %", 100)),
            html(_history_figure(ended, "loss", "training loss", 1)),
        ],
        headings=COLUMNS.values(),
        table=[{"front": point in front, "cells": cells(point)} for point in points],
        matched=matched(points),
        paper=beside,
        failed=[row for row in rows if row.get("status") == "failed"],
        configuration={k: v for k, v in ended[0].get("config", {}).items() if k not in OWN_FIELDS},
        machine={**ended[0].get("machine", {}), "gossamer": ended[0].get("version", "")},
    )


def render(**values: Any) -> str:
    """The page with these values in the places of `report.html`; a section without values is left out."""
    from jinja2 import Environment
    from plotly.offline import get_plotlyjs

    template = Environment(autoescape=True).from_string(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    return template.render(plotly_js=get_plotlyjs(), **values)


def _subtitle(rows: Sequence[Row]) -> str:
    best = max(rows, key=lambda row: row["accuracy"])
    return (
        f"{len(rows)} runs. Best: {best['run']} with {100 * best['accuracy']:.2f}% on the test set, "
        f"{best['params']:,} params and {best['madds']:,} multiply-adds."
    )


def html(figure: Figure) -> str:
    """A Plotly figure as a part of the page."""
    config = {"displaylogo": False, "responsive": True}
    text: str = figure.to_html(full_html=False, include_plotlyjs=False, config=config)
    return text


def _cost_figure(points: Sequence[Point], kind: Axis) -> Figure:
    from plotly import graph_objects as go

    figure = go.Figure()
    front = pareto(points, kind)
    figure.add_scatter(
        x=[p.cost(kind) for p in front],
        y=[100 * p.accuracy for p in front],
        name="Pareto front",
        mode="lines+markers",
        line={"color": "#b8860b", "dash": "dot", "width": 1.5},
        marker={"symbol": "circle-open", "size": 15, "color": "#b8860b", "line": {"width": 2}},
        hoverinfo="skip",
    )
    for method, curve in curves(points).items():
        shown = [p for p in curve if p.cost(kind) is not None]
        figure.add_scatter(
            x=[p.cost(kind) for p in shown],
            y=[100 * p.accuracy for p in shown],
            error_y={"type": "data", "array": [100 * p.spread for p in shown], "thickness": 1, "width": 3},
            name=figures.LABELS[method],
            mode="markers" if method == "hybrid" else "lines+markers",
            marker={"color": figures.COLOURS[method], "size": 7},
            customdata=[_hover(p) for p in shown],
            hovertemplate="%{customdata}<extra></extra>",
        )
    figure.update_xaxes(type="log", title=figures.AXES[kind])
    figure.update_yaxes(title="test accuracy, %")
    return styled(figure)


def _hover(point: Point) -> str:
    pairs = zip(COLUMNS.values(), cells(point), strict=True)
    return "<br>".join(f"{heading}: {cell}" for heading, cell in pairs if cell)


def _history_figure(rows: Sequence[Row], field: str, axis: str, scale: float) -> Figure:
    """One line a run over the epochs; runs of one method and size share a legend entry and a colour by method."""
    from plotly import graph_objects as go

    figure = go.Figure()
    colours = {**figures.COLOURS, "dense": "#444444"}
    alphas = sorted({row["alpha"] for row in rows})
    for row in sorted(rows, key=lambda row: (row["method"], row["alpha"], row.get("round", 0))):
        if not row.get("history"):
            continue
        label = f"{row['method']} {row['alpha']:.3g}"
        figure.add_scatter(
            x=[entry["epoch"] for entry in row["history"]],
            y=[scale * entry[field] for entry in row["history"]],
            name=label,
            legendgroup=label,
            showlegend=all(trace.legendgroup != label for trace in figure.data),
            mode="lines+markers" if len(row["history"]) < 2 else "lines",
            line={"color": colours.get(row["method"], "#999999"), "width": 1.4},
            opacity=0.35 + 0.65 * (alphas.index(row["alpha"]) + 1) / len(alphas),
            hovertemplate=f"{row['run']}<br>epoch %{{x}}: %{{y:.4g}}<extra></extra>",
        )
    figure.update_xaxes(title="epoch")
    figure.update_yaxes(title=axis)
    return styled(figure)


def styled(figure: Figure) -> Figure:
    """The figure in the look that all share."""
    legend = {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0}
    return figure.update_layout(
        template="plotly_white", height=400, margin={"l": 60, "r": 20, "t": 40, "b": 50}, legend=legend
    )
