"""The training loop: it learns, it says what it does, and it stops cleanly."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import same_model
from PIL import Image

import gossamer as gs
from gossamer.training import build, checkpoint
from gossamer.training.config import TrainConfig
from gossamer.training.run import DivergenceError, Training
from gossamer.training.trainer import train


def test_a_sparse_network_learns_the_digits(
    tmp_path: Path, config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(config, model="mnist", density=0.3, epochs=4)
    result = train(config, tmp_path / "run")
    assert result.accuracy > 0.9
    assert 0 < result.params < 0.35 * (25 * 32 + 25 * 32 * 64 + 4 * 64 * 512)
    assert [entry["step"] for entry in result.history] == [11, 22, 33, 44]
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result.to_dict()
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"config.json", "model.safetensors", "result.json", "tensorboard"}
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert re.match(r"epoch 4/4  loss 0\.\d+  accuracy 9\d\.\d+%  test 9\d\.\d+%  [\d,]+ images/s", lines[3])


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "adamw", "lr": 0.003, "momentum": 0.9},
        {"clip_norm": 1.0, "label_smoothing": 0.1, "schedule": "step"},
        {"amp": True},
        {"amp": True, "density": 0.5},
        {"deterministic": True, "augment": "shift-flip"},
        {"width": 0.5, "density": 0.5, "pattern": "uniform"},
    ],
)
def test_options_train(tmp_path: Path, config: TrainConfig, change: dict[str, Any]) -> None:
    result = train(replace(config, **change), tmp_path / "run", progress=False)
    assert result.accuracy > 0.6


def test_equal_configurations_give_equal_weights_and_another_seed_others(tmp_path: Path, config: TrainConfig) -> None:
    config = replace(config, epochs=1, density=0.5)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(replace(config, seed=seed), tmp_path / name, progress=False)
    assert same_model(tmp_path / "a", tmp_path / "b")
    assert not same_model(tmp_path / "a", tmp_path / "c")


def test_only_weights_decay(config: TrainConfig) -> None:
    model = build.build_model(replace(config, density=0.5), build.load_data(config))
    decaying, others = build.make_optimizer(config, model).param_groups
    assert decaying["weight_decay"] == config.weight_decay
    assert others["weight_decay"] == 0
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in decaying["params"]} == {"0.weight", "3.weight", "7.weight"}
    assert {names[id(p)] for p in others["params"]} == {"1.weight", "1.bias", "3.bias", "7.bias"}


def test_a_folder_with_a_run_is_never_overwritten(tmp_path: Path, config: TrainConfig) -> None:
    config = replace(config, epochs=1)
    result = train(config, tmp_path / "run", progress=False, resume=True)  # nothing to resume: it begins
    with pytest.raises(FileExistsError, match="already holds a run; resume it"):
        train(config, tmp_path / "run", progress=False)
    assert train(replace(config, workers=0), tmp_path / "run", progress=False, resume=True) == result
    with pytest.raises(ValueError, match=r"other settings \(lr=0.05 there and 0.1 now\)"):
        train(replace(config, lr=0.1), tmp_path / "run", progress=False, resume=True)


def poison(step: int) -> Any:
    """A callback that breaks a weight after `step`."""

    def after_step(run: Training) -> bool:
        if run.step == step:
            next(run.model.parameters()).data.view(-1)[0] = float("nan")
        return False

    return after_step


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, config: TrainConfig) -> None:
    config = replace(config, checkpoint_steps=2)
    with pytest.raises(DivergenceError, match=r"the loss is not a number at step 6; .*checkpoint\.pt") as error:
        train(config, tmp_path / "run", progress=False, after_step=poison(5))
    assert "\n" not in str(error.value)
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt")["step"] == 4


def test_broken_weights_are_not_saved(tmp_path: Path, config: TrainConfig) -> None:
    with pytest.raises(DivergenceError, match=r"weights are not a number at step \d+; the last good checkpoint"):
        train(replace(config, checkpoint_steps=2), tmp_path / "run", progress=False, after_step=poison(6))
    kept = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    assert kept["step"] == 4
    assert all(torch.isfinite(tensor).all() for tensor in kept["model"].values() if tensor.is_floating_point())


def test_callback_may_change_the_size_of_parameters(tmp_path: Path, config: TrainConfig) -> None:
    """The seam for growing networks: new connections, the optimizer's state carried over, then a resume."""
    config = replace(config, epochs=2, density=0.2)

    def grow(run: Training) -> bool:
        if run.step != 3:
            return False
        layer = run.model.get_submodule("3")
        assert isinstance(layer, gs.SparseConv2d)
        grown = layer.connectivity.grow(0.6)
        weight = torch.zeros(grown.connections, *layer.kernel_size)
        layer.replace_connectivity(grown, weight)
        run.optimizer.state[layer.weight] = {"momentum_buffer": torch.zeros_like(weight)}
        layer.weight.grad = None
        return True

    def fail(run: Training) -> bool:
        grow(run)
        if run.step == 14:
            raise RuntimeError("power cut")
        return run.step == 3

    whole = train(config, tmp_path / "whole", progress=False, after_step=grow)
    assert whole.history[-1]["density"] > 0.2
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, tmp_path / "cut", progress=False, after_step=fail)
    train(config, tmp_path / "cut", progress=False, resume=True)
    assert same_model(tmp_path / "whole", tmp_path / "cut")


def test_corrupt_images_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    for half in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / half / name).mkdir(parents=True)
            for i in range(4):
                pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / half / name / f"{i}.png")
    (tmp_path / "val" / "ant" / "0.png").write_bytes(b"no picture")
    config = TrainConfig(model="cifar", data=str(tmp_path), image_size=32, epochs=1, batch_size=4, workers=0, threads=1)
    result = train(config, tmp_path / "run")
    assert list(result.skipped) == [str(tmp_path / "val" / "ant" / "0.png")]
    assert "skipped 1 unreadable images: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model": "mnits"}, "no model named 'mnits'"),
        ({"data": "digit"}, "no data set or folder 'digit'"),
        ({"model": "torchvision:resnet18"}, "take 3 input channels, got 1"),
        ({"device": "cuda"}, "finds no GPU"),
    ],
)
def test_impossible_requests_leave_no_folder(
    tmp_path: Path, config: TrainConfig, change: dict[str, Any], complaint: str
) -> None:
    if change.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        train(replace(config, **change), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
