"""What a network costs, without training it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from gossamer.cli.options import Model, Numbers, Shape
from gossamer.training.config import MOST_THREADS, TrainConfig


@dataclass(frozen=True)
class Count:
    """Params and multiply-adds of a network's convolutions, by layer and in total, thinned and sparsified as asked.

    Example: gossamer count inception_v3 --width 0.5 --divisor 8 --density 0.01 --pattern uniform --json
    """

    model: Model
    width: float = 1.0
    """Depth multiplier: the fraction of each layer's channels that is kept."""
    divisor: int = 1
    """Channel counts of a thinned network are multiples of this number (8 reproduces the paper's Table 1)."""
    density: float = 1.0
    """Fraction of the connections between channels that is kept."""
    pattern: Literal["balanced", "uniform"] = "balanced"
    """How connections are drawn: equal fan-ins and fan-outs, or independently (the paper)."""
    block: Literal[1, 2, 4, "auto"] = 1
    """Consecutive outputs that share their inputs: 1 (the paper), 2, 4, or auto: in each layer what costs no connections."""
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
            block=self.block,
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

    model: Model
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
        from gossamer.report.symmetry import draw, show

        rows = symmetry.run(self.model, self.densities, self.out, shape=self.input, seed=self.seed)
        files = draw(rows, self.out / self.model.replace(":", "-"), title=f"Symmetries of {self.model}")
        print(json.dumps(rows, indent=1)) if self.json else show(rows)
        print(f"figure: {', '.join(map(str, files))}", file=sys.stderr)
        return 0


@dataclass(frozen=True)
class Bench:
    """Milliseconds of a network, by layer and in total: dense beside sparse beside thin at equal multiply-adds.

    Also memory, and of each sparse layer its block of shared inputs, the path it took and why. All variants take turns,
    so that a busy machine is unfair to none; each figure is a median.

    Example: gossamer bench vgg16n --densities 0.03,0.1,1 --batch 1 --threads 1,2
    """

    model: Model
    densities: Numbers = (0.03, 0.1)
    """Densities of the sparse networks."""
    block: Literal[1, 2, 4, "auto"] = 1
    """Consecutive outputs that share their inputs: 1 (the paper), 2, 4, or auto: in each layer what costs no connections."""
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

        for number in self.threads:
            if number != int(number) or not 1 <= number <= MOST_THREADS:
                raise ValueError(f"--threads takes whole numbers from 1 to {MOST_THREADS}, got {number:g}")
        model = models.create(self.model)
        shape = self.input or getattr(model, "input_shape", None)
        if shape is None:
            raise ValueError(f"{self.model} does not say what images it takes: give --input, such as --input 3,224,224")
        result = bench.bench(
            model,
            shape,
            self.densities,
            block=self.block,
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
