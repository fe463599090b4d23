"""The paper's experiments: our counts beside the numbers that it prints, and one of them run small."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from gossamer.cli import main
from gossamer.experiments import paper, results
from gossamer.experiments.results import Row
from gossamer.experiments.sweep import Run, Size, sweep
from gossamer.report import page as report


def printed(text: str) -> float:
    """ "90k" -> 90000.0"""
    return float(text[:-1]) * {"k": 1e3, "M": 1e6, "B": 1e9}[text[-1]]


@pytest.mark.parametrize("name", paper.EXPERIMENTS)
def test_each_experiment_has_both_methods_and_the_dense_network(name: str) -> None:
    experiment = paper.EXPERIMENTS[name]
    sizes = experiment.sizes
    assert {"thin", "sparse", "dense"} <= {size.method for size in sizes} or (experiment.starts and experiment.periods)
    assert len({size.name for size in sizes}) == len(sizes)


def test_every_row_of_table_1_is_one_of_its_networks() -> None:
    assert set(paper.TABLE1) == {size.name for size in paper.EXPERIMENTS["table1"].sizes}
    assert len(paper.TABLE1) == 14


def test_our_counts_of_table_1_are_the_papers(capsys: pytest.CaptureFixture[str]) -> None:
    some = ["dense", "hybrid-0.5x0.01", "sparse-0.01", "sparse-0.1", "thin-0.05", "thin-0.3"]
    assert main(["paper", "table1", "--count-only", "--json", "--only", ",".join(some)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["network"] for row in rows] == some
    for row in rows:
        exact = not row["network"].startswith(("sparse", "hybrid"))  # the paper prints two or three digits
        for kind, near in (("params", 0.035), ("madds", 0.065)):
            assert row[kind] == pytest.approx(printed(row[f"paper_{kind}"]), rel=0.025 if exact else near), row


def test_the_printed_table_has_ours_beside_theirs(capsys: pytest.CaptureFixture[str]) -> None:
    experiment = paper.EXPERIMENTS["figure2"]
    assert main(["paper", "figure2", "--count-only"]) == 0
    out = capsys.readouterr().out
    for size in experiment.sizes:
        assert re.search(rf"^ *{re.escape(size.name)} ", out, re.MULTILINE)
    assert "1,657,632" in out


def test_networks_are_chosen_by_name() -> None:
    experiment = paper.EXPERIMENTS["table1"]
    assert experiment.some(["dense", "hybrid-0.5x0.01"]) == [Size.dense(), Size.hybrid(0.5, 0.01)]
    with pytest.raises(ValueError, match=r"sparse-0\.5.*it has .*sparse-0\.3"):
        experiment.some(["sparse-0.5"])


def test_the_report_sets_ours_beside_the_papers(tmp_path: Path) -> None:
    experiment = paper.EXPERIMENTS["table1"]

    def execute(runs: Sequence[Run], folder: Path) -> Iterator[Row]:
        history = [{"epoch": 1, "loss": 1.0, "test_accuracy": 0.5}]
        for run in runs:
            yield run.row(
                status="done", accuracy=0.5, params=90_000, madds=43_000_000, train_seconds=1.0, history=history
            )

    base = replace(experiment.base, data="photos", epochs=1)
    sweep(base, experiment.some(["hybrid-0.5x0.01", "thin-0.05"]), tmp_path, execute, paper="table1")
    beside = paper.beside(experiment, results.read(tmp_path))
    assert beside["rows"][0] == ["hybrid-0.5x0.01", "90,000", "90k", "43,000,000", "43.0M", "50.0", "40.3"]
    page = report.write(tmp_path).page.read_text()
    assert "Beside the paper" in page
    assert "43.0M" in page
