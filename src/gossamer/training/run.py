"""One run: what it trains, how far it is, its single step, and its state, complete enough to go on from.

All randomness of a step (dropout and the like) is seeded by the run's seed and the step's number, the order and
augmentation of an epoch by the epoch's: a checkpoint that knows its step knows the state of every random stream.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer import data
from gossamer.connectivity.hashing import derive
from gossamer.data.split import steps_per_epoch
from gossamer.kernels import policy
from gossamer.surgery.widen import Widening
from gossamer.training import build, checkpoint, restoring
from gossamer.training.config import TrainConfig, learning_rate
from gossamer.training.distributed import Team
from gossamer.training.evaluation import evaluate, logits
from gossamer.training.interrupt import Interrupted
from gossamer.training.run_folder import RunFolder


class DivergenceError(FloatingPointError):
    """The loss or the weights are no numbers any more. The text names the step and the last good checkpoint."""


@dataclass
class Totals:
    """Sums over the steps of the epoch so far."""

    loss: float = 0.0
    correct: float = 0.0
    images: float = 0.0
    seconds: float = 0.0

    @property
    def averages(self) -> tuple[float, float, float]:
        """Loss, accuracy and images/s."""
        return self.loss / self.images, self.correct / self.images, self.images / self.seconds


@dataclass
class Training:
    """A network in training. `step` counts optimizer steps done; `seconds` is the time they took (no evaluation).

    `cpu_seconds` is what this process computed in that time, which other programs on the machine do not lengthen.
    """

    config: TrainConfig
    dataset: data.DataSet
    team: Team
    folder: RunFolder
    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)

    def __post_init__(self) -> None:
        config, device, world = self.config, self.team.device, self.team.share.world
        self.batch_size = min(config.batch_size, len(self.dataset.train))
        if self.batch_size % world:
            raise ValueError(f"a batch of {self.batch_size} images cannot be shared equally by {world} processes")
        self.steps_per_epoch = steps_per_epoch(len(self.dataset.train), self.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.model = build.build_model(config, self.dataset).to(device)
        self._arrange()
        self.optimizer = build.make_optimizer(config, self.model)
        self.growth = build.make_growth(config, self.model, self.optimizer, self.total_steps, self.dataset)
        self.half = torch.float16 if device.type == "cuda" and not torch.cuda.is_bf16_supported() else torch.bfloat16
        self.start_clock()
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp and self.half == torch.float16)

    @property
    def density(self) -> float:
        """Connections over possible ones; of a dense network that grows by channels, what its schedule asks for."""
        return self.growth.density if isinstance(self.growth, Widening) else build.density(self.model)

    def _arrange(self) -> None:
        """Lay the model out for its density, and wrap it anew, since its parameters may have changed their sizes."""
        # Dense convolutions are faster channels-last; the native sparse ones read whole channel planes.
        native = self.team.device.type == "cpu" and policy.asked_path() != "dense"
        sparse = native and build.density(self.model) < 1
        self.layout = torch.contiguous_format if sparse else torch.channels_last
        self.model.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.parallel = self.team.wrap(self.model)

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 images as the network takes them."""
        images = self.dataset.normalise(images.to(self.team.device, non_blocking=True))
        return images.to(memory_format=self.layout)  # not contiguous(), which leaves images of one channel as they are

    def start_clock(self) -> None:
        """Time passes for the next step from here: also what loading its images takes."""
        self._began = time.perf_counter(), time.process_time()

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """One optimizer step on this process's part of a batch. Raises DivergenceError when the loss is no number."""
        rate = learning_rate(self.config, self.step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(derive(self.config.seed, f"step {self.step} of process {self.team.share.rank}"))
        self.parallel.train()
        inputs, labels = self.prepare(images), labels.to(self.team.device, non_blocking=True)
        with torch.autocast(self.team.device.type, self.half) if self.config.amp else nullcontext():
            outputs = logits(self.parallel(inputs)).float()
        loss = F.cross_entropy(outputs, labels, label_smoothing=self.config.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.growth is not None and self.growth.step():
            self._arrange()
        self._account(loss.item(), int((outputs.argmax(1) == labels).sum()), len(labels))

    def _account(self, loss: float, correct: int, images: int) -> None:
        loss, right, seen = self.team.sum(loss * images, correct, images)
        if not math.isfinite(loss):
            raise self._diverged("the loss is")
        wall, cpu = self._began
        self.start_clock()
        seconds = self._began[0] - wall
        sums = self.totals
        self.totals = Totals(sums.loss + loss, sums.correct + right, sums.images + seen, sums.seconds + seconds)
        self.seconds += seconds
        self.cpu_seconds += self._began[1] - cpu
        self.step += 1

    def end_epoch(self) -> dict[str, Any]:
        """Evaluate, and add the epoch to the history."""
        self.team.share_buffers(self.model)
        loss, accuracy, speed = self.totals.averages
        test_loss, test_accuracy = evaluate(self.model, self.dataset.test, self.prepare, self.batch_size, self.team)
        if not math.isfinite(test_loss):
            raise self._diverged("the test loss is")
        record = {
            "epoch": self.step // self.steps_per_epoch,
            "step": self.step,
            "seconds": self.seconds,
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": loss,
            "train_accuracy": accuracy,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "images_per_s": speed,
            "density": self.density,
        }
        self.history.append(record)
        self.totals = Totals()
        return record

    def save(self, stopping: bool = False) -> None:
        """Write a checkpoint and, when `stopping`, raise Interrupted. Broken weights raise DivergenceError instead."""
        if not all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
            raise self._diverged("weights are")
        self.team.share_buffers(self.model)
        if self.team.leads:
            checkpoint.save(self.folder.checkpoint, self.state())
        if stopping:
            where = f"step {self.step} of {self.total_steps}"
            raise Interrupted(f"{self.folder.path} is saved at {where} and can be resumed (--resume)")

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""
        return {
            "config": self.config.to_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "totals": asdict(self.totals),
            "history": self.history,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "scaler": self.scaler.state_dict(),
        }

    def resume(self) -> None:
        """Go on from the checkpoint in the folder. Raises ValueError when it is damaged or another run's."""
        state = checkpoint.load(self.folder.checkpoint)
        try:
            restoring.check(self, state)
            self.restore(state)
        except (ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{self.folder.checkpoint} is not of this run ({reason}); remove it to start anew"
            ) from error

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`; sparse layers take over the patterns in it."""
        self.model.load_state_dict(state["model"])
        self._arrange()
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        restoring.check_optimizer(self.optimizer)
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        self.cpu_seconds = state["cpu_seconds"]
        self.totals = Totals(**state["totals"])
        if self.growth is not None:
            self.growth.load_state_dict({"steps": self.step})

    @property
    def checkpoint_due(self) -> bool:
        """Whether a checkpoint belongs after this step, inside an epoch."""
        every = self.config.checkpoint_steps
        return every > 0 and self.step % every == 0

    @property
    def skipped(self) -> dict[str, str]:
        """Images that could not be read, and why."""
        return {**self.dataset.train.skipped, **self.dataset.test.skipped}

    def _diverged(self, what: str) -> DivergenceError:
        there = self.folder.checkpoint
        kept = f"the last good checkpoint is {there}" if there.exists() else "there is no checkpoint yet"
        return DivergenceError(
            f"{what} not a number at step {self.step + 1}; {kept}; try a lower learning rate or --clip-norm 1"
        )
