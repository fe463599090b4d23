"""Incremental training (section 3.2.1): density as a pure function of the step, and the object that keeps a model at it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from gossamer.connectivity import check_density
from gossamer.surgery.grow import DenseGradients, grow, sparse_layers
from gossamer.surgery.transplant import Init

Schedule = Callable[[int], float]
"""Optimizer steps done -> density; never falling."""


@dataclass(frozen=True)
class Doubling:
    """From density `start`, `factor` times as many connections after every `every` steps, up to `end` (the paper)."""

    start: float
    every: int
    factor: float = 2.0
    end: float = 1.0

    def __call__(self, step: int) -> float:
        times = min(step // self.every, math.ceil(math.log(self.end / self.start, self.factor)))
        return min(self.end, self.start * self.factor**times)


@dataclass(frozen=True)
class Ramp:
    """From density `start` to `end` within `steps` steps, a part of the way after every `every` steps.

    `shape` is the way's share as a function of the time's share p: "linear" p, "cosine" (1 - cos(pi p)) / 2, or
    "cubic" 1 - (1 - p)^3, which is the pruning schedule of Zhu & Gupta (2017) run upwards.
    """

    start: float
    steps: int
    every: int
    end: float = 1.0
    shape: Literal["linear", "cosine", "cubic"] = "linear"

    def __call__(self, step: int) -> float:
        p = min(1.0, step // self.every * self.every / self.steps)
        if p == 1:
            return self.end
        share = {"linear": p, "cosine": (1 - math.cos(math.pi * p)) / 2, "cubic": 1 - (1 - p) ** 3}[self.shape]
        return self.start + (self.end - self.start) * share


class Scheduled:
    """What follows a schedule of the density; its `state_dict` is the number of steps done."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.steps = 0

    @property
    def density(self) -> float:
        """What the schedule asks for after the steps done."""
        return self._density(self.steps)

    @property
    def due(self) -> bool:
        """Whether the next call of `step` grows the model."""
        return self._density(self.steps + 1) > self.density

    def step(self) -> bool:
        """Count an optimizer step, and grow if it is time. Says whether any parameter has changed its size."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after as many steps; the model must have been loaded before."""
        self.steps = int(state["steps"])

    def _density(self, step: int) -> float:
        density = self.schedule(step)
        check_density(density, f"the growth schedule's density after {step} steps")
        if step and density < (before := self.schedule(step - 1)):
            raise ValueError(
                f"the growth schedule falls from {before:g} to {density:g} after {step} steps; it may only rise"
            )
        return density


class Growth(Scheduled):
    """Keeps a model at the density of a schedule while it trains; used like a learning-rate scheduler.

        model = gs.sparsify(model, 0.01)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        growth = gs.Growth(model, optimizer, Doubling(0.01, every=500))
        for images, labels in batches:
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()
            growth.step()

    `schedule` is any function from steps done to density, such as `Doubling` and `Ramp`. New connections are random, or
    `by="gradient"` those with the largest gradient in the step before they grow; they start at `init` (see `densify`).
    After `step()` has returned True, a DistributedDataParallel wrapper must be made anew; all processes grow alike.
    `state_dict` is the number of steps done: the patterns themselves travel in the model's own.

    Raises ValueError for a model without sparse layers, and as soon as the schedule falls or leaves (0, 1].
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        schedule: Schedule,
        *,
        init: Init = "zero",
        by: Literal["random", "gradient"] = "random",
    ) -> None:
        if by not in ("random", "gradient"):
            raise ValueError(f'by must be "random" or "gradient", got {by!r}')
        sparse_layers(model)
        super().__init__(schedule)
        self.model, self.optimizer, self.init, self.by = model, optimizer, init, by
        self._gradients: DenseGradients | None = None
        self._watch()

    def step(self) -> bool:
        grows, gradients = self.due, self._gradients
        self.steps += 1
        if not grows:
            self._watch()
            return False
        if gradients is not None:
            gradients.close()
        layers = sparse_layers(self.model)
        grown = grow(layers, [self.density] * len(layers), self.optimizer, self.init, gradients)
        self._watch()
        return grown

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._watch()

    def _watch(self) -> None:
        """Look at the gradients of absent connections in the step before they are chosen by them, and in no other."""
        if self._gradients is not None:
            self._gradients.close()
        self._gradients = DenseGradients(self.model) if self.by == "gradient" and self.due else None
