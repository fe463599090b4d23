"""Run folders of strangers: they run no code, lie in one sentence, and have one trainer at a time."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gossamer.data import Description
from gossamer.training import checkpoint
from gossamer.training.config import TrainConfig
from gossamer.training.inference import evaluate, load_trained, predict
from gossamer.training.interrupt import Interrupted
from gossamer.training.run import Training
from gossamer.training.run_folder import RunFolder
from gossamer.training.trainer import train

Start = Callable[..., subprocess.Popen[str]]


def test_code_that_a_folder_names_runs_only_when_it_is_trusted(
    tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(replace(config, epochs=1), tmp_path / "run", progress=False)
    proof = tmp_path / "it ran"
    (tmp_path / "evilmod.py").write_text(
        f"from pathlib import Path\nPath({str(proof)!r}).touch()\nfrom networks import random as f\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace("networks:random", "evilmod:f"))
    asks: list[Callable[[], object]] = [
        lambda: evaluate(tmp_path / "run"),
        lambda: predict(tmp_path / "run", []),
        lambda: load_trained(tmp_path / "run"),
        lambda: train(replace(config, epochs=1), tmp_path / "run", progress=False, resume=True),
    ]
    for ask in asks:
        with pytest.raises(ValueError, match="evilmod:f"):
            ask()
    assert not proof.exists()
    assert evaluate(tmp_path / "run", trust=True)["images"] == 360
    assert proof.exists()


def stopped(config: TrainConfig, out: Path) -> Path:
    """The checkpoint of a run that was stopped in its first epoch."""

    def stop(run: Training) -> bool:
        if run.step == 3:
            signal.raise_signal(signal.SIGTERM)
        return False

    with pytest.raises(Interrupted):
        train(config, out, progress=False, after_step=stop)
    return out / "checkpoint.pt"


def test_the_folder_has_one_trainer_and_the_other_is_named(tmp_path: Path, config: TrainConfig, start: Start) -> None:
    long = replace(config, epochs=1000, checkpoint_steps=2)
    process = start(long, tmp_path / "run")
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    with pytest.raises(FileExistsError, match=rf"process {process.pid} on .* is training in .*run; wait"):
        train(long, tmp_path / "run", progress=False, resume=True)
    (tmp_path / "run" / ".left.part").write_text("by one that was killed")
    process.kill()
    process.communicate()
    stopped_again = replace(long, checkpoint_steps=0)
    with pytest.raises(Interrupted):
        train(
            stopped_again,
            tmp_path / "run",
            progress=False,
            resume=True,
            after_step=lambda run: os.kill(os.getpid(), 15) or False,
        )
    assert not [p for p in (tmp_path / "run").iterdir() if p.name == "lock" or p.suffix == ".part"]


def write_often(path: Path, number: int) -> None:
    for _ in range(60):
        checkpoint.save(path, {"number": number, "weights": torch.full((20_000,), float(number))})


def test_two_processes_that_write_one_checkpoint_tear_nothing(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"number": 0, "weights": torch.zeros(20_000)})
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_often, args=(path, number)) for number in (1, 2)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        state = checkpoint.load(path)
        assert (state["weights"] == state["number"]).all()
        seen.add(state["number"])
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert checkpoint.load(path)["number"] in {1, 2}
    assert seen <= {0, 1, 2}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def without_step(state: dict[str, Any]) -> None:
    del state["step"]


def other_step(state: dict[str, Any]) -> None:
    state["step"] = 10**6


def text_step(state: dict[str, Any]) -> None:
    state["step"] = "3"


def other_epoch(state: dict[str, Any]) -> None:
    state["step"] = 14


def other_network(state: dict[str, Any]) -> None:
    state["model"] = {f"x{name}": value for name, value in state["model"].items()}


def other_size(state: dict[str, Any]) -> None:
    state["model"]["0.weight"] = torch.zeros(10**4, 1)


def other_type(state: dict[str, Any]) -> None:
    state["model"]["0.weight"] = state["model"]["0.weight"].double()


def other_optimizer(state: dict[str, Any]) -> None:
    state["optimizer"] = {key: {"exp_avg": torch.zeros(3)} for key in state["optimizer"]}


def other_momentum(state: dict[str, Any]) -> None:
    state["optimizer"][0]["momentum_buffer"] = torch.zeros(7)


def list_history(state: dict[str, Any]) -> None:
    state["history"] = [[]]


def other_settings(state: dict[str, Any]) -> None:
    state["config"]["seed"] = 9


@pytest.mark.parametrize(
    "change",
    [
        without_step,
        other_step,
        text_step,
        other_epoch,
        other_network,
        other_size,
        other_type,
        other_optimizer,
        other_momentum,
        list_history,
        other_settings,
    ],
)
def test_a_checkpoint_of_another_run_is_one_sentence(
    change: Callable[[dict[str, Any]], None], tmp_path: Path, config: TrainConfig
) -> None:
    path = stopped(config, tmp_path / "run")
    state = checkpoint.load(path)
    change(state)
    checkpoint.save(path, state)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not of this run \(.*; remove it to start anew") as error:
        train(config, tmp_path / "run", progress=False, resume=True)
    assert "\n" not in str(error.value)


def test_content_that_is_not_what_was_saved_is_found(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    checkpoint.save(path, {"weights": torch.arange(1000.0)})
    whole = path.read_bytes()
    at = whole.index(torch.arange(1000.0).numpy().tobytes())
    for bit in (0, 12345, 31999):
        wrong = bytearray(whole)
        wrong[at + bit // 8] ^= 1 << bit % 8
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match="is damaged"):
            checkpoint.load(path)


def test_a_tensor_larger_than_its_part_of_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.save({"format": checkpoint.FORMAT, "digest": "", "w": torch.zeros(1).expand(10**12)}, path)
    with pytest.raises(ValueError, match="larger than what it holds"):
        checkpoint.load(path)
    nested: Any = "x"
    for _ in range(12):
        nested = [nested] * 12
    torch.save({"format": checkpoint.FORMAT, "digest": "", "w": nested}, path)
    with pytest.raises(ValueError, match="repeats itself without end"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("field", "value", "would_work"),
    [
        ("epochs", "3", "a whole number"),
        ("epochs", True, "a whole number"),
        ("epochs", 10**400, "at most"),
        ("lr", None, "a number"),
        ("seed", float("nan"), "a whole number"),
        ("seed", 2**70, "63 bits"),
        ("model", ["mnist"], "a text"),
        ("pattern", "striped", "'balanced' or 'uniform'"),
        ("amp", 1, "true or false"),
        ("threads", 100_000, "at most"),
        ("grow_from", {}, "a number or nothing"),
        ("width", 10**400, "at most 1"),
    ],
)
def test_settings_of_wrong_types_are_named(field: str, value: object, would_work: str) -> None:
    with pytest.raises(ValueError, match=rf"^{field} is .{{1,80}}; it must .*{would_work}"):
        TrainConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content",
    ["[" * 5000 + "]" * 5000, "[]", "3", '{"config": [], "data": {}}', '{"config": {"lr": NaN}, "data": {}}', "\xff"],
)
def test_a_damaged_configuration_is_one_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"config\.json is damaged or from another version: .") as error:
        RunFolder(tmp_path).read_config()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ()},
        {"classes": (1, 2)},
        {"image_shape": (1, 8)},
        {"image_shape": (1, 10**9, 8)},
        {"mean": (0.0, 0.0)},
        {"std": (0.0,)},
        {"std": ("x",)},
        {"shorter_side": -1},
        {"name": None},
    ],
)
def test_what_describes_no_data_set_is_refused(change: dict[str, Any]) -> None:
    fields = {"name": "x", "classes": ("a", "b"), "image_shape": (1, 8, 8), "mean": (0.0,), "std": (1.0,), **change}
    with pytest.raises(ValueError, match=r"a data set|shorter side"):
        Description(**fields)


def test_sizes_that_a_configuration_claims_take_no_memory(tmp_path: Path) -> None:
    config = TrainConfig(epochs=1, batch_size=256, density=0.3, threads=1)
    train(config, tmp_path / "run", progress=False)
    path = tmp_path / "run" / "config.json"
    parts = json.loads(path.read_text())
    parts["data"]["image_shape"] = [1, 4096, 4096]
    path.write_text(json.dumps(parts))
    with pytest.raises(ValueError, match="does not fit this model"):
        load_trained(tmp_path / "run")
