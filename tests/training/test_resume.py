"""Runs that are killed, stopped or run out of disk go on and end with the same weights as one that was left alone."""

from __future__ import annotations

import resource
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from networks import same_model

from gossamer.training import checkpoint
from gossamer.training.config import TrainConfig
from gossamer.training.interrupt import Interrupted
from gossamer.training.run import Training
from gossamer.training.trainer import train

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def long(config: TrainConfig) -> TrainConfig:
    return replace(config, epochs=12, density=0.4, checkpoint_steps=4)


def wait_for(path: Path, process: subprocess.Popen[str], old: int = 0) -> None:
    """Until the file is there, and newer than `old` (its time in nanoseconds)."""
    while not path.exists() or path.stat().st_mtime_ns <= old:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def test_killed_twice_then_resumed_is_bit_equal(tmp_path: Path, long: TrainConfig, start: Start) -> None:
    """kill -9 at moments nobody chose, the second time in a run that was itself resumed."""
    whole = train(long, tmp_path / "whole", progress=False)
    path, old = tmp_path / "cut" / "checkpoint.pt", 0
    for delay, resume in ((0.1, False), (0.25, True)):
        process = start(long, tmp_path / "cut", resume=resume)
        wait_for(path, process, old)
        time.sleep(delay)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.communicate()
        old = path.stat().st_mtime_ns
    assert 0 < checkpoint.load(path)["step"] < 12 * 11
    resumed = train(long, tmp_path / "cut", progress=False, resume=True)
    for name in ("loss", "train_accuracy", "test_loss", "test_accuracy", "lr"):
        assert [e[name] for e in resumed.history] == [e[name] for e in whole.history]
    assert same_model(tmp_path / "whole", tmp_path / "cut")


def test_signal_ends_after_the_step_with_a_checkpoint(tmp_path: Path, long: TrainConfig) -> None:
    """Ctrl-C in the middle of an epoch: the step it came in is the last one, and it is saved."""

    def press(run: Training) -> bool:
        if run.step == 18:
            signal.raise_signal(signal.SIGINT)
        return False

    long = replace(long, epochs=3, checkpoint_steps=0)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"run is saved at step 18 of 33 and can be resumed \(--resume\)"):
        train(long, tmp_path / "run", progress=False, after_step=press)
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt")["step"] == 18
    train(long, tmp_path / "run", progress=False, resume=True)
    train(long, tmp_path / "whole", progress=False)
    assert same_model(tmp_path / "whole", tmp_path / "run")


def test_signal_in_another_process(tmp_path: Path, long: TrainConfig, start: Start) -> None:
    process = start(replace(long, epochs=1000), tmp_path / "run")
    wait_for(tmp_path / "run" / "checkpoint.pt", process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "can be resumed" in errors.splitlines()[-1]


def test_full_disk_leaves_the_last_checkpoint(tmp_path: Path, long: TrainConfig) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(run: Training) -> bool:
        if run.step == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # as if the disk had no room for more
        return False

    try:
        with pytest.raises(OSError, match=r"could not write .*checkpoint\.pt .*the earlier one is intact"):
            train(long, tmp_path / "run", progress=False, after_step=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt")["step"] == 4


def test_damaged_checkpoint_is_one_sentence(tmp_path: Path, config: TrainConfig) -> None:
    def stop(run: Training) -> bool:
        signal.raise_signal(signal.SIGTERM)
        return False

    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", progress=False, after_step=stop)
    path = tmp_path / "run" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is no checkpoint, or is damaged"):
        train(config, tmp_path / "run", progress=False, resume=True)
