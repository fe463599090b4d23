"""A sweep: one network thinned and sparsified to several sizes, each trained from several seeds, a result line a run.

`gossamer sweep mnist --data mnist --densities 0.01,0.1,1 --rounds 3 --out runs/b` is `plan` (what to run) and `sweep`
(run what is not there yet); `workers` is where runs happen.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer import files
from gossamer.experiments import results
from gossamer.experiments.results import FILE, Row
from gossamer.training.config import TrainConfig, other_settings

PLAN = "sweep.json"


@dataclass(frozen=True)
class Size:
    """A network of the sweep: how it is thinned and sparsified. `alpha`: its nominal share of the dense connections."""

    method: str
    alpha: float
    width: float = 1.0
    density: float = 1.0

    @classmethod
    def dense(cls) -> Size:
        return cls("dense", 1.0)

    @classmethod
    def thin(cls, width: float) -> Size:
        """Fewer channels (paper, 3.1)."""
        return cls("thin", round(width**2, 10), width=width)

    @classmethod
    def sparse(cls, density: float) -> Size:
        """Fewer connections (paper, 3.2)."""
        return cls("sparse", density, density=density)

    @classmethod
    def hybrid(cls, width: float, density: float) -> Size:
        """Both (Table 1's row "0.50/0.01")."""
        return cls("hybrid", round(width**2 * density, 10), width=width, density=density)

    @property
    def name(self) -> str:
        parts = {
            "dense": "",
            "thin": f"-{self.width:.4g}",
            "sparse": f"-{self.density:.4g}",
            "hybrid": f"-{self.width:.4g}x{self.density:.4g}",
        }
        return self.method + parts.get(self.method, "")

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of the configuration that make the network this one."""
        return {"width": self.width, "density": self.density}


@dataclass(frozen=True)
class Run:
    """One training run of a sweep: a size, a round, and the whole configuration that follows from them."""

    size: Size
    round: int
    config: TrainConfig

    @property
    def name(self) -> str:
        return f"{self.size.name}-r{self.round}"

    def with_threads(self, threads: int) -> Run:
        """The same run on so many CPU threads."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, threads=threads))

    def row(self, **values: Any) -> Row:
        """The result line of this run."""
        return {
            "run": self.name,
            "method": self.size.method,
            "alpha": self.size.alpha,
            "width": self.size.width,
            "density": self.size.density,
            "round": self.round,
            **values,
            "config": self.config.to_dict(),
        }


def matched_sizes(densities: Sequence[float], widths: Sequence[float] = ()) -> list[Size]:
    """Both methods at each density, by the paper's rule (5.2.1): thin by the square root of the density, or keep that
    fraction of the connections. Density 1 is the same network either way and appears once.

    Each of `widths` adds hybrids: thinned to it, then sparsified to each density below 1.
    """
    for value in densities:
        if not 0 < value <= 1:
            raise ValueError(f"density {value:g} is not in (0, 1]")
    for width in widths:
        if not 0 < width < 1:
            raise ValueError(f"width {width:g} of a hybrid is not in (0, 1)")
    below = sorted(set(densities) - {1.0}, reverse=True)
    dense = [Size.dense()] if 1.0 in densities else []
    thin = [Size("thin", value, width=math.sqrt(value)) for value in below]
    sparse = [Size.sparse(value) for value in below]
    return dense + thin + sparse + [Size.hybrid(width, value) for width in widths for value in below]


def plan(base: TrainConfig, sizes: Sequence[Size], rounds: int = 1) -> list[Run]:
    """Every run of the sweep, a whole round before the next, so that an early stop leaves whole curves."""
    if rounds < 1 or not sizes:
        raise ValueError(f"a sweep of {len(sizes)} sizes and {rounds} rounds has nothing to run")
    return [
        Run(size, r, dataclasses.replace(base, **size.settings, seed=base.seed + r))
        for r in range(rounds)
        for size in sizes
    ]


Execute = Callable[[Sequence[Run], Path], Iterator[Row]]
"""Does something with each run, in any order and place, and yields their lines as they end; see `workers`."""


def sweep(
    base: TrainConfig,
    sizes: Sequence[Size],
    folder: Path,
    execute: Execute,
    measure: Execute | None = None,
    *,
    rounds: int = 1,
    paper: str | None = None,
    again: bool = False,
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Do what is not there yet of a sweep in `folder`, a line in `results.jsonl` for each run; returns all lines there.

    `execute` trains; `measure` then times the networks that no line holds times of (all of them when `again`).
    Runs that ended well are skipped, those that failed are tried again. A folder that holds a sweep of another
    configuration is a `ValueError` naming the fields that differ. `paper` names the paper's experiment that this is.
    """
    runs = plan(base, sizes, rounds)
    _claim(folder, base, paper)
    path = folder / FILE
    there = {row["run"] for row in results.done(results.read(path))} if path.exists() else set()
    todo = [run for run in runs if run.name not in there]
    say(f"{len(runs)} runs, {len(runs) - len(todo)} of them there already, in {folder}")
    for number, row in enumerate(execute(todo, folder), start=1):
        results.append(path, row)
        say(f"{number}/{len(todo)} {describe(row)}")
    rows = results.read(path) if path.exists() else []
    trained = {row["run"]: "ms_image" in row for row in results.done(rows)}
    untimed = [run for run in runs if run.name in trained and (again or not trained[run.name])]
    if measure is None or not untimed:
        return rows
    say(f"measuring {len(untimed)} networks")
    for row in measure(untimed, folder):
        results.append(path, row)
    return results.read(path)


def describe(row: Row) -> str:
    """A finished run in one line of text."""
    if row["status"] == "failed":
        return f"{row['run']} failed: {row.get('error')}"
    time = f", {row['ms_image']:.3g} ms an image" if row.get("ms_image") is not None else ""
    return (
        f"{row['run']}: accuracy {100 * row['accuracy']:.2f}%, {row['params']:,} params, {row['madds']:,} madds, "
        f"trained in {row['train_seconds']:.0f} s{time}"
    )


def settings_of(folder: Path) -> dict[str, Any]:
    """What `sweep.json` says of a folder's sweep: `settings`, and the name of the `paper`'s experiment or None."""
    path = folder / PLAN
    if not path.is_file():
        return {"settings": {}, "paper": None}
    try:
        there: dict[str, Any] = files.read_json(path)
        paper = there["paper"]
        if paper is not None and not isinstance(paper, str):
            raise ValueError("no name of an experiment")
        return {"settings": dict(there["settings"]), "paper": paper}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged; remove it to go on with the results in {folder}") from None


def _claim(folder: Path, base: TrainConfig, paper: str | None) -> None:
    """Write the sweep's settings into the folder, or check that they are those already there."""
    ours = base.to_dict()
    there = settings_of(folder)["settings"]
    differ = other_settings(there, ours) if there else ""
    if differ:
        raise ValueError(f"{folder} holds a sweep with other settings ({differ}); give another --out")
    if not there:
        folder.mkdir(parents=True, exist_ok=True)
        files.write(folder / PLAN, (json.dumps({"settings": ours, "paper": paper}, indent=1) + "\n").encode())
