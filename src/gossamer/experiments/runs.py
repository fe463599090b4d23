"""One run of a sweep: train it, measure it, and say how it went in one result line."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gossamer.experiments.results import Row
from gossamer.experiments.sweep import Run

if TYPE_CHECKING:
    from gossamer.training.trainer import AfterStep


def train_run(
    run: Run, folder: Path, *, progress: bool = True, timed: bool = True, after_step: AfterStep | None = None
) -> Row:
    """Train one run in `folder/runs/NAME`, going on from its checkpoint if it has one; its result line."""
    import torch

    from gossamer.experiments.measure import peak_memory
    from gossamer.training.trainer import train

    place = folder / "runs" / run.name
    result = train(run.config, place, resume=True, progress=progress, after_step=after_step)
    row = run.row(
        status="done",
        accuracy=result.accuracy,
        params=result.params,
        madds=result.madds,
        bytes=(place / "model.safetensors").stat().st_size,
        peak_memory=peak_memory(torch.device(result.machine["device"])),
        train_seconds=result.train_seconds,
        history=result.history,
        skipped=len(result.skipped),
        machine=result.machine,
        version=result.version,
    )
    return {**row, **measure_run(run, folder)} if timed else row


def measure_run(run: Run, folder: Path) -> Row:
    """Times of a trained run's network, as a line that adds to its result line."""
    import torch

    from gossamer.experiments.measure import measure
    from gossamer.training.inference import load_trained
    from gossamer.training.run_folder import RunFolder

    if run.config.threads:
        torch.set_num_threads(run.config.threads)
    place = folder / "runs" / run.name
    asked_for = RunFolder(place).read_config()[0].model == run.config.model
    model, data = load_trained(place, trust=asked_for)
    return {"run": run.name, **measure(model, data.image_shape, batch=run.config.batch_size)}


def guarded(run: Run, task: Callable[[], Row]) -> Row:
    """The line of `task`, or that of a failed run when it raises: the other runs of the sweep go on whatever it was."""
    try:
        return task()
    except Exception as error:
        return failed(run, f"{type(error).__name__}: {error}", traceback.format_exc())


def failed(run: Run, error: str, trace: str = "") -> Row:
    return run.row(status="failed", error=error, traceback=trace)
