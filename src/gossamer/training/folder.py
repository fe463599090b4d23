"""The folder of a run: its configuration, its checkpoint while it trains, then its model and result."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import gossamer
from gossamer.data import Description
from gossamer.training import checkpoint
from gossamer.training.config import FREE_FIELDS, TrainConfig


@dataclass(frozen=True)
class Result:
    """How a run ended; `to_dict` is JSON-able.

    `accuracy` is that of the test set after the last epoch; `history` has one entry an epoch: epoch, step, seconds, lr,
    loss, train_accuracy, test_loss, test_accuracy, images_per_s, density. `params` and `madds` count convolutions.
    """

    config: dict[str, Any]
    accuracy: float
    history: list[dict[str, Any]]
    params: int
    madds: int
    train_seconds: float
    skipped: dict[str, str]
    version: str
    machine: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class RunFolder:
    """Names and contents of the files of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.checkpoint = self.path / "checkpoint.pt"
        self.model = self.path / "model.safetensors"
        self.result = self.path / "result.json"
        self.tensorboard = self.path / "tensorboard"

    def claim(self, config: TrainConfig, resume: bool) -> Result | None:
        """Check that `config` may train here; the result, if it already has.

        Raises FileExistsError when the folder holds a run and `resume` is false, ValueError when it holds another one.
        """
        if not (self.checkpoint.exists() or self.result.exists()):
            return None
        if not resume:
            raise FileExistsError(f"{self.path} already holds a run; resume it (--resume) or give another folder")
        there, ours = self.read_config()[0].to_dict(), config.to_dict()
        differ = [name for name in ours if name not in FREE_FIELDS and there[name] != ours[name]]
        if differ:
            pairs = ", ".join(f"{name}={there[name]} there and {ours[name]} now" for name in differ)
            raise ValueError(f"{self.path} holds a run with other settings ({pairs}); give another folder")
        return self.read_result() if self.result.exists() else None

    def read_result(self) -> Result:
        """How the run ended. Raises FileNotFoundError or ValueError."""
        if not self.result.is_file():
            raise FileNotFoundError(f"{self.path} holds no finished run: it has no {self.result.name}")
        try:
            return Result(**json.loads(self.result.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.result} is damaged or from another version: {error}") from None

    def start(self, config: TrainConfig, description: Description) -> None:
        """Make the folder and write what the model needs to be built again."""
        self.path.mkdir(parents=True, exist_ok=True)
        parts = {"config": config.to_dict(), "data": dataclasses.asdict(description), "version": gossamer.__version__}
        checkpoint.write(self.config, json.dumps(parts, indent=1).encode())

    def read_config(self) -> tuple[TrainConfig, Description]:
        """The configuration and data set description of the run. Raises FileNotFoundError or ValueError."""
        if not self.config.is_file():
            raise FileNotFoundError(f"{self.path} is no run folder: it has no {self.config.name}")
        try:
            parts = json.loads(self.config.read_text())
            data: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in parts["data"].items()}
            return TrainConfig.from_dict(parts["config"]), Description(**data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.config} is damaged or from another version: {error}") from None


def machine(device: torch.device) -> dict[str, Any]:
    """What the run was computed on."""
    return {
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    except OSError:  # not Linux
        names = []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
