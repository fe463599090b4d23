"""The folder of a run: its configuration, its checkpoint while it trains, then its model and result."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import gossamer
from gossamer import files
from gossamer.data import Description
from gossamer.training.config import TrainConfig, other_settings


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

    def __post_init__(self) -> None:
        numbers = files.is_number(self.accuracy) and files.is_number(self.train_seconds)
        counts = files.is_count(self.params) and files.is_count(self.madds)
        mappings = all(isinstance(part, dict) for part in (self.config, self.skipped, self.machine))
        if not (numbers and counts and mappings and are_records(self.history) and isinstance(self.version, str)):
            raise ValueError("its fields are not those of a result")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def are_records(history: Any) -> bool:
    """Whether this is what the epochs of a run leave: numbers by name, an entry an epoch."""
    entries = history if isinstance(history, list) else [None]
    return all(isinstance(e, dict) and all(files.is_number(v) for v in e.values()) for e in entries)


class RunFolder:
    """Names and contents of the files of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.checkpoint = self.path / "checkpoint.pt"
        self.model = self.path / "model.safetensors"
        self.result = self.path / "result.json"
        self.tensorboard = self.path / "tensorboard"
        self.lock = self.path / "lock"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Have the folder, made if need be, to oneself. Raises FileExistsError that names the process that has it.

        The lock ends with its process, however that ends. A folder that was made here and stays empty is removed.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            handle = self._lock()
            try:
                files.remove_parts(self.path)
                yield
            finally:
                self.lock.unlink(missing_ok=True)
                os.close(handle)
        finally:
            with contextlib.suppress(OSError):
                for folder in made:
                    folder.rmdir()

    def _lock(self) -> int:
        """The open, locked file. A lock of the process, not of the file: workers that it forks do not keep it alive."""
        while True:
            handle = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self.lock.exists() and os.path.samestat(os.fstat(handle), self.lock.stat()):
                    os.truncate(handle, 0)
                    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
                    return handle
            except (BlockingIOError, PermissionError):  # which of them, depends on the system
                there = os.read(handle, 200).decode(errors="replace") or "another process"
                os.close(handle)
                raise FileExistsError(
                    f"{there} is training in {self.path}; wait for it or give another folder"
                ) from None
            os.close(handle)  # the process that had it removed the file meanwhile

    def claim(self, config: TrainConfig, resume: bool) -> Result | None:
        """Check that `config` may train here; the result, if it already has.

        Raises FileExistsError when the folder holds a run and `resume` is false, ValueError when it holds another one.
        """
        if not (self.checkpoint.exists() or self.result.exists()):
            return None
        if not resume:
            raise FileExistsError(f"{self.path} already holds a run; resume it (--resume) or give another folder")
        differ = other_settings(self.read_config()[0].to_dict(), config.to_dict())
        if differ:
            raise ValueError(f"{self.path} holds a run with other settings ({differ}); give another folder")
        return self.read_result() if self.result.exists() else None

    def read_result(self) -> Result:
        """How the run ended. Raises FileNotFoundError or ValueError."""
        if not self.result.is_file():
            raise FileNotFoundError(f"{self.path} holds no finished run: it has no {self.result.name}")
        try:
            return Result(**files.read_json(self.result))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.result} is damaged or from another version: {error}") from None

    def start(self, config: TrainConfig, description: Description) -> None:
        """Write what the model needs to be built again."""
        parts = {"config": config.to_dict(), "data": dataclasses.asdict(description), "version": gossamer.__version__}
        files.write(self.config, json.dumps(parts, indent=1).encode())

    def read_config(self) -> tuple[TrainConfig, Description]:
        """The configuration and data set description of the run. Raises FileNotFoundError or ValueError."""
        if not self.config.is_file():
            raise FileNotFoundError(f"{self.path} is no run folder: it has no {self.config.name}")
        try:
            parts = files.read_json(self.config)
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
