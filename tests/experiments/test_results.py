"""The store of result lines, and what is computed from it: no line is lost, and the front is the front."""

from __future__ import annotations

import json
import logging
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.experiments import results
from gossamer.experiments.results import Point, Row


def row(run: str = "sparse-0.1-r0", method: str = "sparse", accuracy: float = 0.9, **more: object) -> Row:
    return {
        "run": run,
        "status": "done",
        "method": method,
        "alpha": 0.1,
        "width": 1.0,
        "density": 0.1,
        "accuracy": accuracy,
        "params": 1000,
        "madds": 5000,
        **more,
    }


def point(accuracy: float, params: float, method: str = "sparse", ms: float | None = None) -> Point:
    return Point(method, 0.1, 1.0, 0.1, 1, accuracy, 0.0, params, 10 * params, None, ms, None, None, None, None)


def _append_many(path: Path, worker: int) -> None:
    for index in range(50):
        results.append(path, {"run": f"{worker}-{index}", "filler": "x" * 5000})


def test_processes_that_append_at_once_lose_no_line(tmp_path: Path) -> None:
    path = tmp_path / results.FILE
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append_many, args=(path, worker)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert {r["run"] for r in results.read(path)} == {f"{w}-{i}" for w in range(3) for i in range(50)}


def test_a_torn_last_line_is_named_left_out_and_damages_nothing_after_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / results.FILE
    results.append(path, row("a"))
    results.append(path, row("b"))
    path.write_bytes(path.read_bytes()[:-20])
    with caplog.at_level(logging.WARNING, logger="gossamer"):
        assert [r["run"] for r in results.read(path)] == ["a"]
    assert "line 2" in caplog.text
    assert str(path) in caplog.text
    results.append(path, row("c"))
    assert [r["run"] for r in results.read(path)] == ["a", "c"]


def test_a_later_line_replaces_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / results.FILE
    results.append(path, {"run": "a", "status": "failed", "error": "no memory"})
    results.append(path, row("a"))
    results.append(path, {"run": "a", "ms_image": 2.5})
    (merged,) = results.read(path)
    assert merged["status"] == "done"
    assert merged["ms_image"] == 2.5
    assert merged["accuracy"] == 0.9


def test_a_result_that_is_no_number_is_refused_and_the_file_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / results.FILE
    results.append(path, row("a"))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        results.append(path, row("b", accuracy=float("nan")))
    assert path.read_bytes() == before
    json.loads(before)


def test_a_missing_folder_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gossamer sweep"):
        results.read(tmp_path / "nothing")


def test_rounds_are_averaged_and_failed_runs_left_out() -> None:
    rows = [row("r0", accuracy=0.90), row("r1", accuracy=0.94), row("r2", accuracy=0.1, status="failed")]
    (mean,) = results.summarise(rows)
    assert mean.rounds == 2
    assert mean.accuracy == pytest.approx(0.92)
    assert mean.spread == pytest.approx(0.04 / 2**0.5)
    assert mean.ms_image is None


def test_the_dense_network_ends_both_curves() -> None:
    dense = point(0.99, 1e6, "dense")
    thin, sparse = point(0.9, 1e4, "thin"), point(0.95, 1e4, "sparse")
    assert results.curves([dense, sparse, thin]) == {"thin": [thin, dense], "sparse": [sparse, dense]}


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12))
def test_the_pareto_front_is_what_nothing_beats(pairs: list[tuple[int, int]]) -> None:
    points = [point(accuracy / 10, params) for accuracy, params in pairs]
    front = results.pareto(points, "params")

    def beaten(p: Point) -> bool:
        return any(
            q.params <= p.params and q.accuracy >= p.accuracy and (q.params, q.accuracy) != (p.params, p.accuracy)
            for q in points
        )

    assert {(p.params, p.accuracy) for p in front} == {(p.params, p.accuracy) for p in points if not beaten(p)}


def test_what_was_not_measured_is_not_on_the_front() -> None:
    measured = point(0.5, 10, ms=1.0)
    assert results.pareto([measured, point(0.9, 10)], "ms_image") == [measured]


FOREIGN = [
    "[]",
    '"x"',
    '{"run": []}',
    '{"run": "b", "accuracy": "high"}',
    '{"run": "b", "accuracy": 1e400}',
    '{"run": "b", "params": 1' + "0" * 400 + "}",
    '{"run": "b", "history": [1]}',
    '{"run": "b", "curve": []}',
    '{"run": "b", "config": []}',
    '{"run": "b", "status": "perhaps"}',
    "[" * 5000 + "]" * 5000,
    b"\xff".decode("latin-1"),
]


def test_lines_of_foreign_shapes_are_counted_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / results.FILE
    results.append(path, row("a"))
    with path.open("a", encoding="latin-1") as file:
        file.write("\n".join(FOREIGN) + "\n")
    results.append(path, {"run": "c", "status": "done", "method": "sparse"})
    with caplog.at_level(logging.WARNING, logger="gossamer"):
        assert [r["run"] for r in results.finished(path)] == ["a"]
    assert f"{len(FOREIGN)} lines are damaged or foreign and left out, line 2 the first" in caplog.text
    assert "1 runs lack numbers and are left out (the first is c)" in caplog.text


def test_titles_can_be_printed() -> None:
    assert results.title([row(config={"model": "a\ud800\0$b$", "data": "c"})]) == "a\ufffd\ufffd$b$ on c"
    assert results.title([row()]) == "unknown on unknown"
