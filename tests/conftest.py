"""What all tests share: hypothesis without deadlines (machines are slow and noisy), the same examples and seeds each time, and
one small sweep on real digits for all that look at its results.
"""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest
import torch

from gossamer.experiments import workers
from gossamer.experiments.sweep import matched_sizes, sweep
from gossamer.training.config import TrainConfig

hypothesis.settings.register_profile("gossamer", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("gossamer")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def settings() -> TrainConfig:
    return TrainConfig(model="mnist", data="digits", epochs=2, batch_size=64, threads=1)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, settings: TrainConfig) -> Path:
    """The folder of a finished sweep: thin, sparse, hybrid and dense, two rounds."""
    folder = tmp_path_factory.mktemp("sweep")
    sweep(settings, matched_sizes((0.1, 1), widths=(0.5,)), folder, workers.processes, rounds=2)
    return folder
