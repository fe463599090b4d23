"""What the training tests share: the networks of this folder, a quick configuration, and runs in other processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gossamer.training.config import TrainConfig

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for `networks`, which configurations name too

TRAIN = """
import json, sys
from gossamer.training.config import TrainConfig
from gossamer.training.trainer import train
config, folders, resume = json.loads(sys.argv[1])
for out in folders:
    train(TrainConfig.from_dict(config), out, resume=resume)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def config() -> TrainConfig:
    """Three short epochs on the digits."""
    return TrainConfig(model="networks:random", data="digits", epochs=3, batch_size=128, lr=0.05, threads=1)


@pytest.fixture
def start() -> Start:
    """Start a training run in a process of its own, by way of `prefix` (torchrun); then the same run into `again`."""

    def run(
        config: TrainConfig, out: Path, *prefix: str, resume: bool = False, again: Path | None = None
    ) -> subprocess.Popen[str]:
        script = out.parent / "train_once.py"
        script.write_text(TRAIN)
        folders = [str(folder) for folder in (out, again) if folder is not None]
        arguments = json.dumps([config.to_dict(), folders, resume])
        python_path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        environment: dict[str, Any] = {
            **os.environ,
            "PYTHONPATH": python_path,
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "error",
        }
        return subprocess.Popen(
            [sys.executable, *prefix, str(script), arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run
