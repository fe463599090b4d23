"""Files: exact, small, safe, and refused with one sentence where they do not fit."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import gossamer as gs
import nets
from gossamer.storage import pack, unpack


@given(st.lists(st.integers(0, 400_000), unique=True, max_size=200).map(sorted))
def test_gaps_round_trip(positions: list[int]) -> None:
    packed = pack(np.array(positions, dtype=np.int64))
    assert unpack(packed, len(positions)).tolist() == positions


@pytest.mark.parametrize("density", [0.003, 0.03, 0.1, 0.5])
@pytest.mark.parametrize("pattern", ["balanced", "uniform"])
def test_index_overhead_is_under_six_percent_for_3x3(density: float, pattern: str) -> None:
    c = gs.Connectivity.random(512, 512, density, pattern=pattern)
    assert pack(c.positions).nbytes < 0.06 * c.connections * 9 * 4


@pytest.mark.parametrize("network", [*nets.FOLLOWED, nets.Padded])
def test_a_fresh_model_takes_everything_over(network: type[nn.Module], tmp_path: Path) -> None:
    model = gs.sparsify(network(), 0.3, seed=1, pattern="uniform")
    gs.save(model, tmp_path / "m.safetensors")
    image = torch.randn(2, *nets.IMAGE)
    for fresh in (network(), gs.sparsify(network(), 0.7, seed=2)):
        loaded = gs.load(fresh, tmp_path / "m.safetensors")
        assert loaded is fresh
        torch.testing.assert_close(loaded.eval()(image), model.eval()(image), rtol=0, atol=0)
        for name, value in model.state_dict().items():
            assert torch.equal(value, loaded.state_dict()[name]), name


def test_dense_models_and_bare_layers_too(tmp_path: Path) -> None:
    for model, fresh in (
        (nets.Residual(), nets.Residual()),
        (gs.SparseConv2d(4, 4, 3, density=0.5), gs.SparseConv2d(4, 4, 3, density=1.0)),
    ):
        gs.save(model, tmp_path / "m")
        loaded = gs.load(fresh, tmp_path / "m")
        assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())


def test_the_same_model_is_the_same_file(tmp_path: Path) -> None:
    model = gs.sparsify(nets.Residual(), 0.3)
    for name in "abc":
        gs.save(model, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_bytes_follow_the_density(tmp_path: Path) -> None:
    sizes = {}
    for density in (0.05, 0.1, 1.0):
        model = gs.sparsify(nn.Conv2d(256, 256, 3, bias=False), density)
        gs.save(model, tmp_path / "m")
        sizes[density] = os.path.getsize(tmp_path / "m")
    dense = 256 * 256 * 9 * 4
    assert sizes[0.1] < 1.06 * 0.1 * dense
    assert sizes[0.05] < 0.55 * sizes[0.1]


@pytest.mark.parametrize("cut", [0, 4, 100, -1, -1000])
def test_a_truncated_file_is_refused(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    gs.save(gs.sparsify(nets.Residual(), 0.5), path)
    path.write_bytes(path.read_bytes()[:cut])
    model = nets.Residual()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match="damaged or not a safetensors file"):
        gs.load(model, path)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"was not written by gossamer\.save"):
        gs.load(nets.Residual(), path)
    path.write_bytes(pickle.dumps({"os": "system"}))
    with pytest.raises(ValueError, match="damaged or not a safetensors file"):
        gs.load(nets.Residual(), path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        gs.load(nets.Residual(), tmp_path / "nothing")
    save_file({"gaps": torch.zeros(1)}, path, {"gossamer": "{"})
    with pytest.raises(ValueError, match="damaged"):
        gs.load(nets.Residual(), path)
    save_file({"gaps": torch.zeros(1)}, path, {"gossamer": '{"version": 9}'})
    with pytest.raises(ValueError, match="has version 9 of the format, this reads 1 and 2"):
        gs.load(nets.Residual(), path)


def test_another_models_file_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "m"
    gs.save(gs.sparsify(nets.Residual(), 0.5), path)
    other = nets.Concatenating()
    with pytest.raises(ValueError, match=r"it has a sparse layer .*, this model has no such layer"):
        gs.load(other, path)
    thin = gs.thin(nets.Residual(), 0.5, nets.IMAGE)
    with pytest.raises(ValueError, match="does not fit"):
        gs.load(thin, path)
    assert not any(isinstance(m, gs.SparseConv2d) for m in thin.modules())
    gs.save(nets.Residual(), path)
    with pytest.raises(ValueError, match="no pattern for the sparse layer 'stem'"):
        gs.load(gs.sparsify(nets.Residual(), 0.5), path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m"
    gs.save(nets.Residual(), path)
    before = path.read_bytes()
    with pytest.raises(OSError, match=r"could not write|No such file"):
        gs.save(nets.Residual(), tmp_path / "nowhere" / "m")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m"]
