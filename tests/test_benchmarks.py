"""The scripts in benchmarks/ run from end to end and print what they say; how fast anything is, no test asks."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script: str, *arguments: str, status: int = 0) -> str:
    """What the script prints."""
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def rows(printed: str) -> list[list[str]]:
    """The cells of every table row, heads included."""
    lines = [line for line in printed.splitlines() if line.startswith("|") and not line.startswith("| ---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_benchmark_is_in_the_registry() -> None:
    listed = {line.split()[0] for line in run("run.py").splitlines()}
    assert listed == {path.stem for path in BENCHMARKS.glob("*.py")} - {"run", "timing"}
    assert "there is no benchmark 'x'" in run("run.py", "x", status=2)
    assert "--seconds" in run("run.py", "layers", "--help")


def test_layers(tmp_path: Path) -> None:
    kept = tmp_path / "layers.jsonl"
    arguments = ("--only", "ResNet-50 512 at 7", "--densities", "0.1,0.03", "--seconds", "0.01", "--json", str(kept))
    printed = run("layers.py", *arguments, "--set", "inference")
    assert "1 thread, " in printed.splitlines()[0]
    assert "peak" in printed.splitlines()[0]
    head, forward, input_grad, weight_grad, targets, three, every = rows(printed)
    assert [row[1] for row in (forward, input_grad, weight_grad)] == ["f", "i", "w"]
    assert len(head) == len(forward) == 5
    share = float(forward[3].split(", ")[2])
    assert len(targets) == len(three) == 4
    assert three[2] == f"{share:.2f}, {share:.2f}, {share:.2f}"  # of one layer: smallest, median and largest
    assert every[2].startswith(("0 of 3", "1 of 3", "2 of 3", "3 of 3"))
    (line,) = map(json.loads, kept.read_text().splitlines())
    assert line["seconds"]["f"]["native path"][0] > 0


def test_layers_rule() -> None:
    printed = run("layers.py", "--rule", "--only", "ResNet-50 512 at 7", "--set", "inference", "--seconds", "0.01")
    table = rows(printed)
    assert table[0][3:] == [f"d = {d:g}" for d in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)]
    assert {cell.split()[0] for row in table[1:4] for cell in row[3:]} <= {"native", "dense"}
    assert [row[:3] for row in table[5:]] == [["other", p, "1"] for p in "fiw"]


def test_networks(tmp_path: Path) -> None:
    kept = tmp_path / "networks.jsonl"
    arguments = ("--only", "MNIST", "--threads", "1,2", "--seconds", "0.01", "--json", str(kept))
    _, one, two = rows(run("networks.py", *arguments))
    assert (one[3], two[3]) == ("1", "2")
    assert all(cell.endswith("x)") for cell in one[5:])
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [line["threads"] for line in lines] == [1, 2]
    assert set(lines[0]["ms"]) == {"dense", "onnxruntime", "sparse", "thin"}


def test_sparseprop_peer() -> None:
    if importlib.util.find_spec("sparseprop") is None:
        assert "pip install --no-build-isolation sparseprop" in run("sparseprop_peer.py", status=1)
        return
    head, row = rows(run("sparseprop_peer.py", "--only", "256-512 1x1", "--batch", "8", "--seconds", "0.01"))
    assert len(head) == len(row) == 7
    assert row[0] == "256-512 1x1 /2 at 14"


def test_a_name_that_fits_nothing() -> None:
    assert "nonesuch" in run("layers.py", "--only", "nonesuch", status=2)
