"""`gossamer grow`, run once on real digits; and what its report reads from curves."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from gossamer.cli import main
from gossamer.experiments import grow, results
from gossamer.experiments.sweep import Run, plan
from gossamer.report import growth as grow_report
from gossamer.training.config import TrainConfig

COMMAND = ["grow", "mnist", "--data", "digits", "--epochs", "2", "--batch-size", "128", "--threads", "1"]
COMMAND += ["--starts", "0.05", "--periods", "4", "--variants", "zero", "--points", "5", "--images", "100"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grow") / "runs"
    assert main([*COMMAND, "--out", str(folder)]) == 0
    return folder


def test_runs_and_their_curves(folder: Path) -> None:
    dense, grown = results.read(folder)
    assert (dense["run"], grown["run"]) == ("dense-r0", "from-0.05-every-4-r0")
    assert dense["params"] == grown["params"]
    assert {point["density"] for point in dense["curve"]} == {1.0}
    steps = [point["step"] for point in grown["curve"]]
    assert steps == sorted({1, *range(4, 23, 4), *(s for g in (4, 8, 12, 16, 20) for s in (g - 1, g)), 22})
    densities = {point["step"]: point["density"] for point in grown["curve"]}
    assert densities[3] < densities[4] == densities[7] < densities[8]
    assert densities[20] == densities[22] == 1.0
    for row in (dense, grown):
        for field in ("seconds", "cpu_seconds"):
            times = [point[field] for point in row["curve"]]
            assert times == sorted(times)
            assert times[0] > 0
        assert row["curve"][-1]["accuracy"] == pytest.approx(row["accuracy"], abs=0.1)


def test_what_is_there_is_not_run_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (folder / "results.jsonl").read_bytes()
    assert main([*COMMAND, "--out", str(folder)]) == 0
    assert "2 runs, 2 of them there already" in capsys.readouterr().out
    assert (folder / "results.jsonl").read_bytes() == lines


def test_report_has_table_figure_and_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(folder)]) == 0
    assert "from-0.05-every-4" in capsys.readouterr().out
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["course"] for row in rows] == ["dense", "from-0.05-every-4"]
    assert rows[1]["growths"] == "5"
    page = (folder / "report.html").read_text()
    assert 'id="growth"' in page
    assert page.count("0.05-every-4-r0</td>") == 5  # each growth
    assert "http" not in page.split("<body>")[1].split("<script")[0]
    for suffix in (".svg", ".png"):
        assert (folder / "figures" / f"growth{suffix}").stat().st_size > 5000


def test_an_interrupted_run_keeps_its_curve(tmp_path: Path) -> None:
    """The second half of a curve is measured in another process than the first."""
    config = TrainConfig(model="mnist", data="digits", epochs=2, batch_size=128, threads=1)
    (run,) = (run for run in plan(config, grow.courses([0.05], [4], ["zero"])) if run.size.method != "dense")
    assert isinstance(run, Run)
    whole = grow.grow_run(run, tmp_path / "whole", points=5, images=100)

    curve = grow.Curve(tmp_path / "cut" / "runs" / run.name / grow.CURVE, 5, 100)

    def stop(training: Any) -> bool:
        curve(training)
        if training.step == 14:
            raise InterruptedError
        return False

    with pytest.raises(InterruptedError):
        grow.train_run(run, tmp_path / "cut", progress=False, timed=False, after_step=stop)
    cut = grow.grow_run(run, tmp_path / "cut", points=5, images=100)
    for field in ("step", "density", "accuracy", "loss"):
        assert [p[field] for p in cut["curve"]] == [p[field] for p in whole["curve"]]


def row(run: str, curve: list[tuple[int, float, float]]) -> results.Row:
    """A result line; a second is ten steps."""
    keys = ("step", "seconds", "cpu_seconds", "density", "accuracy", "loss")
    points = [
        dict(zip(keys, (step, step / 10, step / 20, density, accuracy, 0.0), strict=True))
        for step, density, accuracy in curve
    ]
    method, _, number = run.rpartition("-r")
    return {
        "run": run,
        "method": method,
        "round": int(number),
        "status": "done",
        "accuracy": curve[-1][2],
        "curve": points,
    }


def test_drop_and_recovery_of_each_growth() -> None:
    curve = [
        (9, 0.1, 0.80),
        (10, 0.2, 0.70),
        (15, 0.2, 0.60),
        (20, 0.2, 0.85),
        (29, 0.2, 0.90),
        (30, 1.0, 0.89),
        (40, 1.0, 0.88),
    ]
    first, second = grow_report.growths(row("from-0.1-every-10-r0", curve))
    assert (first.step, first.density_before, first.density) == (10, 0.1, 0.2)
    assert (first.before, first.after, first.lowest, first.recovered) == (0.80, 0.70, 0.60, 10)
    assert (second.before, second.lowest, second.recovered) == (0.90, 0.88, None)
    assert second.drop == pytest.approx(0.02)


def test_summary_compares_with_99_percent_of_dense() -> None:
    dense = [row("dense-r0", [(10, 1.0, 0.5), (20, 1.0, 0.95), (30, 1.0, 0.95), (40, 1.0, 0.96)])]
    good = [
        row("a-r0", [(10, 0.5, 0.9), (11, 1.0, 0.9), (20, 1.0, 0.951)]),
        row("a-r1", [(10, 0.5, 0.9), (40, 1.0, 0.96)]),
    ]
    bad = [row("b-r0", [(10, 0.5, 0.9), (11, 1.0, 0.94)])]
    first, second, third = grow_report.summarise([*good, *bad, *dense])
    assert (first.course, second.course, third.course) == ("dense", "a", "b")
    assert (first.step, second.step, third.step) == (40, 30, None)
    assert (first.seconds, second.seconds, second.cpu_seconds) == (4, 3, 1.5)
    assert second.rounds == 2
    assert (second.seconds_spread, second.cpu_seconds_spread) == (pytest.approx(2**0.5), pytest.approx(0.5**0.5))
    assert second.accuracy_spread == pytest.approx(0.009 / 2**0.5)
    assert "3.0 ± 1.4" in grow_report.cells(second)
    assert (first.growths, first.full_step, second.full_step) == (0, None, 25.5)
    assert "never" in grow_report.cells(third)


def test_a_courses_curve_is_the_mean_of_its_rounds_at_their_common_steps() -> None:
    rows = [
        row("a-r0", [(10, 0.5, 0.8), (11, 1.0, 0.7), (15, 1.0, 0.75), (20, 1.0, 0.9)]),
        row("a-r1", [(10, 0.5, 0.9), (11, 1.0, 0.5), (20, 1.0, 0.9)]),
        row("dense-r0", [(10, 1.0, 0.9)]),
    ]
    rows[1]["curve"][0]["seconds"] = 3.0
    dense, curve = grow_report.mean_curves(rows)
    assert (dense.course, curve.course) == ("dense", "a")
    assert curve.along["step"] == [10, 11, 20]
    assert curve.along["seconds"] == [2.0, 1.1, 2.0]
    assert curve.accuracy == pytest.approx([85, 60, 90])
    assert (curve.lowest, curve.highest) == (pytest.approx([80, 50, 90]), pytest.approx([90, 70, 90]))
    assert (curve.growths, curve.full, dense.growths) == ([1], [1], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [5], ["zero"]), "start 1 is not a density below 1"),
        (([0.1], [0.5], ["zero"]), r"period 0\.5 is not a whole number of steps"),
        (([0.1], [5], ["ones"]), "no variant 'ones'; there are zero, random, gradient, channels"),
    ],
)
def test_impossible_courses(arguments: tuple[Any, Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grow.courses(*arguments)


def test_part_of_a_split_is_spread_over_it() -> None:
    from gossamer import data

    whole = data.load("digits").test
    every = list(whole.test_batches(32))
    part = list(grow.Part(whole, 100).test_batches(32))
    assert abs(sum(len(labels) for _, labels in part) - 100) <= 32
    assert [any((images == other).all() for images, _ in part) for other, _ in every[:5]] == [True, *[False] * 3, True]
