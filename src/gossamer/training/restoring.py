"""What a checkpoint must be to go on from: everything is compared with the run before any of it is taken over."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import SGD, Optimizer

from gossamer import files
from gossamer.layers import SparseConv2d
from gossamer.surgery.widen import Widening, narrow
from gossamer.training.config import other_settings
from gossamer.training.run_folder import are_records

if TYPE_CHECKING:
    from gossamer.training.run import Training


def check(run: Training, state: dict[str, Any]) -> None:
    """Raise ValueError, naming the part, when `state` cannot be one that this run has been in."""
    parts = {"config", "step", "seconds", "cpu_seconds", "totals", "history", "model", "optimizer", "scaler"}
    if set(state) != parts or not isinstance(state["config"], dict):
        raise ValueError("it has other parts than a run")
    if differ := other_settings(state["config"], run.config.to_dict()):
        raise ValueError(f"its settings are others: {differ}")
    step, history, totals = state["step"], state["history"], state["totals"]
    if not files.is_count(step, run.total_steps):
        raise ValueError(f"its step is not one of the {run.total_steps}")
    if not are_records(history) or len(history) != step // run.steps_per_epoch:
        raise ValueError(f"its history is not that of {step} steps")
    if not isinstance(totals, dict) or set(totals) != set(asdict(run.totals)):
        raise ValueError("its sums over the epoch are others")
    if not all(files.is_number(n) and n >= 0 for n in (*totals.values(), state["seconds"], state["cpu_seconds"])):
        raise ValueError("its times and sums are no numbers")
    inside = step % run.steps_per_epoch > 0
    if any((n > 0) != inside for n in (totals["images"], totals["seconds"])):
        raise ValueError(f"its sums over the epoch are not those of {step} steps")
    if not isinstance(state["optimizer"], dict) or not all(isinstance(s, dict) for s in state["optimizer"].values()):
        raise ValueError("its optimizer is none")
    scaler = run.scaler.state_dict()
    if set(state["scaler"]) != set(scaler) or not all(files.is_number(n) for n in state["scaler"].values()):
        raise ValueError("its gradient scaler is none")
    _check_model(run, state["model"], step)


def _check_model(run: Training, stored: Any, step: int) -> None:
    """Compare names, types and sizes; those of sparse layers are compared with their patterns when they are loaded."""
    model = run.model
    if isinstance(run.growth, Widening):
        model = narrow(run.growth.full, run.growth.schedule(step), run.growth.image_shape)
    ours = model.state_dict()
    if not isinstance(stored, dict) or stored.keys() != ours.keys():
        raise ValueError("it holds another network")
    sparse = [name for name, layer in model.named_modules() if isinstance(layer, SparseConv2d)]
    free = {f"{name}.{part}".lstrip(".") for name in sparse for part in ("weight", "indices")}
    for name, value in ours.items():
        there = stored[name]
        if not isinstance(value, Tensor) and type(value) is type(there):
            continue  # what a module of somebody else's keeps
        if not isinstance(there, Tensor) or there.dtype != value.dtype:
            raise ValueError(f"{name!r} is of another type")
        if there.shape != value.shape and (name not in free or there.shape[1:] != value.shape[1:]):
            raise ValueError(f"{name!r} has shape {list(there.shape)} there, {list(value.shape)} here")


def check_optimizer(optimizer: Optimizer) -> None:
    """Raise ValueError when what was loaded is not the state of these parameters."""
    names = {"momentum_buffer"} if isinstance(optimizer, SGD) else {"step", "exp_avg", "exp_avg_sq"}
    ours = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for parameter, state in optimizer.state.items():
        if id(parameter) not in ours or not (set(state) == names or (isinstance(optimizer, SGD) and not state)):
            raise ValueError("its optimizer is of another kind or another network")
        for name, value in state.items():
            size = () if name == "step" else parameter.shape
            if not isinstance(value, Tensor) or value.shape != size or not value.is_floating_point():
                raise ValueError("its optimizer has other sizes than its network")
