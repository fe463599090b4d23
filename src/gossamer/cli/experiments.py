"""Many networks: sweeps, growth, the paper's experiments, and their reports."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from gossamer.cli.options import GrowSettings, Numbers, SweepSettings, Words


@dataclass(frozen=True)
class Demo:
    """Run the main job on handwritten digits: a small network, thinned and sparsified to a few sizes, two rounds of
    each, then the table and the report. A few minutes on two cores; an interrupted demo goes on where it was.

    Example: gossamer demo
    """

    out: Path = Path("runs/demo")
    """Folder of the results."""

    def run(self) -> int:
        from gossamer.experiments import workers
        from gossamer.experiments.sweep import matched_sizes
        from gossamer.report import job
        from gossamer.training.config import RECIPES

        base = replace(RECIPES["digits"], threads=1)  # so small a network gains nothing from a second thread
        execute = partial(workers.processes, jobs=min(4, os.cpu_count() or 1))
        return job.run(base, matched_sizes((0.03, 0.1, 0.3, 1.0)), self.out, rounds=2, execute=execute)

    def on_interrupt(self) -> str:
        return f"`gossamer demo --out {self.out}` goes on with what is missing"


@dataclass(frozen=True)
class Sweep:
    """Train a network thinned and sparsified at several densities, a few rounds each, and report accuracy against cost.

    The two methods are matched by the paper's rule: thin by the square root of the density, rounded up. What is already
    in the folder is skipped, so the same command goes on after an interruption.

    Example: gossamer sweep mnist --data mnist --densities 0.01,0.03,0.1,0.3,1 --rounds 3 --out runs/b
    """

    settings: Annotated[SweepSettings, tyro.conf.arg(name="")]
    out: Path
    """Folder of the results."""
    densities: Numbers = (0.03, 0.1, 0.3, 1.0)
    """Densities; 1 is the dense network, run once for both methods."""
    widths: Numbers = ()
    """Hybrids: also sparsify the network thinned to each of these widths."""
    rounds: int = 1
    """Runs of each size, from different seeds."""
    jobs: int = 1
    """Runs at once on this machine; with more than 1, times are measured when all are trained."""
    measure_again: bool = False
    """Time the networks that are there already once more, on this machine."""
    ray: str | None = None
    """Run on a Ray cluster instead: its address, or "local". The folder must be one that all its machines see."""
    ray_cpus: float = 1
    """CPUs that Ray reserves for a run."""
    ray_gpus: float = 0
    """GPUs that Ray reserves for a run."""

    def run(self) -> int:
        from gossamer.experiments import workers
        from gossamer.experiments.sweep import matched_sizes
        from gossamer.report import job

        if self.ray:
            execute = partial(workers.on_ray, address=self.ray, cpus=self.ray_cpus, gpus=self.ray_gpus)
        else:
            execute = partial(workers.processes, jobs=self.jobs)
        sizes = matched_sizes(self.densities, self.widths)
        again = self.measure_again
        return job.run(self.settings.config(), sizes, self.out, rounds=self.rounds, execute=execute, again=again)

    def on_interrupt(self) -> str:
        return f"the same command goes on with what is missing in {self.out}"


@dataclass(frozen=True)
class Grow:
    """Compare dense from scratch with networks that start almost empty and grow dense while they train (paper, 5.3).

    Accuracy is measured along the way, against steps and seconds, with the growths marked. What is already in the folder
    is skipped, so the same command goes on after an interruption.

    Example: gossamer grow mnist --data mnist --starts 0.01,0.001 --periods 50,100 --epochs 2 --out runs/grow
    """

    settings: Annotated[GrowSettings, tyro.conf.arg(name="")]
    out: Path
    """Folder of the results."""
    starts: Numbers = (0.01, 0.001)
    """Densities to start from."""
    periods: Numbers = (50, 100)
    """Steps between growths."""
    variants: Words = ("zero",)
    """What grows: zero (random connections that start at zero), random (random kernels too), gradient (RigL), channels
    (of a thin dense network with as many params: the paper's counter-example)."""
    rounds: int = 1
    """Runs of each course, from different seeds."""
    points: int = 50
    """Points on each curve, besides those around growths."""
    images: int = 2000
    """Test images behind each point."""

    def run(self) -> int:
        from gossamer.experiments import grow
        from gossamer.report import job

        sizes = grow.courses(self.starts, self.periods, self.variants)
        base = self.settings.config()
        return job.run_growth(base, sizes, self.out, rounds=self.rounds, points=self.points, images=self.images)

    def on_interrupt(self) -> str:
        return f"the same command goes on with what is missing in {self.out}"


@dataclass(frozen=True)
class Report:
    """Write the report of a sweep: one HTML page that opens offline, the figures (SVG, PNG) and the table (CSV).

    Example: gossamer report runs/b
    """

    folder: tyro.conf.Positional[Path]
    """Folder that `gossamer sweep` wrote."""

    def run(self) -> int:
        from gossamer.report import job

        job.show(self.folder)
        return 0


@dataclass(frozen=True)
class Paper:
    """List the paper's experiments (Figures 2 to 6, Table 1) with the numbers it prints, or run one.

    Examples: gossamer paper
              gossamer paper table1 --count-only
              gossamer paper table1 --data IMAGENET_FOLDER --out runs/table1
              gossamer paper figure5 --data photos --epochs 1 --batch-size 16 --only dense,sparse-0.1 --out runs/vgg
    """

    name: tyro.conf.Positional[str] = ""
    """figure2, figure3, figure4, figure5, figure6 or table1; nothing lists them."""
    count_only: bool = False
    """Train nothing: print params and madds of each network beside the paper's."""
    json: bool = False
    """With --count-only: print JSON."""
    out: Path | None = None
    """Folder of the results; default: runs/NAME."""
    only: Annotated[str, tyro.conf.arg(metavar="NETWORK,...")] = ""
    """Only these networks of the experiment, by the names that --count-only prints."""
    data: str | None = None
    """Another data set than the paper's."""
    data_root: str | None = None
    """Folder that holds (or receives) the named data sets; default: $GOSSAMER_DATA, else a user cache folder."""
    epochs: int | None = None
    """Other than the paper's."""
    batch_size: int | None = None
    """Other than the paper's."""
    lr: float | None = None
    """Highest learning rate, other than here."""
    rounds: int | None = None
    """Runs of each network, other than the paper's."""
    threads: int | None = None
    """CPU threads of one process; default: PyTorch's choice."""
    workers: int | None = None
    """Processes that decode the images of an image folder."""
    jobs: int = 1
    """Runs at once on this machine."""

    def run(self) -> int:
        from gossamer.experiments import paper
        from gossamer.report import tables

        if not self.name:
            tables.show_experiments(paper.EXPERIMENTS)
            return 0
        experiment = paper.find(self.name)
        sizes = experiment.some(self.only.split(",")) if self.only else experiment.sizes
        if self.count_only:
            counted = paper.counts(experiment, sizes)
            print(json.dumps(counted, indent=1)) if self.json else tables.show_counts(experiment, counted)
            return 0
        from gossamer.experiments import grow, workers
        from gossamer.report import job

        fields = ("data", "data_root", "epochs", "batch_size", "lr", "threads", "workers")
        given = {name: getattr(self, name) for name in fields if getattr(self, name) is not None}
        base, rounds = replace(experiment.base, **given), self.rounds or experiment.rounds
        if experiment.starts:
            courses = grow.courses(experiment.starts, experiment.periods, ("zero",))
            return job.run_growth(base, courses, self._folder(), rounds=rounds)
        execute = partial(workers.processes, jobs=self.jobs)
        return job.run(base, sizes, self._folder(), rounds=rounds, execute=execute, paper=self.name)

    def _folder(self) -> Path:
        return self.out or Path("runs") / self.name

    def on_interrupt(self) -> str:
        return f"the same command goes on with what is missing in {self._folder()}"
