"""What a finished run is good for: its accuracy on the test set, and the classes of pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gossamer import models
from gossamer.data import Description
from gossamer.data.pictures import UNREADABLE, read_picture
from gossamer.storage import load as load_model
from gossamer.training import build
from gossamer.training.config import TrainConfig
from gossamer.training.distributed import join
from gossamer.training.evaluation import evaluate as _evaluate
from gossamer.training.evaluation import logits
from gossamer.training.run_folder import RunFolder


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one picture, best first, each with its probability."""

    image: str
    classes: tuple[tuple[str, float], ...]


def load_trained(run: str | Path, *, trust: bool = False) -> tuple[nn.Module, Description]:
    """The trained network of a run folder, and what it was trained on.

    A network `package.module:factory` is somebody's code, which building it runs: that only happens with `trust`.

    Raises FileNotFoundError when there is none, ValueError when its files are damaged or name code that is not trusted.
    """
    folder = RunFolder(run)
    config, description = _known(folder, trust)
    if not folder.model.exists():
        raise FileNotFoundError(f"{folder.path} holds no trained model yet; finish its training (--resume)")
    if config.model in models.names():  # whose sizes follow from what the folder says: memory for what its file holds
        channels, side = description.image_shape[:2]
        with torch.device("meta"):
            model = models.create(
                config.model, num_classes=description.num_classes, in_channels=channels, image_size=side
            )
    else:
        model = build.build_model(config, description, grown=True)
    return load_model(model, folder.model).eval(), description


def _known(folder: RunFolder, trust: bool) -> tuple[TrainConfig, Description]:
    """What the folder says of its run, unless that would run code without leave."""
    config, description = folder.read_config()
    if models.is_factory(config.model) and not trust:
        raise ValueError(
            f"{folder.config} names the network {config.model!r}, which is code that building it would run; "
            "if you trust it, say so (--trust)"
        )
    return config, description


def evaluate(run: str | Path, *, data_root: str | None = None, trust: bool = False) -> dict[str, Any]:
    """Accuracy and mean loss of a run's network on its test set, JSON-able. `trust` as for `load_trained`."""
    model, description = load_trained(run, trust=trust)
    config = RunFolder(run).read_config()[0]
    dataset = build.load_data(dataclasses.replace(config, data_root=data_root or config.data_root))
    if (dataset.classes, dataset.image_shape) != (description.classes, description.image_shape):
        raise ValueError(f"{config.data} has other classes or images now than when {run} was trained")
    team = join(config.device)
    model.to(team.device)

    def prepare(images: torch.Tensor) -> torch.Tensor:
        return description.normalise(images.to(team.device))

    loss, accuracy = _evaluate(model, dataset.test, prepare, config.batch_size, team)
    skipped = dict(dataset.test.skipped)
    return {
        "run": str(run),
        "data": config.data,
        "images": len(dataset.test) - len(skipped),
        "accuracy": accuracy,
        "loss": loss,
        "skipped": skipped,
    }


@torch.no_grad()
def predict(run: str | Path, images: Sequence[str | Path], *, top: int = 5, trust: bool = False) -> list[Prediction]:
    """The `top` most probable classes of each picture file, by a run's network.

    Pictures are brought to the network's channels and size: the shorter side fitted, the middle cut out.
    Raises FileNotFoundError or ValueError for a file that is missing or no picture. `trust` as for `load_trained`.
    """
    if top < 1:
        raise ValueError(f"top is {top}; it must be at least 1")
    model, description = load_trained(run, trust=trust)
    predictions = []
    for path in images:
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no picture {path}")
        try:
            picture = read_picture(path, description.image_shape, description.shorter_side)
        except UNREADABLE as error:
            raise ValueError(f"{path} cannot be read as a picture: {error}") from None
        outputs = logits(model(description.normalise(picture[None])))
        probabilities, which = outputs.softmax(1)[0].topk(min(top, description.num_classes))
        pairs = zip(which.tolist(), probabilities.tolist(), strict=True)
        predictions.append(Prediction(str(path), tuple((description.classes[i], p) for i, p in pairs)))
    return predictions
