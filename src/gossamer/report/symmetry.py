"""Symmetries against density (section 4), from result lines: the table and the figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gossamer.connectivity import PATTERNS
from gossamer.experiments.results import Row
from gossamer.experiments.symmetry import logarithm
from gossamer.report import figures, tables

NETWORKS = {"thin": "thin, dense, as many params", **{name: f"sparse, {name}" for name in PATTERNS}}
"""The curves: name -> label."""
COLOURS = {"thin": "#1f77b4", "balanced": "#d62728", "uniform": "#ff7f0e"}
MARKERS = {"thin": "o", "balanced": "s", "uniform": "^"}


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    tables.show(
        f"Channel permutations that leave the connections of {rows[0]['model']} unchanged",
        ["network", "density", "width", "params", "channels", "told apart", "symmetries", "Lemma 1's product"],
        [
            [
                row["network"],
                f"{row['density']:g}",
                f"{row['width']:.3g}",
                f"{row['params']:,}",
                f"{row['channels']:,}",
                f"{row['distinct']:,}",
                logarithm(row),
                f"10^{row['lemma1']:.1f}",
            ]
            for row in rows
        ],
    )
    print(
        "symmetries: exact, or an upper bound after <=. told apart: signatures, as many as channels when the connections "
        "tell every channel from the others.\nLemma 1's product: what a dense network of the same channels has."
    )


def draw(rows: Sequence[Row], stem: Path, *, title: str) -> list[Path]:
    """Write the figure, as .svg and .png: log10 of the symmetries against density; hollow marks are upper bounds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, label in NETWORKS.items():
        curve = sorted((row for row in rows if row["network"] in (name, "dense")), key=lambda row: row["density"])
        if not curve:
            continue
        axes.plot(
            [row["density"] for row in curve],
            [row["log10"] for row in curve],
            color=COLOURS[name],
            linewidth=1.2,
            label=label,
        )
        for row in curve:
            axes.plot(
                row["density"],
                row["log10"],
                MARKERS[name],
                color=COLOURS[name],
                markersize=5,
                fillstyle="full" if row["exact"] else "none",
            )
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(-0.2, 4 * max(1.0, *(row["log10"] for row in rows)))
    axes.set_xlabel("density")
    axes.set_ylabel("log10 (symmetries)")
    axes.set_title(title, fontsize=10)
    axes.grid(visible=True, which="major", linewidth=0.4)
    axes.legend(fontsize=8)
    return figures.save(figure, stem)
