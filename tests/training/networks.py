"""Networks for the training tests, named as `networks:plain` through the python path; and how to compare two."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn


def same_model(first: Path, second: Path) -> bool:
    """Whether the models of two run folders are equal to the bit: tensors and patterns."""
    with safe_open(first / "model.safetensors", "pt") as a, safe_open(second / "model.safetensors", "pt") as b:
        names = sorted(a.keys())
        equal = names == sorted(b.keys()) and a.metadata() == b.metadata()
        return equal and all(torch.equal(a.get_tensor(name), b.get_tensor(name)) for name in names)


def plain(num_classes: int = 10, in_channels: int = 1, image_size: int = 8) -> nn.Module:
    """Two convolutions without batch normalisation, so that a batch may be split without changing the result."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * (image_size // 2) ** 2, num_classes),
    )


def random(num_classes: int = 10, in_channels: int = 1, image_size: int = 8) -> nn.Module:
    """A network whose steps draw random numbers and keep statistics."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(16 * image_size**2, num_classes),
    )
