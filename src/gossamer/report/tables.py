"""What the commands print: tables of networks, of results and of the paper's experiments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gossamer.experiments.results import COLUMNS, Point, pareto
from gossamer.report.page import cells

if TYPE_CHECKING:
    from rich.table import Table

    from gossamer.experiments.paper import Experiment

SHOWN = ("method", "alpha", "rounds", "accuracy", "spread", "params", "madds", "bytes", "ms_image", "ms_batch")
"""The columns of the report's table that fit on a terminal."""


def show(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
    """Print a table, its first `left` columns aligned to the left and the others to the right.

    On a terminal it is as wide as that; in a pipe or file as wide as its text.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table: Table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < left else "right", no_wrap=index < left)
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=250)
    console.print(table)


def show_points(points: Sequence[Point], title: str) -> None:
    """The results of a sweep; a star marks the Pareto front of accuracy and params."""
    front = pareto(points, "params")
    indices = [list(COLUMNS).index(name) for name in SHOWN]
    rows = []
    for point in points:
        texts = cells(point)
        rows.append([f"{'* ' if point in front else '  '}{point.method}", *(texts[i] for i in indices[1:])])
    show(title, ["  method", *(COLUMNS[name] for name in SHOWN[1:])], rows)
    print("* on the Pareto front: nothing here has fewer params and is more accurate")


def show_experiments(experiments: Mapping[str, Experiment]) -> None:
    """The paper's experiments: name, what they train, and what the paper prints."""
    for name, experiment in experiments.items():
        base = experiment.base
        print(
            f"{name}\n    {experiment.title}\n    {base.model} on {base.data}: {experiment.rounds} rounds of "
            f"{base.epochs} epochs, batch {base.batch_size}, {base.optimizer} {base.lr:g}, pattern {base.pattern}\n"
            f"    {', '.join(size.name for size in experiment.sizes)}{_growth(experiment)}\n"
            f"    The paper: {experiment.says}"
        )


def _growth(experiment: Experiment) -> str:
    if not experiment.starts:
        return ""
    starts, periods = (" or ".join(f"{n:g}" for n in numbers) for numbers in (experiment.starts, experiment.periods))
    return f"; grown from density {starts}, doubling every {periods} steps"


def show_counts(experiment: Experiment, counted: Sequence[dict[str, Any]]) -> None:
    """The networks of one of the paper's experiments: our counts beside the numbers that the paper prints."""
    rows = [
        [
            row["network"],
            f"{row['params']:,}",
            row["paper_params"] or "",
            f"{row['madds']:,}",
            row["paper_madds"] or "",
        ]
        for row in counted
    ]
    show(experiment.title, ["network", "params", "paper", "madds", "paper"], rows)
