"""What the curves of incremental training say: a table, the paper's Figure 6 and a page, from result lines alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from gossamer.experiments import results
from gossamer.experiments.results import Row, done
from gossamer.report import figures, tables
from gossamer.report import page as pages

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SHARE = 0.99
"""Of the dense network's final accuracy: the time to this much is compared."""
AXES = {"step": "steps", "seconds": "seconds of training", "cpu_seconds": "CPU seconds of training"}


@dataclass(frozen=True)
class Spurt:
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
    """The runs of one course, means over rounds, and standard deviations in the fields named `..._spread`.

    Times are those to 99% of the dense network's final accuracy.
    """

    course: str
    rounds: int
    accuracy: float
    accuracy_spread: float
    full_step: float | None
    step: float | None
    seconds: float | None
    seconds_spread: float
    cpu_seconds: float | None
    cpu_seconds_spread: float
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
    return bool(_measured(rows))


def growths(row: Row) -> list[Spurt]:
    """Every growth of a run, in order."""
    curve = row["curve"]
    at = [i for i in range(1, len(curve)) if curve[i]["density"] > curve[i - 1]["density"]]
    found = []
    for i, end in zip(at, [*at[1:], len(curve)], strict=False):
        before, stage = curve[i - 1], curve[i:end]
        back = next((p["step"] - curve[i]["step"] for p in stage if p["accuracy"] >= before["accuracy"]), None)
        found.append(
            Spurt(
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
    courses = _by_course(rows)
    goal = None
    if "dense" in courses:
        goal = SHARE * statistics.fmean(row["curve"][-1]["accuracy"] for row in courses["dense"])
    return [_line(name, group, goal) for name, group in courses.items()]


def _by_course(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The runs that ended well by course, the dense network first."""
    courses: dict[str, list[Row]] = {}
    for row in sorted(_measured(rows), key=lambda row: row["method"] != "dense"):
        courses.setdefault(row["method"], []).append(row)
    return courses


def _measured(rows: Sequence[Row]) -> list[Row]:
    """The runs that ended well and have a curve."""
    return [row for row in done(rows) if "curve" in row]


def _line(course: str, rows: Sequence[Row], goal: float | None) -> Line:
    reached = [next((p for p in row["curve"] if goal is not None and p["accuracy"] >= goal), None) for row in rows]

    def to_goal(field: str) -> float | None:
        return statistics.fmean(p[field] for p in reached if p) if all(reached) else None

    def spread(field: str) -> float:
        return _spread([p[field] for p in reached if p]) if all(reached) else 0.0

    every = [growth for row in rows for growth in growths(row)]
    back = [growth.recovered for growth in every if growth.recovered is not None]
    full = [next((p["step"] for p in row["curve"] if p["density"] == 1), None) for row in rows]
    return Line(
        course=course,
        rounds=len(rows),
        accuracy=statistics.fmean(row["accuracy"] for row in rows),
        accuracy_spread=_spread([row["accuracy"] for row in rows]),
        full_step=statistics.fmean(s for s in full if s is not None) if None not in full and every else None,
        step=to_goal("step"),
        seconds=to_goal("seconds"),
        seconds_spread=spread("seconds"),
        cpu_seconds=to_goal("cpu_seconds"),
        cpu_seconds_spread=spread("cpu_seconds"),
        train_seconds=statistics.fmean(row["curve"][-1]["seconds"] for row in rows),
        train_cpu_seconds=statistics.fmean(row["curve"][-1]["cpu_seconds"] for row in rows),
        growths=len(every),
        largest_drop=max((growth.drop for growth in every), default=None),
        recovery=statistics.median(back) if back else None,
        unrecovered=len(every) - len(back),
    )


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def cells(line: Line) -> list[str]:
    """A line as text, in the order of `HEADINGS`."""

    def number(value: float | None, form: str = ".0f", missing: str = "") -> str:
        return missing if value is None else format(value, form)

    def spread(value: float | None, deviation: float, form: str) -> str:
        return number(value, form, "never") + (
            f" ± {deviation:{form}}" if line.rounds > 1 and value is not None else ""
        )

    return [
        line.course,
        str(line.rounds),
        spread(100 * line.accuracy, 100 * line.accuracy_spread, ".2f"),
        number(line.full_step),
        number(line.step, missing="never"),
        spread(line.seconds, line.seconds_spread, ".1f"),
        spread(line.cpu_seconds, line.cpu_seconds_spread, ".1f"),
        f"{line.train_seconds:.1f}",
        f"{line.train_cpu_seconds:.1f}",
        str(line.growths),
        number(line.largest_drop and 100 * line.largest_drop, ".2f"),
        number(line.recovery),
        str(line.unrecovered) if line.growths else "",
    ]


def show(folder: Path) -> None:
    """Print the table of a folder that `gossamer grow` wrote, and write its table, figures and page."""
    rows = results.finished(folder)
    if not is_growth(rows):
        raise ValueError(f"{folder} holds no run that ended well and has a curve")
    lines = summarise(rows)
    title = f"Incremental training: {results.title(rows)}"
    pages.write_table(folder / "table.csv", Line.__dataclass_fields__, (astuple(line) for line in lines))
    paths = draw(rows, folder / "figures" / "growth", title)
    page = folder / "report.html"
    pages.write_page(page, _page(rows, lines, title))
    tables.show(title, HEADINGS, [cells(line) for line in lines])
    print(f"figures: {paths[0]}\ntable:   {folder / 'table.csv'}\nreport:  {page.resolve()}")


@dataclass(frozen=True)
class MeanCurve:
    """The curves of one course: means over its rounds at each step, and the band from the lowest to the highest accuracy."""

    course: str
    along: dict[str, list[float]]  # by field of `AXES`
    density: list[float]
    accuracy: list[float]  # in percent, as the two bounds
    lowest: list[float]
    highest: list[float]

    @property
    def growths(self) -> list[int]:
        """The points right after a growth."""
        return [i + 1 for i, (before, after) in enumerate(pairwise(self.density)) if after > before]

    @property
    def full(self) -> list[int]:
        """The growth that made it dense, if one did."""
        return [i for i in self.growths if self.density[i] == 1]

    @classmethod
    def of(cls, course: str, rows: Sequence[Row]) -> MeanCurve:
        by_step = [{point["step"]: point for point in row["curve"]} for row in rows]
        steps = sorted(set.intersection(*(set(points) for points in by_step)))
        points = [[of_run[step] for of_run in by_step] for step in steps]

        def means(field: str) -> list[float]:
            return [statistics.fmean(p[field] for p in group) for group in points]

        accuracies = [[100 * p["accuracy"] for p in group] for group in points]
        return cls(
            course,
            {field: means(field) for field in AXES},
            means("density"),
            [statistics.fmean(group) for group in accuracies],
            [min(group) for group in accuracies],
            [max(group) for group in accuracies],
        )


def mean_curves(rows: Sequence[Row]) -> list[MeanCurve]:
    """One for each course, the dense network first; none for a course whose rounds have no step in common."""
    curves = [MeanCurve.of(name, group) for name, group in _by_course(rows).items()]
    return [curve for curve in curves if curve.accuracy]


def draw(rows: Sequence[Row], stem: Path, title: str) -> list[Path]:
    """Figure 6's curves against steps and seconds, as `.svg` and `.png`; a dot is a growth, a ring the full density."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    curves = mean_curves(rows)
    colours = _colours(curves)
    best = max((max(curve.accuracy) for curve in curves), default=0.0)
    for index, (field, label) in enumerate(AXES.items(), start=1):
        axes = figure.add_subplot(1, len(AXES), index)
        for curve in curves:
            colour, xs, ys = colours[curve.course], curve.along[field], curve.accuracy
            axes.plot(xs, ys, color=colour, linewidth=1.1, label=curve.course)
            axes.fill_between(xs, curve.lowest, curve.highest, color=colour, alpha=0.15, linewidth=0)
            for at, size, fill in ((curve.growths, 2, "full"), (curve.full, 7, "none")):
                axes.plot([xs[i] for i in at], [ys[i] for i in at], "o", color=colour, markersize=size, fillstyle=fill)
        axes.set_ylim(bottom=max(0.0, 100 - 12 * (100 - best)), top=best + 0.08 * (100 - best))
        axes.set_xlabel(label)
        axes.set_ylabel("test accuracy, %")
        axes.grid(visible=True, linewidth=0.4)
    axes.legend(fontsize=7, loc="lower right")
    figure.suptitle(f"{title} (dots: growth; ring: full density; band: all rounds)", fontsize=10)
    return figures.save(figure, stem)


def _colours(curves: Sequence[MeanCurve]) -> dict[str, str]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    courses = [curve.course for curve in curves if curve.course != "dense"]
    return {"dense": "#222222", **{name: to_hex(colormaps["tab10"](i % 10)) for i, name in enumerate(courses)}}


def _page(rows: Sequence[Row], lines: Sequence[Line], title: str) -> str:
    finished, curves = _measured(rows), mean_curves(rows)
    dense = next((line for line in lines if line.course == "dense"), None)
    return pages.render(
        title=title,
        subtitle=f"{len(finished)} runs. "
        + (f"The dense network ends at {100 * dense.accuracy:.2f}%." if dense else "The dense network is missing."),
        growth={
            "plots": [pages.html(_curves(curves, field, label)) for field, label in AXES.items()],
            "headings": HEADINGS,
            "rows": [cells(line) for line in lines],
            "steps": [_step_cells(growth) for row in finished for growth in growths(row)],
        },
        failed=[row for row in rows if row.get("status") == "failed"],
        configuration={
            k: v for k, v in finished[0].get("config", {}).items() if k != "seed" and not k.startswith("grow_")
        },
        machine={**finished[0].get("machine", {}), "gossamer": finished[0].get("version", "")},
    )


def _step_cells(growth: Spurt) -> list[str]:
    return [
        growth.run,
        str(growth.step),
        f"{growth.density_before:.4g} to {growth.density:.4g}",
        f"{100 * growth.before:.2f}",
        f"{100 * growth.after:.2f}",
        f"{100 * growth.lowest:.2f}",
        "not before the next" if growth.recovered is None else str(growth.recovered),
    ]


def _curves(curves: Sequence[MeanCurve], field: str, label: str) -> Figure:
    from plotly import graph_objects as go

    figure = go.Figure()
    colours = _colours(curves)
    for curve in curves:
        xs, colour = curve.along[field], colours[curve.course]
        figure.add_scatter(
            x=[*xs, *reversed(xs)],
            y=[*curve.highest, *reversed(curve.lowest)],
            fill="toself",
            fillcolor=colour,
            opacity=0.15,
            line={"width": 0},
            legendgroup=curve.course,
            showlegend=False,
            hoverinfo="skip",
        )
        figure.add_scatter(
            x=xs,
            y=curve.accuracy,
            name=curve.course,
            legendgroup=curve.course,
            mode="lines+markers",
            line={"color": colour, "width": 1.4},
            marker={"size": [7 if i in curve.growths else 1 for i in range(len(xs))]},
            customdata=[f"{density:.4g}" for density in curve.density],
            hovertemplate=f"{curve.course}<br>%{{x}}: %{{y:.2f}}%, density %{{customdata}}<extra></extra>",
        )
    figure.update_xaxes(title=label)
    figure.update_yaxes(title="test accuracy, %")
    return pages.styled(figure)
