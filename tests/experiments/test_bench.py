"""`gossamer bench`: every convolution and the network, each variant, and what a call leaves behind."""

from __future__ import annotations

import json

import pytest
import torch

from gossamer import models
from gossamer.experiments.bench import bench, info, show


@pytest.mark.parametrize("train", [False, True])
def test_bench_times_every_convolution_of_every_variant(train: bool, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    model = models.create("mnist", image_size=8)
    result = bench(model, model.input_shape, (0.1, 1.0), block=4, batch=2, threads=(1, 2), train=train, seconds=0.0)
    assert json.loads(json.dumps(result)) == result
    assert torch.get_num_threads() == before
    assert [run["threads"] for run in result["runs"]] == [1, 2]
    for run in result["runs"]:
        assert set(run["ms"]) == {"dense", "sparse 0.1", "thin 0.32"} == set(result["variants"])
        assert len(run["layers"]) == 3
        assert all(ms > 0 for row in run["layers"] for ms in row["ms"].values())
    assert [row["block"] for row in result["runs"][0]["layers"]] == [{"sparse 0.1": b} for b in (32, 4, 4)]
    assert "one input channel" in result["runs"][0]["layers"][0]["path"]["sparse 0.1"]
    dense, sparse = result["variants"]["dense"], result["variants"]["sparse 0.1"]
    assert sparse["madds"] < dense["madds"] / 4
    assert dense["index_bytes"] == 0
    assert 0 < sparse["index_bytes"] < sparse["weight_bytes"]
    show(result)
    assert "1 threads" in capsys.readouterr().out


def test_info_names_the_instruction_set_and_the_backends() -> None:
    said = info()
    assert said["isa"] in said["isa_available"].split()
    assert said["threads"] == torch.get_num_threads()
    assert "dense" in said["backends"]
