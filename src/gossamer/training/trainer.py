"""The training loop. `train` prepares a run and its folder; `Training` is the run itself, in reading order.

All randomness of a step (dropout and the like) is seeded by the run's seed and the step's number, the order and
augmentation of an epoch by the epoch's: a checkpoint that knows its step knows the state of every random stream.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer
from gossamer import data
from gossamer._rng import derive
from gossamer.accounting import count
from gossamer.data.split import Split, steps_per_epoch
from gossamer.layers import SparseConv2d
from gossamer.storage import save as save_model
from gossamer.training import build, checkpoint
from gossamer.training.config import TrainConfig, learning_rate
from gossamer.training.distributed import Team, processes
from gossamer.training.folder import Result, RunFolder, machine
from gossamer.training.interrupt import Interrupted, StopRequest, stop_requests
from gossamer.training.progress import Reporter

AfterStep = Callable[["Training"], bool]
"""Called after every optimizer step; may change parameters in place and says whether any changed its size."""


class DivergenceError(RuntimeError):
    """The loss or the weights are no numbers any more. The text names the step and the last good checkpoint."""


def train(
    config: TrainConfig,
    out: str | Path,
    *,
    resume: bool = False,
    progress: bool = True,
    after_step: AfterStep | None = None,
) -> Result:
    """Train the network that `config` describes; its folder `out` then holds model.safetensors and result.json.

    With `resume` a run that was stopped goes on from its checkpoint, one that has not begun begins, and of one that has
    ended the result is returned. Under torchrun all processes train one network.

    Raises ValueError or an OSError such as FileNotFoundError for impossible requests, `Interrupted` after Ctrl-C and
    `DivergenceError` when the loss is no number; each is one sentence.
    """
    with processes(config.device) as team, _settings(config):
        folder = RunFolder(out)
        ended = folder.claim(config, resume)
        team.wait()  # none writes before all have looked
        if ended is not None:
            return ended
        run = Training(config, build.load_data(config), team, folder)
        if team.leads:
            folder.start(config, run.dataset.description)
        if resume and folder.checkpoint.exists():
            run.restore(checkpoint.load(folder.checkpoint))
        with stop_requests() as stop:
            run.fit(stop, after_step, show=progress)
        return run.finish()


@dataclass
class Totals:
    """Sums over the images of the epoch so far."""

    loss: float = 0.0
    correct: float = 0.0
    images: float = 0.0
    seconds: float = 0.0


@dataclass
class Training:
    """One run: what it trains, and how far it is."""

    config: TrainConfig
    dataset: data.DataSet
    team: Team
    folder: RunFolder
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)

    def __post_init__(self) -> None:
        config, world = self.config, self.team.share.world
        self.batch = min(config.batch_size, len(self.dataset.train))
        if self.batch % world:
            raise ValueError(f"a batch of {self.batch} images cannot be shared equally by {world} processes")
        self.steps = steps_per_epoch(len(self.dataset.train), self.batch)
        self.model = build.build_model(config, self.dataset).to(self.team.device)
        # oneDNN's dense convolutions are faster channels-last; sparse ones read whole channel planes.
        sparse = any(isinstance(module, SparseConv2d) for module in self.model.modules())
        self.layout = torch.contiguous_format if sparse else torch.channels_last
        self.model.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.optimizer = build.make_optimizer(config, self.model)
        self.half = torch.float16 if _needs_float16(self.team.device) else torch.bfloat16
        self.scaler = torch.amp.GradScaler(self.team.device.type, enabled=config.amp and self.half == torch.float16)

    def fit(self, stop: StopRequest, after_step: AfterStep | None = None, *, show: bool = True) -> None:
        """Train to the last epoch: set the rate, step, report; after each epoch evaluate, log, save."""
        config, team = self.config, self.team
        parallel = team.wrap(self.model)
        reporter = Reporter(config.epochs * self.steps, self.step, config.epochs, show=show and team.leads)
        with self._curves() as curves, reporter as report:
            while self.step < config.epochs * self.steps:
                epoch, start = divmod(self.step, self.steps)
                seed = derive(config.seed, f"epoch {epoch}")
                batches = self.dataset.train.training_batches(self.batch, seed, start, team.share)
                began = time.perf_counter()
                for images, labels in batches:
                    for group in self.optimizer.param_groups:
                        group["lr"] = learning_rate(config, self.step, self.steps)
                    torch.manual_seed(derive(config.seed, f"step {self.step} of process {team.share.rank}"))
                    loss, correct = self._optimize(parallel, images, labels)
                    stopping = self._account(loss, correct, len(labels), stop.made)
                    if after_step is not None and after_step(self):
                        parallel = team.wrap(self.model)
                    began = self._tick(began)
                    mean, accuracy, speed = self.averages
                    report.step(self.step, epoch, mean, accuracy, speed)
                    if self.step % self.steps and (stopping or _due(self.step, config.checkpoint_steps)):
                        self.save(stopping)
                        began = time.perf_counter()
                team.share_buffers(self.model)
                record = self._end_epoch(epoch)
                report.epoch(record)
                curves(record)
                stopping = team.sum(stop.made)[0] > 0 and self.step < config.epochs * self.steps
                self.save(stopping)
        if self.skipped and team.leads:
            names = ", ".join(f"{path} ({why})" for path, why in list(self.skipped.items())[:3])
            reporter.say(f"skipped {len(self.skipped)} unreadable images: {names}{', ...' * (len(self.skipped) > 3)}")

    def _optimize(self, parallel: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, int]:
        """One optimizer step on a batch: mean loss and number of right answers of this process's images."""
        parallel.train()
        inputs, labels = self._on_device(images), labels.to(self.team.device, non_blocking=True)
        with self._mixed_precision():
            outputs = _logits(parallel(inputs))
        loss = F.cross_entropy(outputs.float(), labels, label_smoothing=self.config.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item(), int((outputs.argmax(1) == labels).sum())

    def _account(self, loss: float, correct: int, images: int, stop: bool) -> bool:
        """Add a step to the totals; whether any process was asked to stop. Raises DivergenceError when the loss is."""
        loss, right, seen, stopping = self.team.sum(loss * images, correct, images, stop)
        if not math.isfinite(loss):
            raise self._diverged("the loss is")
        self.step += 1
        self.totals.loss += loss
        self.totals.correct += right
        self.totals.images += seen
        return stopping > 0

    def _tick(self, began: float) -> float:
        now = time.perf_counter()
        self.totals.seconds += now - began
        self.seconds += now - began
        return now

    @property
    def averages(self) -> tuple[float, float, float]:
        """Loss, accuracy and images/s of the epoch so far."""
        totals = self.totals
        return totals.loss / totals.images, totals.correct / totals.images, totals.images / totals.seconds

    @property
    def skipped(self) -> dict[str, str]:
        """Images that could not be read."""
        return {**self.dataset.train.skipped, **self.dataset.test.skipped}

    def _end_epoch(self, epoch: int) -> dict[str, Any]:
        """Evaluate, and add the epoch to the history."""
        loss, accuracy, speed = self.averages
        test_loss, test_accuracy = self.evaluate(self.dataset.test)
        record = {
            "epoch": epoch + 1,
            "step": self.step,
            "seconds": self.seconds,
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": loss,
            "train_accuracy": accuracy,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "images_per_s": speed,
            "density": build.density(self.model),
        }
        self.history.append(record)
        self.totals = Totals()
        return record

    @torch.no_grad()
    def evaluate(self, split: Split) -> tuple[float, float]:
        """Mean loss and accuracy over a split, by all processes together."""
        self.model.eval()
        loss = correct = images = 0.0
        for batch, labels in split.test_batches(self.batch, self.team.share):
            labels = labels.to(self.team.device)
            with self._mixed_precision():
                outputs = _logits(self.model(self._on_device(batch))).float()
            loss += F.cross_entropy(outputs, labels, reduction="sum").item()
            correct += int((outputs.argmax(1) == labels).sum())
            images += len(labels)
        loss, correct, images = self.team.sum(loss, correct, images)
        if not images:
            raise ValueError(
                f"no image of the test set of {self.dataset.name} can be read: {next(iter(split.skipped.items()))}"
            )
        return loss / images, correct / images

    def save(self, stopping: bool = False) -> None:
        """Write a checkpoint and, when `stopping`, raise Interrupted. Broken weights raise DivergenceError instead."""
        if not all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
            raise self._diverged("weights are")
        self.team.share_buffers(self.model)
        if self.team.leads:
            checkpoint.save(self.folder.checkpoint, self.state())
        if stopping:
            raise Interrupted(f"stopped after step {self.step}; {self.folder.path} can be resumed (--resume)")

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "totals": asdict(self.totals),
            "history": self.history,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`; sparse layers take over the patterns in it."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        self.totals = Totals(**state["totals"])

    def finish(self) -> Result:
        """The result; process 0 writes it and the model, and removes the checkpoint, which has done its work."""
        cost = count(self.model, self.dataset.image_shape)
        result = Result(
            config=self.config.to_dict(),
            accuracy=self.history[-1]["test_accuracy"],
            history=self.history,
            params=cost.params,
            madds=cost.madds,
            train_seconds=self.seconds,
            skipped=self.skipped,
            version=gossamer.__version__,
            machine=machine(self.team.device),
        )
        if self.team.leads:
            save_model(self.model, self.folder.model)
            checkpoint.write(self.folder.result, json.dumps(result.to_dict(), indent=1).encode())
            self.folder.checkpoint.unlink()
        self.team.wait()
        return result

    def _on_device(self, images: Tensor) -> Tensor:
        """uint8 images as the network takes them."""
        images = self.dataset.normalise(images.to(self.team.device, non_blocking=True))
        return images.contiguous(memory_format=self.layout)

    def _mixed_precision(self) -> torch.autocast | nullcontext[None]:
        return torch.autocast(self.team.device.type, self.half) if self.config.amp else nullcontext()

    def _diverged(self, what: str) -> DivergenceError:
        there = self.folder.checkpoint
        kept = f"the last good checkpoint is {there}" if there.exists() else "there is no checkpoint yet"
        return DivergenceError(
            f"{what} not a number at step {self.step + 1}; {kept}; try a lower learning rate or --clip-norm 1"
        )

    @contextmanager
    def _curves(self) -> Iterator[Callable[[dict[str, Any]], None]]:
        """A function that adds an epoch to the TensorBoard curves."""
        if not self.team.leads:
            yield lambda record: None
            return
        from torch.utils.tensorboard import SummaryWriter

        with closing(SummaryWriter(str(self.folder.tensorboard), purge_step=self.step + 1)) as writer:

            def add(record: dict[str, Any]) -> None:
                for name in record.keys() - {"epoch", "step", "seconds"}:
                    writer.add_scalar(name, record[name], record["step"])

            yield add


@contextmanager
def _settings(config: TrainConfig) -> Iterator[None]:
    """PyTorch's threads and determinism as configured, and as they were afterwards."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _needs_float16(device: torch.device) -> bool:
    return device.type == "cuda" and not torch.cuda.is_bf16_supported()


def _logits(outputs: Any) -> Tensor:
    """The classifier's output; some networks add those of auxiliary heads while they train."""
    logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
    return logits
