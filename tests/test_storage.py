"""Files: exact, small, safe, and refused with one sentence where they do not fit."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import gossamer as gs
import nets
from gossamer.storage import digest, pack, unpack


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


def test_blocks_store_one_index_for_all_their_outputs(tmp_path: Path) -> None:
    path = tmp_path / "m"
    sizes = {}
    for block in (1, 4):
        layer = gs.SparseConv2d(128, 128, 1, density=0.1, block=block, bias=False)
        gs.save(layer, path)
        loaded = gs.load(gs.SparseConv2d(128, 128, 1, bias=False), path)
        assert loaded.connectivity == layer.connectivity
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in layer.state_dict().items())
        with safe_open(path, "pt") as file:
            sizes[block] = file.get_tensor("gaps").nbytes
    assert sizes[4] < 0.27 * sizes[1]


def test_files_from_before_blocks_are_read(tmp_path: Path) -> None:
    layer = gs.SparseConv2d(8, 8, 3, density=0.5, block=4)
    gs.save(layer, tmp_path / "new")
    with safe_open(tmp_path / "new", "pt") as file:
        header = json.loads(file.metadata()["gossamer"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    del header["patterns"][""]["block"], header["digest"], header["groups"]
    header["version"] = 1
    tensors["gaps"] = torch.from_numpy(pack(layer.connectivity.positions))
    save_file(tensors, tmp_path / "old", {"gossamer": json.dumps(header)})
    loaded = gs.load(gs.SparseConv2d(8, 8, 3), tmp_path / "old")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("block", [0, -4, 3, 16, "4", None, 1.5])
def test_blocks_that_cannot_be_are_damage(block: object, tmp_path: Path) -> None:
    gs.save(gs.SparseConv2d(8, 8, 3, density=0.5, block=4), tmp_path / "m")
    with safe_open(tmp_path / "m", "pt") as file:
        header = json.loads(file.metadata()["gossamer"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    header["patterns"][""]["block"] = block
    save_file(tensors, tmp_path / "m", {"gossamer": json.dumps(header)})
    with pytest.raises(ValueError, match="damaged"):
        gs.load(gs.SparseConv2d(8, 8, 3), tmp_path / "m")


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


# -- files that lie, and files of thinned, tied and wrapped models ------------------------------------------------------


def rewritten(path: Path, change: Callable[[dict[str, Any]], None], *, sealed: bool = True) -> None:
    """Change what a file says of itself; `sealed`: with the digest of the lie."""
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    ours = json.loads(header["__metadata__"]["gossamer"])
    change(ours)
    if sealed and "digest" in ours:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        rest = {name: value for name, value in ours.items() if name != "digest"}
        ours["digest"] = digest(json.dumps(rest, separators=(",", ":"), sort_keys=True), tensors)
    header["__metadata__"]["gossamer"] = json.dumps(ours)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])


def set_channels(header: dict[str, Any]) -> None:
    header["patterns"]["down"]["channels"][1] = 10**9


def set_seed(header: dict[str, Any]) -> None:
    header["patterns"]["down"]["drawn"][1] = float("nan")


def set_huge(header: dict[str, Any]) -> None:
    header["patterns"]["down"]["connections"] = 10**400


def set_list(header: dict[str, Any]) -> None:
    header["patterns"] = [header["patterns"]]


def set_pattern(header: dict[str, Any]) -> None:
    header["patterns"]["down"]["drawn"][0] = -1


def drop_digest(header: dict[str, Any]) -> None:
    del header["digest"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (set_channels, "'down' has 12 -> 1000000000 channels there, 12 -> 20 here"),
        (set_seed, "is damaged"),
        (set_huge, "is damaged"),
        (set_list, "is damaged"),
        (set_pattern, "is damaged"),
        (drop_digest, "is damaged"),
    ],
)
def test_a_file_that_lies_is_one_sentence_and_changes_nothing(
    change: Callable[[dict[str, Any]], None], complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "m"
    gs.save(gs.sparsify(nets.Residual(), 0.5), path)
    rewritten(path, change)
    model = nets.Residual()
    before, layers = {k: v.clone() for k, v in model.state_dict().items()}, list(model.modules())
    with pytest.raises(ValueError, match=complaint) as error:
        gs.load(model, path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert layers == list(model.modules())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_one_gap_that_leads_too_far_and_brackets_without_end(tmp_path: Path) -> None:
    path = tmp_path / "m"
    gaps = torch.tensor([65535] * 500 + [0], dtype=torch.uint16)
    entry = {"channels": [4, 4, 1], "connections": 1, "drawn": ["balanced", 0, 0]}
    tensors = {"gaps": gaps, "weight": torch.zeros(1, 3, 3), "bias": torch.zeros(4)}
    save_file(tensors, path, {"gossamer": json.dumps({"version": 1, "patterns": {"": entry}})})
    with pytest.raises(ValueError, match="connections of channels that there are not"):
        gs.load(gs.SparseConv2d(4, 4, 3), path)
    save_file(tensors, path, {"gossamer": "[" * 5000 + "]" * 5000})
    with pytest.raises(ValueError, match="nested too deeply"):
        gs.load(gs.SparseConv2d(4, 4, 3), path)


def test_every_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m"
    model = gs.sparsify(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), 0.5)
    gs.save(model, path)
    whole, state = path.read_bytes(), model.state_dict()
    fresh = gs.sparsify(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), 0.5, seed=5)
    rng, refused = random.Random(0), 0
    for _ in range(300):
        wrong = bytearray(whole)
        wrong[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(wrong)
        try:
            gs.load(fresh, path)
        except ValueError:
            refused += 1
        else:
            assert all(torch.equal(v, state[k]) for k, v in fresh.state_dict().items())
    assert refused > 250


def test_other_types_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m"
    gs.save(nn.Linear(2, 2).half(), path)
    with pytest.raises(ValueError, match=r"is F16 in the file, torch\.float32 here"):
        gs.load(nn.Linear(2, 2), path)


def test_files_of_the_first_version_still_load(tmp_path: Path) -> None:
    path = tmp_path / "m"
    model = gs.sparsify(nets.Shuffling(), 0.5)
    gs.save(model, path)

    def older(header: dict[str, Any]) -> None:
        del header["digest"], header["groups"]
        header["version"] = 1

    rewritten(path, older)
    loaded = gs.load(nets.Shuffling(), path)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("network", nets.FOLLOWED)
def test_a_model_of_full_width_takes_the_widths_of_the_file(network: type[nn.Module], tmp_path: Path) -> None:
    path, image = tmp_path / "m", torch.randn(2, *nets.IMAGE)
    thin = gs.thin(network(), 0.5, nets.IMAGE)
    for saved in (thin, gs.sparsify(thin, 0.5)):
        gs.save(saved, path)
        fresh = [network()] if saved is thin else [network(), gs.sparsify(network(), 0.3)]
        for model in fresh:
            assert gs.load(model, path) is model
            assert torch.equal(model.eval()(image), saved.eval()(image))
            assert gs.count(model, nets.IMAGE) == gs.count(saved, nets.IMAGE)


def test_other_classes_are_not_taken_for_thinning(tmp_path: Path) -> None:
    path = tmp_path / "m"
    model = nets.Residual()
    model.classifier = nn.Linear(20, 3)
    gs.save(model, path)
    with pytest.raises(ValueError, match=r"'classifier\.\w+' has shape \[3.*in the file, \[5"):
        gs.load(nets.Residual(), path)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = self.first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def test_layers_that_are_one_stay_one(tmp_path: Path) -> None:
    path = tmp_path / "m"
    sparse = gs.sparsify(Tied(), 0.5)
    gs.save(sparse, path)
    for model in (Tied(), gs.sparsify(Tied(), 0.8)):
        gs.load(model, path)
        assert model.first is model.second
        assert torch.equal(model.first.weight, sparse.first.weight)
    untied = gs.sparsify(Tied(), 0.5)
    untied.second = gs.SparseConv2d(4, 4, 3, padding=1, density=0.5, seed=9)
    gs.save(untied, path)
    with pytest.raises(ValueError, match="differ in the file"):
        gs.load(Tied(), path)


class Own(gs.SparseConv2d):
    pass


def test_sparse_layers_stay_the_objects_they_are(tmp_path: Path) -> None:
    path = tmp_path / "m"
    saved = nn.Sequential(Own(4, 6, 3, density=0.5, seed=1))
    gs.save(saved, path)
    for seed in (1, 2):  # the same pattern, and another
        model = nn.Sequential(Own(4, 6, 3, density=0.5, seed=seed))
        layer, weight, calls = model[0], model[0].weight, []
        layer.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        gs.load(model, path)
        assert model[0] is layer
        assert layer.weight is weight
        assert layer.connectivity == saved[0].connectivity
        model(torch.zeros(1, 4, 5, 5))
        assert calls == [1]


def test_wrapped_models_and_what_they_saved(tmp_path: Path) -> None:
    sparse = gs.sparsify(nets.Residual(), 0.5)
    for number, wrapped in enumerate((sparse, nn.DataParallel(sparse), torch.compile(sparse, backend="eager"))):
        gs.save(wrapped, tmp_path / str(number))
        assert (tmp_path / str(number)).read_bytes() == (tmp_path / "0").read_bytes()
    state = {f"module.{name}": value for name, value in nets.Residual().state_dict().items()}
    save_file(state, tmp_path / "old", {"gossamer": json.dumps({"version": 1, "patterns": {}})})
    for model in (nets.Residual(), nn.DataParallel(nets.Residual()), torch.compile(nets.Residual(), backend="eager")):
        assert gs.load(model, tmp_path / "old") is model
        stems = [value for name, value in model.state_dict().items() if name.endswith("stem.weight")]
        assert torch.equal(stems[0], state["module.stem.weight"])
        gs.load(model, tmp_path / "0")


def test_a_model_on_the_meta_device_gets_its_memory(tmp_path: Path) -> None:
    sparse = gs.sparsify(gs.thin(nets.Residual(), 0.5, nets.IMAGE), 0.5)
    gs.save(sparse, tmp_path / "m")
    with torch.device("meta"):
        model = nets.Residual()
        layer = gs.SparseConv2d(3, 4, 3, density=0.5)
    gs.load(model, tmp_path / "m")
    image = torch.randn(2, *nets.IMAGE)
    assert torch.equal(model.eval()(image), sparse.eval()(image))
    with pytest.raises(ValueError, match="meta device and has no values"):
        gs.save(nn.Linear(2, 2, device="meta"), tmp_path / "n")
    other = gs.SparseConv2d(3, 4, 3, density=0.5, seed=1)
    layer.load_state_dict(other.state_dict(), assign=True)
    assert layer.connectivity == other.connectivity


def test_a_wrong_extra_state_is_refused() -> None:
    layer = gs.SparseConv2d(3, 4, 3, density=0.5)
    for wrong in ([-1, 0, 0], [9, 0, 0], [0, 0], [0.0, 1.0, 2.0], [0, 0, -1]):
        with pytest.raises(ValueError, match="_extra_state must be"):
            layer.load_state_dict({**layer.state_dict(), "_extra_state": torch.tensor(wrong)})


def test_files_get_the_permissions_of_the_umask_and_links_stay_links(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        gs.save(nn.Linear(2, 2), tmp_path / "m")
    finally:
        os.umask(before)
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o640
    os.chmod(tmp_path / "m", 0o604)
    (tmp_path / "link").symlink_to("m")
    model = nn.Linear(2, 2)
    gs.save(model, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o604
    assert torch.equal(gs.load(nn.Linear(2, 2), tmp_path / "m").weight, model.weight)
    with pytest.raises(OSError, match="no regular file"):
        gs.save(model, tmp_path)
