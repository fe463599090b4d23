"""A network as one native program (the engine)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from gossamer.cli.options import Shape
from gossamer.training.config import TrainConfig

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Compile:
    """Compile a network, trained (a run folder) or by its name, to one program in a file that runs without PyTorch.

    Prints the program, operation by operation, and where the time of one call goes.

    Examples: gossamer compile runs/a --out net.gossamer
              gossamer compile inception_v3 --density 0.03 --block auto --out net.gossamer
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN|MODEL")]
    """Folder that `gossamer train` wrote, or a network as in `gossamer count` (with initial weights)."""
    out: Path
    """The program's file."""
    batch: int = 1
    """The largest batch that the program takes."""
    width: float = 1.0
    """Of a MODEL: the fraction of each layer's channels that is kept."""
    density: float = 1.0
    """Of a MODEL: the fraction of the connections between channels that is kept."""
    block: Literal[1, 2, 4, "auto"] = "auto"
    """Of a MODEL: consecutive outputs that share their inputs; auto: in each layer what costs no connections."""
    input: Shape | None = None
    """Of a MODEL: channels, height and width of one image; default: the network's own."""
    trust: bool = False
    """Import and call the network's code, when the folder names a package.module:factory."""

    def run(self) -> int:
        import torch

        from gossamer.engine import compile

        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; it must be at least 1")
        model, shape = self._network()
        images = torch.randn(self.batch, *shape, generator=torch.Generator().manual_seed(0))
        program = compile(model.eval(), images)
        program.save(self.out)
        print(program)
        print(program.profile(images))
        print(f"program: {self.out}, {self.out.stat().st_size:,} bytes")
        return 0

    def _network(self) -> tuple[nn.Module, tuple[int, int, int]]:
        if Path(self.source).is_dir():
            if (self.width, self.density, self.input) != (1.0, 1.0, None):
                raise ValueError("--width, --density and --input are of a MODEL; a run folder has its own")
            from gossamer.training.inference import load_trained

            model, description = load_trained(self.source, trust=self.trust)
            return model, description.image_shape
        from gossamer.experiments.networks import untrained

        config = TrainConfig(model=self.source, width=self.width, density=self.density, block=self.block)
        return untrained(config, self.input)
