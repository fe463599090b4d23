"""One network: train it, evaluate it, ask it for the classes of images."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gossamer.cli.options import Settings


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
    trust: bool = False
    """Import and call the network's code, when the folder names a package.module:factory."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        from gossamer.training.inference import evaluate

        result = evaluate(self.run_folder, data_root=self.data_root, trust=self.trust)
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
    trust: bool = False
    """Import and call the network's code, when the folder names a package.module:factory."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        from gossamer.training.inference import predict

        predictions = predict(self.run_folder, self.images, top=self.top, trust=self.trust)
        if self.json:
            print(json.dumps([asdict(prediction) for prediction in predictions], indent=1))
            return 0
        for prediction in predictions:
            print(f"{prediction.image}: {', '.join(f'{name} {share:.1%}' for name, share in prediction.classes)}")
        return 0
