"""The table, the figure and the lines of `gossamer symmetry`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import gossamer as gs
from gossamer import cli
from gossamer.experiments import results, symmetry
from gossamer.report import symmetry as shown

DENSITIES = (0.05, 1.0)


@pytest.fixture(scope="module")
def rows() -> list[results.Row]:
    return list(symmetry.measure("mnist", DENSITIES, shape=(1, 8, 8)))


def test_a_line_for_each_network(rows: list[results.Row]) -> None:
    assert [row["network"] for row in rows] == ["dense", "balanced", "uniform", "thin"]
    dense, balanced, _, thin = rows
    assert dense["log10"] == pytest.approx(dense["lemma1"])
    assert balanced["lemma1"] == dense["lemma1"]
    assert balanced["log10"] < thin["log10"] < dense["log10"]
    assert all(row["exact"] for row in rows)
    assert all(row["log10"] == pytest.approx(sum(layer["log10"] for layer in row["layers"])) for row in rows)


def test_lines_are_those_of_the_networks_themselves(rows: list[results.Row]) -> None:
    model = gs.models.create("mnist", in_channels=1, image_size=8)
    patterns = [gs.sparsify(model, 0.05, pattern=pattern) for pattern in ("balanced", "uniform")]
    small = gs.thin(model, rows[3]["width"])
    for row, network in zip(rows, [model, *patterns, small], strict=True):
        assert row["log10"] == pytest.approx(gs.symmetry.count(network).log10)
        assert row["params"] == gs.count(network).params


def test_no_width_is_nearer_in_params() -> None:
    model = gs.models.create("mnist", image_size=8)
    sizes = symmetry._Sizes(model, model.input_shape)
    wanted = sizes.params(gs.sparsify(model, 0.2))
    found = abs(gs.count(gs.thin(model, sizes.width(wanted))).params - wanted)
    others = [abs(gs.count(gs.thin(model, width)).params - wanted) for width in np.linspace(0.3, 0.6, 13)]
    assert found <= min(others)


def test_bounds_are_marked(rows: list[results.Row], tmp_path: Path) -> None:
    bound = {**rows[1], "exact": False}
    assert shown.logarithm(bound).startswith("<= 10^")
    assert shown.logarithm(rows[1]).startswith("10^")
    files = shown.draw([*rows, bound], tmp_path / "a.b", title="t")
    assert [file.name for file in files] == ["a.b.svg", "a.b.png"]
    assert all(file.stat().st_size > 1000 for file in files)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["symmetry", "mnist", "--densities", "0.05", "--input", "1,8,8", "--out", str(tmp_path)]
    assert cli.main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["network"] for row in printed] == ["balanced", "uniform", "thin"]
    lines = [{key: value for key, value in row.items() if key != "layers"} for row in printed]
    assert lines == results.read(tmp_path / symmetry.FILE)
    assert (tmp_path / "mnist.svg").is_file()
    assert cli.main(arguments) == 0
    table = capsys.readouterr().out
    assert shown.logarithm(printed[0]) in table
    assert len(results.read(tmp_path / symmetry.FILE)) == 3  # the same runs: lines are replaced


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["nothing"], "no model named 'nothing'"), (["mnist", "--densities", "0,1"], "must be in (0, 1], got 0")],
)
def test_refusals(arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["symmetry", *arguments, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert says in said.err
    assert len(said.err.splitlines()) == 1
