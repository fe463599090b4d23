"""The training configuration: its checks, its learning rate, and that reading it costs nothing."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from gossamer.training.config import RECIPES, TrainConfig, learning_rate


@pytest.mark.parametrize(
    ("field", "value", "would_work"),
    [
        ("density", 0, "above 0 and at most 1"),
        ("density", 1.5, "above 0 and at most 1"),
        ("width", -1, "above 0 and at most 1"),
        ("epochs", 0, "above 0"),
        ("batch_size", -3, "above 0"),
        ("lr", math.nan, "above 0"),
        ("lr", math.inf, "above 0"),
        ("momentum", 1, "below 1"),
        ("label_smoothing", 1, "below 1"),
        ("weight_decay", -1e-3, "at least 0"),
        ("clip_norm", 0, "above 0"),
        ("workers", -1, "at least 0"),
    ],
)
def test_impossible_values_are_named(field: str, value: float, would_work: str) -> None:
    change: dict[str, Any] = {field: value}
    with pytest.raises(ValueError, match=rf"^{field} is {value}; it must be .*{would_work}"):
        replace(TrainConfig(), **change)


def test_dictionary_and_back() -> None:
    for config in RECIPES.values():
        assert TrainConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="no field depth"):
        TrainConfig.from_dict({"depth": 3})


def test_learning_rate_rises_then_follows_the_cosine() -> None:
    config = TrainConfig(epochs=10, lr=0.4, warmup_epochs=2)
    rates = [learning_rate(config, step, 5) for step in range(50)]
    assert rates[:10] == pytest.approx([0.04 * (step + 1) for step in range(10)])
    assert rates[10] == 0.4
    assert rates[30] == pytest.approx(0.2)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.001


def test_learning_rate_in_steps_and_constant() -> None:
    config = TrainConfig(epochs=8, lr=1, warmup_epochs=0, schedule="step")
    assert [learning_rate(config, step, 1) for step in range(8)] == pytest.approx([1] * 4 + [0.1] * 2 + [0.01] * 2)
    assert learning_rate(replace(config, schedule="constant"), 7, 1) == 1


def test_warm_up_longer_than_the_run_takes_half_of_it() -> None:
    config = TrainConfig(epochs=1, lr=1, warmup_epochs=50)
    assert learning_rate(config, 4, 10) == 1
    assert learning_rate(config, 9, 10) < 0.1


def test_reading_the_configuration_imports_no_torch() -> None:
    code = "import sys, gossamer.training.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
