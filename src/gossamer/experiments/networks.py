"""The network that a configuration describes, without its data: counted, or with initial weights."""

from __future__ import annotations

import torch
from torch import nn

from gossamer import models
from gossamer.data import Description
from gossamer.graph.accounting import Cost, count
from gossamer.training.build import build_model
from gossamer.training.config import TrainConfig

CLASSES = 1000
"""Classes of a network without data."""


def counted(config: TrainConfig, shape: tuple[int, int, int] | None = None) -> Cost:
    """Params and madds of the configured network for images of `shape` (channels, height, width; default: its own)."""
    model, shape = untrained(config, shape)
    return count(model, shape)


def untrained(config: TrainConfig, shape: tuple[int, int, int] | None = None) -> tuple[nn.Module, tuple[int, int, int]]:
    """The configured network with initial weights, and the shape of the images it takes (default: its own)."""
    image = shape or _own_shape(config)
    channels = image[0]
    data = Description("none", tuple(map(str, range(CLASSES))), image, (0.0,) * channels, (1.0,) * channels)
    return build_model(config, data), image


def _own_shape(config: TrainConfig) -> tuple[int, int, int]:
    with torch.device("meta"):
        shape: tuple[int, int, int] = models.create(config.model, image_size=config.image_size).input_shape  # type: ignore[assignment]
    return shape
