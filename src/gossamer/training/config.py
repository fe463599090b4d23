"""What a training run is made of: one frozen dataclass, its learning rate, and recipes that are known to work.

Nothing here imports torch, so that `gossamer train --help` answers at once. The line under each field is its help text.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

MOST_THREADS = max(64, os.cpu_count() or 1)
"""More threads than processors gain nothing, and with thousands PyTorch ends the process."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the outcome of a run: equal configurations end with equal weights on one machine.

    Raises ValueError, in one sentence that names the field and what would work, when a value is impossible.
    """

    model: str = "mnist"
    """Network: mnist, cifar, vgg11, vgg16, vgg16n, inception_v3, torchvision:NAME, timm:NAME or package.module:factory."""
    data: str = "digits"
    """Data set: digits, mnist, fashion-mnist, cifar10, cifar100, a folder of class folders, or an .npz file."""
    data_root: str | None = None
    """Folder that holds (or receives) the named data sets; default: $GOSSAMER_DATA, else a user cache folder."""
    image_size: int | None = None
    """Side of the square images; default: the data set's own, and for image folders the network's own."""

    width: float = 1.0
    """Depth multiplier (paper, section 3.1): the fraction of each layer's channels that is kept, rounded up."""
    divisor: int = 1
    """Channel counts of a thinned network are multiples of this number (8 reproduces the paper's Table 1)."""
    density: float = 1.0
    """Fraction of the connections between channels that is kept (paper, section 3.2); 1 leaves the layers dense."""
    pattern: Literal["balanced", "uniform"] = "balanced"
    """How connections are drawn: equal fan-ins and fan-outs, or independently (the paper)."""
    block: Literal[1, 2, 4, "auto"] = 1
    """Consecutive outputs that share their inputs: 1 (the paper), 2, 4, or auto: in each layer what costs no connections."""
    allocation: Literal["uniform", "erdos-renyi"] = "uniform"
    """How the density is shared among layers: the same in all, or more for the narrow ones."""
    first_layer: Literal["keep", "sqrt", "whole"] = "keep"
    """Filters of a layer with one input channel: keep all, or the square root of the density (paper, 5.2.1). whole: the
    network's first convolution, of any number of inputs, stays dense."""

    grow_from: float | None = None
    """Start at this density and grow to `density` while training (paper, 3.2.1); default: no growth."""
    grow_every: int = 500
    """Steps between growths."""
    grow_factor: float = 2.0
    """Growth by factor: how many times as many connections there are after each growth."""
    grow_schedule: Literal["factor", "linear", "cosine", "cubic"] = "factor"
    """Course of the density: by a factor each time (the paper), or along a line, a cosine or a cubic that falls flat."""
    grow_until: float = 0.5
    """Linear, cosine and cubic growth: the share of the run after which `density` is reached."""
    grow_by: Literal["random", "gradient", "channels"] = "random"
    """New connections: random ones, those with the largest gradient (RigL), or those of whole new channels (paper, 5.3)."""
    grow_init: Literal["zero", "random"] = "zero"
    """Kernels of new connections: zero, so that growth changes no output, or random."""

    epochs: int = 10
    """Passes over the training set."""
    batch_size: int = 128
    """Images in one step, over all processes together."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with Nesterov momentum, or AdamW."""
    lr: float = 0.1
    """Highest learning rate."""
    momentum: float = 0.9
    """Momentum of SGD, or the first moment's decay of AdamW."""
    weight_decay: float = 5e-4
    """Weight decay; applied to the weights of convolutions and linear layers, never to biases and normalisations."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """Decay of the learning rate: to zero along a cosine, by 10 at 1/2 and 3/4 of the run, or none."""
    warmup_epochs: float = 0.5
    """Epochs over which the learning rate rises from zero; at most half of the run is used."""
    label_smoothing: float = 0.0
    """Share of the target probability that is spread over all classes."""
    clip_norm: float | None = None
    """Largest norm of the whole gradient; longer gradients are scaled down to it."""
    augment: Literal["auto", "none", "shift", "shift-flip"] = "auto"
    """Changes to training images; auto: shifts, with flips in colour; random resized crops in image folders."""

    seed: int = 0
    """Seed of the initial weights, the patterns, the order of the images and their augmentation."""
    deterministic: bool = False
    """Refuse operations whose results can differ from run to run (a CPU run is repeatable without it)."""
    amp: bool = False
    """Automatic mixed precision: convolutions and products in 16 bits (meant for GPUs)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU when there is one."""
    threads: int | None = None
    """CPU threads of one process; default: PyTorch's choice."""
    workers: int = 2
    """Processes that decode the images of an image folder; 0 decodes them in the training process."""
    checkpoint_steps: int = 0
    """Steps between checkpoints inside an epoch; 0 writes one after each epoch only."""

    def __post_init__(self) -> None:
        for name, kinds in _kinds().items():
            _check_kind(getattr(self, name), name, kinds)
        _between(self.width, "width", 0, 1)
        _between(self.density, "density", 0, 1)
        for name in ("batch_size", "epochs", "divisor"):
            _between(getattr(self, name), name, 0, _MANY)
        _between(self.lr, "lr", 0)
        if self.grow_from is not None:
            _between(self.grow_from, "grow_from", 0, 1)
            if self.grow_from >= self.density:
                raise ValueError(
                    f"grow_from is {self.grow_from}; it must be below {self.density:g}, the density it grows to"
                )
        _between(self.grow_every, "grow_every", 0, _MANY)
        _between(self.grow_factor, "grow_factor", 1)
        _between(self.grow_until, "grow_until", 0, 1)
        for name, most in (("weight_decay", math.inf), ("warmup_epochs", _MANY), ("checkpoint_steps", _MANY)):
            _between(getattr(self, name), name, 0, most, closed=True)
        _between(self.workers, "workers", 0, 1024, closed=True)
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed is {_short(self.seed)}; it must lie within 63 bits")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; it must be at least 0 and below 1")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must be at least 0 and below 1")
        for name, most in (("clip_norm", math.inf), ("threads", MOST_THREADS), ("image_size", 4096)):
            if getattr(self, name) is not None:
                _between(getattr(self, name), name, 0, most)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as a flat, JSON-able dictionary."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of `to_dict`. Raises ValueError for names and values that this version does not know."""
        if not isinstance(values, dict):
            raise ValueError(f"a training configuration is a mapping of its fields, not a {type(values).__name__}")
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(
                f"a training configuration has no field {', '.join(unknown)}; it was written by another version"
            )
        return cls(**values)


FREE_FIELDS = ("threads", "workers", "device", "data_root", "checkpoint_steps")
"""Fields that may change when a run goes on: they decide where and how fast it trains, not what."""


def other_settings(there: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The settings that differ and may not when a run goes on, as text; empty when none do.

    `there` may come from a version that did not know a field: that one did what the field's default does.
    """
    theirs = {**_defaults(), **there}
    differ = [name for name in ours if name not in FREE_FIELDS and theirs[name] != ours[name]]
    return ", ".join(f"{name}={theirs[name]} there and {ours[name]} now" for name in differ)


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Learning rate of `step` (from 0): a pure function, so that a resumed run needs no scheduler state."""
    total = config.epochs * steps_per_epoch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total // 2)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / (total - warmup)
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * progress)) / 2
    if config.schedule == "step":
        return config.lr * (0.1 if progress >= 0.5 else 1) * (0.1 if progress >= 0.75 else 1)
    return config.lr


_MANY = 10**12
"""More than any count of steps, epochs, images or channels, and still exact as a float."""


_LARGEST = 1e300


@cache
def _kinds() -> dict[str, tuple[Any, ...]]:
    """What each field may be: types, None, and the values of literals."""
    kinds = {}
    for name, hint in get_type_hints(TrainConfig).items():
        parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        kinds[name] = tuple(v for part in parts for v in (get_args(part) if get_origin(part) is Literal else (part,)))
    return kinds


@cache
def _defaults() -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(TrainConfig)}


_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "nothing"}


def _check_kind(value: Any, name: str, kinds: tuple[Any, ...]) -> None:
    """Raise ValueError unless a value is of one of these types, or is one of these literals."""
    for kind in kinds:
        if not isinstance(kind, type):
            if type(value) is type(kind) and value == kind:
                return
        elif type(value) is kind or (kind is float and type(value) is int) or (kind is str and isinstance(value, str)):
            return
    *others, last = [_WORDS.get(kind, repr(kind)) for kind in kinds]
    wanted = f"{', '.join(others)} or {last}" if others else last
    raise ValueError(f"{name} is {_short(value)}; it must be {wanted}")


def _short(value: Any) -> str:
    """A value as it may be printed: huge integers cannot be, and long texts should not."""
    if isinstance(value, int) and abs(value) >= 10**18:
        return "a number of more than 18 digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _between(value: float, name: str, low: float, high: float = math.inf, closed: bool = False) -> None:
    """Raise ValueError unless low < value <= high (low <= value when closed)."""
    if not (low <= value if closed else low < value) or not value <= high or abs(value) > _LARGEST:
        limit = f"{'at least' if closed else 'above'} {low:g}" + (f" and at most {high:g}" if high < math.inf else "")
        raise ValueError(f"{name} is {_short(value)}; it must be {limit}")


RECIPES = {
    # 98.6% in seconds.
    "digits": TrainConfig(model="mnist", data="digits", epochs=10, batch_size=64, warmup_epochs=1),
    # The dense network: 99.5%.
    "mnist": TrainConfig(model="mnist", data="mnist", epochs=4, warmup_epochs=0.6),
    # The dense network: 86.9%.
    "cifar10": TrainConfig(model="cifar", data="cifar10", epochs=24, warmup_epochs=2, label_smoothing=0.1),
    "photos": TrainConfig(model="inception_v3", data="photos", epochs=1, batch_size=16, lr=0.02, warmup_epochs=0.2),
}
"""Settings to start from on each data set; change single fields with `dataclasses.replace`."""
