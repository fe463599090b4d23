"""`train`: from a configuration to a folder with a trained network. The loop is `_fit`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch

import gossamer
from gossamer import files
from gossamer.connectivity.hashing import derive
from gossamer.graph.accounting import count
from gossamer.storage import save as save_model
from gossamer.training import build
from gossamer.training.config import TrainConfig
from gossamer.training.distributed import Team, join
from gossamer.training.interrupt import StopRequest, stop_requests
from gossamer.training.progress import Reporter
from gossamer.training.run import Training
from gossamer.training.run_folder import Result, RunFolder, machine

AfterStep = Callable[[Training], bool]
"""Called after every step; may change parameters in place, and says whether any of them changed its size."""


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
    ended the result is returned. Under torchrun all processes train one network. The network is the one that `config`
    names, never one that a file in the folder does.

    Raises ValueError or an OSError such as FileNotFoundError for impossible requests and for a folder in which another
    process trains, `Interrupted` after Ctrl-C and `DivergenceError` when the loss is no number; each is one sentence.
    """
    team = join(config.device)
    folder = RunFolder(out)
    with _settings(config), _alone(folder, team):
        ended = folder.claim(config, resume)
        team.wait()  # none writes before all have looked
        if ended is not None:
            return ended
        with team.leader_first():  # it may have to download
            dataset = build.load_data(config)
        run = Training(config, dataset, team, folder)
        if team.leads:
            folder.start(config, run.dataset.description)
        if resume and folder.checkpoint.exists():
            run.resume()
        reporter = Reporter(run.total_steps, run.step, config.epochs, show=progress and team.leads)
        with stop_requests() as stop, _curves(run) as curves, reporter:
            _fit(run, stop, reporter, curves, after_step)
        return _finish(run)


def _fit(
    run: Training,
    stop: StopRequest,
    report: Reporter,
    log: Callable[[dict[str, Any]], None],
    after_step: AfterStep | None,
) -> None:
    """To the last epoch, from wherever the run is: train on each batch; then evaluate, log, save."""

    def stopping() -> bool:
        return run.team.sum(stop.made)[0] > 0  # whichever process was asked, all end after the same step

    while run.step < run.total_steps:
        epoch, start = divmod(run.step, run.steps_per_epoch)
        seed = derive(run.config.seed, f"epoch {epoch}")
        run.start_clock()
        for images, labels in run.dataset.train.training_batches(run.batch_size, seed, start, run.team.share):
            run.train_step(images, labels)
            if after_step is not None and after_step(run):
                run.parallel = run.team.wrap(run.model)
            run.start_clock()
            report.step(run.step, epoch, *run.totals.averages)
            if run.step % run.steps_per_epoch and ((ends := stopping()) or run.checkpoint_due):
                run.save(ends)
                run.start_clock()
        record = run.end_epoch()
        report.epoch(record)
        log(record)
        run.save(stopping() and run.step < run.total_steps)
    if run.skipped:
        names = ", ".join(f"{path} ({reason})" for path, reason in list(run.skipped.items())[:3])
        report.say(f"skipped {len(run.skipped)} unreadable images: {names}{', ...' if len(run.skipped) > 3 else ''}")


def _finish(run: Training) -> Result:
    """The result. The leading process writes it and the model, and removes the checkpoint, which has done its work."""
    cost = count(run.model, run.dataset.image_shape)
    result = Result(
        config=run.config.to_dict(),
        accuracy=run.history[-1]["test_accuracy"],
        history=run.history,
        params=cost.params,
        madds=cost.madds,
        train_seconds=run.seconds,
        skipped=run.skipped,
        version=gossamer.__version__,
        machine=machine(run.team.device),
    )
    if run.team.leads:
        save_model(run.model, run.folder.model)
        files.write(run.folder.result, json.dumps(result.to_dict(), indent=1).encode())
        run.folder.checkpoint.unlink()
    run.team.wait()
    return result


@contextmanager
def _alone(folder: RunFolder, team: Team) -> Iterator[None]:
    """The folder held by the leading process for the team; an error in all of them when it cannot be."""
    with ExitStack() as stack:
        refused: OSError | None = None
        if team.leads:
            try:
                stack.enter_context(folder.held())
            except OSError as error:
                refused = error
        if team.sum(refused is not None)[0]:
            raise refused or FileExistsError(f"another process is training in {folder.path}")
        yield


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


@contextmanager
def _curves(run: Training) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that adds an epoch's record to the run's TensorBoard curves."""
    if not run.team.leads:
        yield lambda record: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with closing(SummaryWriter(str(run.folder.tensorboard), purge_step=run.step + 1)) as writer:

        def add(record: dict[str, Any]) -> None:
            for name in sorted(record.keys() - {"epoch", "step", "seconds"}):
                writer.add_scalar(name, record[name], record["step"])

        yield add
