"""What several commands take: settings of training as options, and lists in one word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from gossamer.training.config import TrainConfig


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is not a list of numbers with commas between them, such as 0.01,0.1,1") from None


def _shape(text: str) -> tuple[int, int, int]:
    try:
        channels, height, width = (int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is not a shape: give channels, height and width, such as 3,224,224") from None
    return channels, height, width


Shape = Annotated[
    tuple[int, int, int],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="C,H,W",
        instance_from_str=lambda words: _shape(words[0]),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value))],
    ),
]
"""Channels, height and width of an image, with commas between them."""

Numbers = Annotated[
    tuple[float, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="A,B,...",
        instance_from_str=lambda words: _numbers(words[0]),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(f"{number:g}" for number in value)],
    ),
]
"""Numbers with commas between them, in one word."""

Words = Annotated[
    tuple[str, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="A,B,...",
        instance_from_str=lambda words: tuple(words[0].split(",")),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(value)],
    ),
]
"""Names with commas between them, in one word."""

Model = Annotated[
    tyro.conf.Positional[str],
    tyro.conf.arg(
        help="Network: mnist, cifar, vgg11, vgg16, vgg16n, inception_v3, torchvision:NAME, timm:NAME or package.module:factory."
    ),
]
"""The name of a network."""


@dataclass(frozen=True)
class Settings(TrainConfig):
    """Training settings."""

    model: Model = "mnist"

    def config(self) -> TrainConfig:
        """The same settings without what belongs to the command line."""
        return TrainConfig.from_dict(self.to_dict())


@dataclass(frozen=True)
class SweepSettings(Settings):
    """Training settings. Width and density are the sweep's own."""

    width: tyro.conf.Suppress[float] = 1.0
    density: tyro.conf.Suppress[float] = 1.0


@dataclass(frozen=True)
class GrowSettings(Settings):
    """Training settings. What grows, and when, is the experiment's own."""

    width: tyro.conf.Suppress[float] = 1.0
    density: tyro.conf.Suppress[float] = 1.0
    grow_from: tyro.conf.Suppress[float | None] = None
    grow_every: tyro.conf.Suppress[int] = 500
    grow_by: tyro.conf.Suppress[Literal["random", "gradient", "channels"]] = "random"
    grow_init: tyro.conf.Suppress[Literal["zero", "random"]] = "zero"
