"""Two processes under torchrun train the network that one process trains."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import same_model
from safetensors.torch import load_file

from gossamer.data.split import Share
from gossamer.training import build, checkpoint
from gossamer.training.config import TrainConfig
from gossamer.training.distributed import Team, join
from gossamer.training.run import Training
from gossamer.training.run_folder import RunFolder
from gossamer.training.trainer import train

Start = Callable[..., subprocess.Popen[str]]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output


def test_two_processes_reach_the_weights_of_one_also_when_stopped(
    tmp_path: Path, config: TrainConfig, start: Start
) -> None:
    config = replace(config, model="networks:plain", density=0.5, epochs=20, lr=0.02)
    alone = train(config, tmp_path / "one", progress=False)
    output = finish(start(config, tmp_path / "two", *TORCHRUN, again=tmp_path / "again"))
    assert same_model(tmp_path / "two", tmp_path / "again")
    assert output.count("epoch 20/20") == 2  # of each run, one process speaks
    assert f"test {alone.accuracy:.2%}" in output
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)

    stopped = start(config, tmp_path / "stopped", *TORCHRUN)
    while not (tmp_path / "stopped" / "checkpoint.pt").exists():
        assert stopped.poll() is None, stopped.communicate()[1]
        time.sleep(0.01)
    stopped.terminate()
    stopped.communicate(timeout=60)
    assert checkpoint.load(tmp_path / "stopped" / "checkpoint.pt")["step"] < 20 * 11
    finish(start(config, tmp_path / "stopped", *TORCHRUN, resume=True))
    assert same_model(tmp_path / "two", tmp_path / "stopped")


def test_a_batch_that_cannot_be_shared_is_an_error(tmp_path: Path, config: TrainConfig) -> None:
    team = Team(Share(0, 2), torch.device("cpu"))
    with pytest.raises(ValueError, match="a batch of 127 images cannot be shared equally by 2 processes"):
        Training(replace(config, batch_size=127), build.load_data(config), team, RunFolder(tmp_path / "run"))


def test_one_process_alone_is_a_team() -> None:
    team = join("cpu")
    assert team.leads
    assert team.sum(1, 2.5) == [1, 2.5]
    model = torch.nn.Linear(1, 1)
    assert team.wrap(model) is model


def test_a_gpu_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="finds no GPU"):
        join("cuda")
