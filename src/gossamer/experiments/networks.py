"""The network that a configuration describes, counted without its data."""

from __future__ import annotations

import torch

from gossamer import models
from gossamer.data import Description
from gossamer.graph.accounting import Cost, count
from gossamer.training.build import build_model
from gossamer.training.config import TrainConfig

CLASSES = 1000
"""Classes of a network that is only counted; the classifier is left out of the count."""


def counted(config: TrainConfig, shape: tuple[int, int, int] | None = None) -> Cost:
    """Params and madds of the configured network for images of `shape` (channels, height, width; default: its own)."""
    with torch.device("meta"):
        own: tuple[int, int, int] = models.create(config.model, image_size=config.image_size).input_shape  # type: ignore[assignment]
    shape = shape or own
    channels = shape[0]
    data = Description("none", tuple(map(str, range(CLASSES))), shape, (0.0,) * channels, (1.0,) * channels)
    return count(build_model(config, data), shape)
