"""The paper's counter-example (section 5.3): a thin dense network that grows by whole channels instead of connections."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gossamer.surgery.schedule import Schedule, Scheduled
from gossamer.surgery.thin import thin
from gossamer.surgery.transplant import forget_graphs


class Widening(Scheduled):
    """Keeps a dense network at the share of its `full` size that a schedule gives; used like `Growth`.

    The `model` is one that `narrow` made. Channels that are there keep their weights, and the optimizer its state for
    them; all other weights start as they are in `full`, scaled to their fan-in.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        schedule: Schedule,
        full: nn.Module,
        image_shape: tuple[int, int, int],
    ) -> None:
        super().__init__(schedule)
        self.model, self.optimizer, self.full, self.image_shape = model, optimizer, full, image_shape
        model.register_load_state_dict_pre_hook(_take_sizes)

    def step(self) -> bool:
        grows = self.due
        self.steps += 1
        if grows:
            widen(self.model, narrow(self.full, self.density, self.image_shape), self.optimizer)
        return grows


def narrow(full: nn.Module, density: float, image_shape: tuple[int, int, int]) -> nn.Module:
    """The network thinned to about `density` of its params: by the square root of that (section 5.2.1)."""
    return thin(full, math.sqrt(density), image_shape)


@torch.no_grad()
def widen(model: nn.Module, wider: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Give the model the sizes of `wider`, in place: its own weights lead, those of `wider` fill the rest.

    Parameter objects stay the same; `optimizer` keeps its state for the old weights and starts from zero for the new.
    """
    for old, new in zip(model.modules(), wider.modules(), strict=True):
        vars(old).update(
            {name: value for name, value in vars(new).items() if isinstance(value, int)}
        )  # in_channels, ...
        for name, buffer in new.named_buffers(recurse=False):
            setattr(old, name, _led_by(getattr(old, name), buffer))
        for name, fresh in new.named_parameters(recurse=False):
            parameter: nn.Parameter = getattr(old, name)
            state: dict[str, Any] = optimizer.state.get(parameter, {}) if optimizer is not None else {}
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[key] = _led_by(value, torch.zeros_like(fresh))
            parameter.data = _led_by(parameter.data, fresh.data)
            forget_graphs(parameter)


def _led_by(first: Tensor, rest: Tensor) -> Tensor:
    """`rest` with `first` in its leading corner."""
    result = rest.to(first, copy=True)
    result[tuple(slice(size) for size in first.shape)] = first
    return result


def _take_sizes(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let a narrow model load what it has become."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        stored = state.get(prefix + name)
        if isinstance(stored, Tensor) and stored.shape != tensor.shape:
            tensor.data = tensor.new_empty(stored.shape)
