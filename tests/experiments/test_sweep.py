"""The sweep for real: on digits, in processes, interrupted, continued, with runs that fail and runs that die."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.experiments import results, workers
from gossamer.experiments.results import Row
from gossamer.experiments.runs import train_run
from gossamer.experiments.sweep import Run, Size, matched_sizes, plan, sweep
from gossamer.training.config import TrainConfig


def nothing(runs: Sequence[Run], folder: Path) -> Iterator[Row]:
    assert not runs, f"these were there already: {[run.name for run in runs]}"
    return iter(())


@given(st.lists(st.floats(1e-3, 0.999), min_size=1, max_size=5, unique=True))
def test_methods_are_matched_by_the_papers_rule(densities: list[float]) -> None:
    sizes = matched_sizes([*densities, 1.0])
    assert [size for size in sizes if size.method == "dense"] == [Size.dense()]
    for method in ("thin", "sparse"):
        assert sorted(size.alpha for size in sizes if size.method == method) == sorted(densities)
    assert all(size.width == math.sqrt(size.alpha) for size in sizes if size.method == "thin")
    assert all(size.density == size.alpha for size in sizes if size.method == "sparse")


def test_rounds_differ_in_their_seed_alone_and_come_one_after_the_other(settings: TrainConfig) -> None:
    runs = plan(replace(settings, seed=7), matched_sizes((0.1, 1)), rounds=2)
    assert [run.round for run in runs] == [0, 0, 0, 1, 1, 1]
    assert [run.config.seed for run in runs] == [7, 7, 7, 8, 8, 8]
    assert len({run.name for run in runs}) == len(runs)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5])
def test_an_impossible_density_is_refused(density: float) -> None:
    with pytest.raises(ValueError, match=f"{density:g}"):
        matched_sizes((0.1, density))


def test_each_run_leaves_a_whole_line(finished: Path) -> None:
    rows = results.read(finished)
    assert len(rows) == 8
    assert len((finished / results.FILE).read_text().splitlines()) == 8
    for row in rows:
        assert row["status"] == "done"
        assert 0.3 < row["accuracy"] <= 1
        assert row["bytes"] == (finished / "runs" / row["run"] / "model.safetensors").stat().st_size
        assert row["config"]["density"] == row["density"]
        assert len(row["history"]) == 2
        assert row["machine"]["threads"] == row["threads"] == 1
        for measured in ("ms_image", "ms_batch", "train_images_per_s", "peak_memory"):
            assert row[measured] > 0


def test_matched_networks_are_smaller_by_about_the_density(finished: Path) -> None:
    size = {row["run"]: row["params"] for row in results.read(finished)}
    dense = size["dense-r0"]
    assert size["thin-0.3162-r0"] == pytest.approx(0.1 * dense, rel=0.15)
    assert size["sparse-0.1-r0"] == pytest.approx(0.1 * dense, rel=0.15)
    assert size["hybrid-0.5x0.1-r0"] == pytest.approx(0.025 * dense, rel=0.25)


def test_what_is_there_is_not_done_again(finished: Path, settings: TrainConfig) -> None:
    before = (finished / results.FILE).read_bytes()
    rows = sweep(settings, matched_sizes((0.1, 1), widths=(0.5,)), finished, nothing, rounds=2)
    assert len(rows) == 8
    assert (finished / results.FILE).read_bytes() == before


def test_other_settings_are_refused_by_name(finished: Path, settings: TrainConfig) -> None:
    with pytest.raises(ValueError, match=r"epochs=2 there and 3 now.*--out"):
        sweep(replace(settings, epochs=3), [Size.dense()], finished, nothing)
    sweep(replace(settings, threads=2), [Size.dense()], finished, nothing)  # this changes nothing that comes out


def test_several_processes_give_the_same_results_and_times(
    finished: Path, settings: TrainConfig, tmp_path: Path
) -> None:
    sizes = matched_sizes((0.1,))
    rows = sweep(settings, sizes, tmp_path, partial(workers.processes, jobs=2), workers.measured)
    alone = {row["run"]: row["accuracy"] for row in results.read(finished)}
    assert {row["run"]: row["accuracy"] for row in rows} == {
        run: alone[run] for run in ("thin-0.3162-r0", "sparse-0.1-r0")
    }
    assert all(row["ms_image"] > 0 for row in rows)


FACTORY = """
import os, signal
from pathlib import Path
from gossamer.models import create

def network(**given):
    calls = Path(__file__).with_name("calls")
    number = len(calls.read_text()) if calls.exists() else 0
    calls.write_text("x" * (number + 1))
    if number == {fails}:
        raise RuntimeError("the second network is broken")
    if number == {dies}:
        os.kill(os.getpid(), signal.SIGKILL)
    return create("mnist", **given)
"""


@pytest.mark.parametrize(
    ("fails", "dies", "reason"), [(1, -1, "RuntimeError: the second network is broken"), (-1, 1, "exit code -9")]
)
def test_a_run_that_fails_or_dies_is_recorded_and_the_others_go_on(
    fails: int, dies: int, reason: str, settings: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"networks_{fails + 1}_{dies + 1}"
    (tmp_path / f"{name}.py").write_text(FACTORY.format(fails=fails, dies=dies))
    monkeypatch.syspath_prepend(str(tmp_path))
    base = replace(settings, model=f"{name}:network", epochs=1)
    folder = tmp_path / "sweep"
    rows = {row["run"]: row for row in sweep(base, matched_sizes((0.1, 1)), folder, _untimed)}
    assert {run: row["status"] for run, row in rows.items()} == {
        "dense-r0": "done",
        "thin-0.3162-r0": "failed",
        "sparse-0.1-r0": "done",
    }
    assert reason in rows["thin-0.3162-r0"]["error"]
    again = {row["run"]: row["status"] for row in sweep(base, matched_sizes((0.1, 1)), folder, _untimed)}
    assert set(again.values()) == {"done"}


def test_a_sweep_decodes_image_folders_in_worker_processes(settings: TrainConfig, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, number in (("train", 8), ("val", 4)):
        for label in ("dark", "light"):
            (tmp_path / part / label).mkdir(parents=True)
            for index in range(number):
                pixels = rng.integers(0, 128, (40, 40, 3)) + (128 if label == "light" else 0)
                Image.fromarray(pixels.astype("uint8")).save(tmp_path / part / label / f"{index}.jpg")
    base = replace(settings, model="cifar", data=str(tmp_path), image_size=32, epochs=1, batch_size=8, workers=1)
    (row,) = sweep(base, [Size.sparse(0.5)], tmp_path / "sweep", _untimed)
    assert row["status"] == "done", row.get("traceback")
    assert row["skipped"] == 0


def test_torchrun_trains_each_run_in_all_its_processes_and_keeps_one_line(tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    options = ["--epochs", "1", "--batch-size", "64", "--threads", "1", "--densities", "0.1", "--out", str(out)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "gossamer", "sweep", "mnist", "--data", "digits", *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("2 runs, 0 of them there already") == 1
    lines = [json.loads(line) for line in (out / results.FILE).read_text().splitlines()]
    assert [row["run"] for row in lines] == ["thin-0.3162-r0", "sparse-0.1-r0"]
    assert all(row["status"] == "done" for row in lines), lines


def test_ray_runs_the_same_sweep(settings: TrainConfig, finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the cluster test needs the package ray (extra: cluster)")
    out = tmp_path / "sweep"
    options = ["--epochs", "2", "--batch-size", "64", "--threads", "1", "--densities", "0.1", "--ray", "local"]
    command = [sys.executable, "-m", "gossamer", "sweep", "mnist", "--data", "digits", *options, "--out", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    alone = {row["run"]: row["accuracy"] for row in results.read(finished)}
    rows = results.read(out)
    assert {row["run"] for row in rows} == {"thin-0.3162-r0", "sparse-0.1-r0"}
    assert all(row["accuracy"] == alone[row["run"]] and row["ms_image"] > 0 for row in rows)


def _untimed(runs: Sequence[Run], folder: Path) -> Iterator[Row]:
    """The runs one by one, in processes, without measuring."""
    return workers.each(runs, folder, 1, partial(train_run, progress=False, timed=False))


def _heed_interrupts() -> None:
    """Tests that run in the background of a shell inherit that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    options = ["--epochs", "3", "--densities", "0.1,1", "--threads", "1", "--out", str(out)]
    command = [sys.executable, "-m", "gossamer", "sweep", "mnist", "--data", "digits", *options]
    lines = out / results.FILE
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=_heed_interrupts, **pipes) as process:
        limit = time.monotonic() + 90
        while not lines.exists() and time.monotonic() < limit:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130, complaint
    assert str(out) in complaint
    assert "Traceback" not in complaint
    first = lines.read_text()
    assert 1 <= len(first.splitlines()) < 3
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert f"3 runs, {len(first.splitlines())} of them there already" in ended.stdout
    assert str(out / "report.html") in ended.stdout
    assert lines.read_text().startswith(first)
    assert [json.loads(line)["run"] for line in lines.read_text().splitlines()] == [
        "dense-r0",
        "thin-0.3162-r0",
        "sparse-0.1-r0",
    ]
