"""The subcommands of `gossamer`: each is a dataclass of its options; nothing heavy is imported before its `run`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gossamer.options import MODEL_HELP, GrowSettings, Model, Numbers, Settings, Shape, SweepSettings, Words
from gossamer.training.config import TrainConfig


@dataclass(frozen=True)
class Demo:
    """Run the main job on handwritten digits: a small network, thinned and sparsified to a few sizes, two rounds of
    each, then the table and the report. A few minutes on two cores; an interrupted demo goes on where it was.

    Example: gossamer demo
    """

    out: Path = Path("runs/demo")
    """Folder of the results."""

    def run(self) -> int:
        from gossamer.experiments import job, workers
        from gossamer.experiments.sweep import matched_sizes
        from gossamer.training.config import RECIPES

        base = replace(RECIPES["digits"], threads=1)  # so small a network gains nothing from a second thread
        execute = partial(workers.processes, jobs=min(4, os.cpu_count() or 1))
        return job.run(base, matched_sizes((0.03, 0.1, 0.3, 1.0)), self.out, rounds=2, execute=execute)

    def on_interrupt(self) -> str:
        return f"`gossamer demo --out {self.out}` goes on with what is missing"


@dataclass(frozen=True)
class Train:
    """Train one network and keep it, with its checkpoints and results, in a run folder.

    Example: gossamer train mnist --data mnist --density 0.05 --epochs 5 --out runs/a
    """

    settings: Annotated[Settings, tyro.conf.arg(name="")]
    out: Path
    """Folder of the run."""
    resume: bool = False
    """Go on from the last checkpoint in the folder."""

    def run(self) -> int:
        from gossamer.training.trainer import train

        train(self.settings.config(), self.out, resume=self.resume)
        return 0

    def on_interrupt(self) -> str:
        return f"the same command with --resume goes on from the last checkpoint in {self.out}"


@dataclass(frozen=True)
class Evaluate:
    """Loss and accuracy of a trained network on its test set.

    Example: gossamer evaluate runs/a
    """

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder that `gossamer train` wrote."""
    data_root: str | None = None
    """Folder of the named data sets, when it is not the one of the training."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        from gossamer.training.inference import evaluate

        result = evaluate(self.run_folder, data_root=self.data_root)
        if self.json:
            print(json.dumps(result, indent=1))
        else:
            print(f"accuracy {result['accuracy']:.2%}, loss {result['loss']:.4f} on {result['images']} test images")
        return 0


@dataclass(frozen=True)
class Predict:
    """The most probable classes of images, by a trained network.

    Example: gossamer predict runs/a seven.png
    """

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder that `gossamer train` wrote."""
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE")]
    """Image files."""
    top: int = 3
    """How many classes of each image."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        from gossamer.training.inference import predict

        predictions = predict(self.run_folder, self.images, top=self.top)
        if self.json:
            print(json.dumps([asdict(prediction) for prediction in predictions], indent=1))
            return 0
        for prediction in predictions:
            print(f"{prediction.image}: {', '.join(f'{name} {share:.1%}' for name, share in prediction.classes)}")
        return 0


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
        from gossamer.experiments import job, workers
        from gossamer.experiments.sweep import matched_sizes

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

        sizes = grow.courses(self.starts, self.periods, self.variants)
        base = self.settings.config()
        return grow.run(base, sizes, self.out, rounds=self.rounds, points=self.points, images=self.images)

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
        from gossamer.experiments import job

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
        from gossamer.experiments import paper, tables

        if not self.name:
            tables.show_experiments(paper.EXPERIMENTS)
            return 0
        experiment = paper.find(self.name)
        sizes = experiment.some(self.only.split(",")) if self.only else experiment.sizes
        if self.count_only:
            counted = paper.counts(experiment, sizes)
            print(json.dumps(counted, indent=1)) if self.json else tables.show_counts(experiment, counted)
            return 0
        from gossamer.experiments import grow, job, workers

        fields = ("data", "data_root", "epochs", "batch_size", "lr", "threads", "workers")
        given = {name: getattr(self, name) for name in fields if getattr(self, name) is not None}
        base, rounds = replace(experiment.base, **given), self.rounds or experiment.rounds
        if experiment.starts:
            courses = grow.courses(experiment.starts, experiment.periods, ("zero",))
            return grow.run(base, courses, self._folder(), rounds=rounds)
        execute = partial(workers.processes, jobs=self.jobs)
        return job.run(base, sizes, self._folder(), rounds=rounds, execute=execute, paper=self.name)

    def _folder(self) -> Path:
        return self.out or Path("runs") / self.name

    def on_interrupt(self) -> str:
        return f"the same command goes on with what is missing in {self._folder()}"


@dataclass(frozen=True)
class Count:
    """Params and multiply-adds of a network's convolutions, by layer and in total, thinned and sparsified as asked.

    Example: gossamer count inception_v3 --width 0.5 --divisor 8 --density 0.01 --pattern uniform --json
    """

    model: Annotated[Model, tyro.conf.arg(help=MODEL_HELP)]
    width: float = 1.0
    """Depth multiplier: the fraction of each layer's channels that is kept."""
    divisor: int = 1
    """Channel counts of a thinned network are multiples of this number (8 reproduces the paper's Table 1)."""
    density: float = 1.0
    """Fraction of the connections between channels that is kept."""
    pattern: Literal["balanced", "uniform"] = "balanced"
    """How connections are drawn: equal fan-ins and fan-outs, or independently (the paper)."""
    seed: int = 0
    """Seed of the pattern."""
    input: Shape | None = None
    """Channels, height and width of one image; default: the network's own."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        from gossamer.experiments.networks import counted

        config = TrainConfig(
            model=self.model,
            width=self.width,
            divisor=self.divisor,
            density=self.density,
            pattern=self.pattern,
            seed=self.seed,
        )
        cost = counted(config, self.input)
        print(json.dumps(asdict(cost), indent=1) if self.json else cost)
        return 0


@dataclass(frozen=True)
class Symmetry:
    """How many channel permutations leave a network's connections unchanged, against density (paper, section 4): for both
    patterns of sparse connections and for thinned networks with as many params.

    Prints the table, draws the figure, and adds a line for each network to symmetry.jsonl.

    Example: gossamer symmetry mnist --densities 0.003,0.01,0.03,0.1,0.3,1
    """

    model: Annotated[Model, tyro.conf.arg(help=MODEL_HELP)]
    densities: Numbers = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    """Densities; 1 is the dense network."""
    input: Shape | None = None
    """Channels, height and width of one image; default: the network's own."""
    seed: int = 0
    """Seed of the patterns."""
    out: Path = Path("runs/symmetry")
    """Folder of the figure and the result lines."""
    json: bool = False
    """Print JSON, with every layer."""

    def run(self) -> int:
        from gossamer.experiments import symmetry

        rows, files = symmetry.run(self.model, self.densities, self.out, shape=self.input, seed=self.seed)
        print(json.dumps(rows, indent=1)) if self.json else symmetry.show(rows)
        print(f"figure: {', '.join(map(str, files))}", file=sys.stderr)
        return 0


@dataclass(frozen=True)
class Bench:
    """Milliseconds of a network, by layer and in total: dense beside sparse beside thin at equal multiply-adds.

    Also memory, and the path each sparse layer took and why. All variants take turns, so that a busy machine is unfair to
    none; each figure is a median.

    Example: gossamer bench vgg16n --densities 0.03,0.1,1 --batch 1 --threads 1,2
    """

    model: Annotated[Model, tyro.conf.arg(help=MODEL_HELP)]
    densities: Numbers = (0.03, 0.1)
    """Densities of the sparse networks."""
    threads: Numbers = ()
    """CPU threads, one table each; default: PyTorch's choice."""
    batch: int = 1
    """Images at once."""
    train: bool = False
    """Time forward and backward instead of the forward pass alone."""
    input: Shape | None = None
    """Channels, height and width of one image; default: the network's own."""
    seconds: float = 0.5
    """Time spent on each figure, at least."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        from gossamer import models
        from gossamer.experiments import bench

        model = models.create(self.model)
        shape = self.input or getattr(model, "input_shape", None)
        if shape is None:
            raise ValueError(f"{self.model} does not say what images it takes: give --input, such as --input 3,224,224")
        result = bench.bench(
            model,
            shape,
            self.densities,
            batch=self.batch,
            threads=[int(number) for number in self.threads],
            train=self.train,
            seconds=self.seconds,
            progress=lambda text: print(text, file=sys.stderr),
        )
        print(json.dumps(result, indent=1)) if self.json else bench.show(result)
        return 0


@dataclass(frozen=True)
class Info:
    """Version, instruction set, threads and backends of this installation.

    Example: gossamer info
    """

    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        from gossamer.experiments.bench import info

        found = info()
        print(
            json.dumps(found, indent=1)
            if self.json
            else "\n".join(f"{name:<15} {value}" for name, value in found.items())
        )
        return 0
