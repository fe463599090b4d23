"""What the curves of incremental training say: a table, the paper's Figure 6 and a page, from result lines alone."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer.experiments import report, tables
from gossamer.experiments.results import Row, done, read

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SHARE = 0.99
"""Of the dense network's final accuracy: the time to this much is compared."""
AXES = {"step": "steps", "seconds": "seconds of training", "cpu_seconds": "CPU seconds of training"}


@dataclass(frozen=True)
class Growth:
    """One growth of one run: the accuracy before it, the lowest until the next, and the steps until it was back."""

    run: str
    step: int
    density_before: float
    density: float
    before: float
    after: float
    lowest: float
    recovered: int | None

    @property
    def drop(self) -> float:
        return max(0.0, self.before - self.lowest)


@dataclass(frozen=True)
class Line:
    """The runs of one course, means over rounds. Times are those to 99% of the dense network's final accuracy."""

    course: str
    rounds: int
    accuracy: float
    full_step: float | None
    step: float | None
    seconds: float | None
    cpu_seconds: float | None
    train_seconds: float
    train_cpu_seconds: float
    growths: int
    largest_drop: float | None
    recovery: float | None
    """Median steps from a growth to the accuracy before it."""
    unrecovered: int
    """Growths whose accuracy did not come back before the next one, or the end."""


HEADINGS = (
    "course",
    "rounds",
    "final accuracy, %",
    "full at step",
    "steps to 99%",
    "seconds to 99%",
    "CPU s to 99%",
    "training s",
    "training CPU s",
    "growths",
    "largest drop",
    "median recovery, steps",
    "not recovered",
)


def is_growth(rows: Sequence[Row]) -> bool:
    """Whether result lines are those of `gossamer grow`."""
    return any("curve" in row for row in rows)


def growths(row: Row) -> list[Growth]:
    """Every growth of a run, in order."""
    curve = row["curve"]
    at = [i for i in range(1, len(curve)) if curve[i]["density"] > curve[i - 1]["density"]]
    found = []
    for i, end in zip(at, [*at[1:], len(curve)], strict=False):
        before, stage = curve[i - 1], curve[i:end]
        back = next((p["step"] - curve[i]["step"] for p in stage if p["accuracy"] >= before["accuracy"]), None)
        found.append(
            Growth(
                row["run"],
                curve[i]["step"],
                before["density"],
                curve[i]["density"],
                before["accuracy"],
                curve[i]["accuracy"],
                min(p["accuracy"] for p in stage),
                back,
            )
        )
    return found


def summarise(rows: Sequence[Row]) -> list[Line]:
    """A line for each course, the dense network first."""
    courses: dict[str, list[Row]] = {}
    for row in done(rows):
        courses.setdefault(row["method"], []).append(row)
    goal = (
        SHARE * statistics.fmean(row["curve"][-1]["accuracy"] for row in courses["dense"])
        if "dense" in courses
        else None
    )
    return [_line(name, group, goal) for name, group in sorted(courses.items(), key=lambda item: item[0] != "dense")]


def _line(course: str, rows: Sequence[Row], goal: float | None) -> Line:
    reached = [next((p for p in row["curve"] if goal is not None and p["accuracy"] >= goal), None) for row in rows]

    def to_goal(field: str) -> float | None:
        return statistics.fmean(p[field] for p in reached if p) if all(reached) else None

    every = [growth for row in rows for growth in growths(row)]
    back = [growth.recovered for growth in every if growth.recovered is not None]
    full = [next((p["step"] for p in row["curve"] if p["density"] == 1), None) for row in rows]
    return Line(
        course=course,
        rounds=len(rows),
        accuracy=statistics.fmean(row["accuracy"] for row in rows),
        full_step=statistics.fmean(s for s in full if s is not None) if None not in full and every else None,
        step=to_goal("step"),
        seconds=to_goal("seconds"),
        cpu_seconds=to_goal("cpu_seconds"),
        train_seconds=statistics.fmean(row["curve"][-1]["seconds"] for row in rows),
        train_cpu_seconds=statistics.fmean(row["curve"][-1]["cpu_seconds"] for row in rows),
        growths=len(every),
        largest_drop=max((growth.drop for growth in every), default=None),
        recovery=statistics.median(back) if back else None,
        unrecovered=len(every) - len(back),
    )


def cells(line: Line) -> list[str]:
    """A line as text, in the order of `HEADINGS`."""

    def number(value: float | None, form: str = ".0f", missing: str = "") -> str:
        return missing if value is None else format(value, form)

    return [
        line.course,
        str(line.rounds),
        f"{100 * line.accuracy:.2f}",
        number(line.full_step),
        number(line.step, missing="never"),
        number(line.seconds, ".1f", "never"),
        number(line.cpu_seconds, ".1f", "never"),
        f"{line.train_seconds:.1f}",
        f"{line.train_cpu_seconds:.1f}",
        str(line.growths),
        number(line.largest_drop and 100 * line.largest_drop, ".2f"),
        number(line.recovery),
        str(line.unrecovered) if line.growths else "",
    ]


def show(folder: Path) -> None:
    """Print the table of a folder that `gossamer grow` wrote, and write its table, figures and page."""
    rows = read(folder)
    if not done(rows):
        errors = "; ".join(f"{row['run']}: {row.get('error')}" for row in rows)
        raise ValueError(f"{folder} holds no finished run to report on ({errors})")
    lines = summarise(rows)
    config = rows[0]["config"]
    title = f"Incremental training: {config['model']} on {config['data']}"
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Line.__dataclass_fields__)
        writer.writerows(astuple(line) for line in lines)
    files = draw(rows, folder / "figures" / "growth", title)
    page = folder / "report.html"
    page.write_text(_page(rows, lines, title), encoding="utf-8")
    tables.show(title, HEADINGS, [cells(line) for line in lines])
    print(f"figures: {files[0]}\ntable:   {folder / 'table.csv'}\nreport:  {page.resolve()}")


def draw(rows: Sequence[Row], stem: Path, title: str) -> list[Path]:
    """Figure 6's curves against steps and seconds, as `.svg` and `.png`; a dot is a growth, a ring the full density."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    colours = _colours(rows)
    best = max(p["accuracy"] for row in done(rows) for p in row["curve"])
    for index, (field, label) in enumerate(AXES.items(), start=1):
        axes = figure.add_subplot(1, len(AXES), index)
        for row in done(rows):
            curve = row["curve"]
            xs, ys = [p[field] for p in curve], [100 * p["accuracy"] for p in curve]
            first = row["round"] == 0
            axes.plot(xs, ys, color=colours[row["method"]], linewidth=1.1, label=row["method"] if first else None)
            grown = [i for i in range(1, len(curve)) if curve[i]["density"] > curve[i - 1]["density"]]
            axes.plot([xs[i] for i in grown], [ys[i] for i in grown], ".", color=colours[row["method"]], markersize=4)
            if grown and curve[grown[-1]]["density"] == 1:
                axes.plot(
                    xs[grown[-1]], ys[grown[-1]], "o", color=colours[row["method"]], markersize=7, fillstyle="none"
                )
        axes.set_ylim(bottom=max(0.0, 100 * (1 - 12 * (1 - best))), top=100 * best + 8 * (1 - best))
        axes.set_xlabel(label)
        axes.set_ylabel("test accuracy, %")
        axes.grid(visible=True, linewidth=0.4)
    axes.legend(fontsize=7, loc="lower right")
    figure.suptitle(f"{title} (dots: growth; ring: full density)", fontsize=10)
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = [stem.with_suffix(suffix) for suffix in (".svg", ".png")]
    for file in files:
        figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else {})
    return files


def _colours(rows: Sequence[Row]) -> dict[str, Any]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    courses = list(dict.fromkeys(row["method"] for row in done(rows) if row["method"] != "dense"))
    return {"dense": "#222222", **{name: to_hex(colormaps["tab10"](i % 10)) for i, name in enumerate(courses)}}


def _page(rows: Sequence[Row], lines: Sequence[Line], title: str) -> str:
    finished = done(rows)
    dense = next((line for line in lines if line.course == "dense"), None)
    return report.render(
        title=title,
        subtitle=f"{len(finished)} runs. "
        + (f"The dense network ends at {100 * dense.accuracy:.2f}%." if dense else "The dense network is missing."),
        growth={
            "plots": [report.html(_curves(finished, field, label)) for field, label in AXES.items()],
            "headings": HEADINGS,
            "rows": [cells(line) for line in lines],
            "steps": [_step_cells(growth) for row in finished for growth in growths(row)],
        },
        failed=[row for row in rows if row.get("status") == "failed"],
        configuration={k: v for k, v in finished[0]["config"].items() if k != "seed" and not k.startswith("grow_")},
        machine={**finished[0].get("machine", {}), "gossamer": finished[0].get("version", "")},
    )


def _step_cells(growth: Growth) -> list[str]:
    return [
        growth.run,
        str(growth.step),
        f"{growth.density_before:.4g} to {growth.density:.4g}",
        f"{100 * growth.before:.2f}",
        f"{100 * growth.after:.2f}",
        f"{100 * growth.lowest:.2f}",
        "not before the next" if growth.recovered is None else str(growth.recovered),
    ]


def _curves(rows: Sequence[Row], field: str, label: str) -> Figure:
    from plotly import graph_objects as go

    figure = go.Figure()
    colours = _colours(rows)
    for row in rows:
        curve = row["curve"]
        grown = [False, *(b["density"] > a["density"] for a, b in pairwise(curve))]
        figure.add_scatter(
            x=[p[field] for p in curve],
            y=[100 * p["accuracy"] for p in curve],
            name=row["method"],
            legendgroup=row["method"],
            showlegend=row["round"] == 0,
            mode="lines+markers",
            line={"color": colours[row["method"]], "width": 1.4},
            marker={"size": [7 if g else 1 for g in grown]},
            customdata=[f"{p['density']:.4g}" for p in curve],
            hovertemplate=f"{row['run']}<br>%{{x}}: %{{y:.2f}}%, density %{{customdata}}<extra></extra>",
        )
    figure.update_xaxes(title=label)
    figure.update_yaxes(title="test accuracy, %")
    return report.styled(figure)
