"""What is shown while a network trains, in a terminal and elsewhere."""

from __future__ import annotations

import time

import pytest

from gossamer.training import progress
from gossamer.training.progress import Reporter

RECORD = {"epoch": 1, "loss": 0.5, "train_accuracy": 0.9, "test_accuracy": 0.8, "images_per_s": 1234.0, "seconds": 65}


def test_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.01)
    with Reporter(total_steps=10, done_steps=2, epochs=2) as reporter:
        time.sleep(0.02)
        reporter.step(3, 0, 1.5, 0.25, 1000)
        reporter.step(4, 0, 1.5, 0.25, 1000)
        reporter.epoch(RECORD)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("step 3/10  loss 1.5000  accuracy 25.00%  1,000 images/s  0.")
    assert first.endswith(" s left")
    assert second == "epoch 1/2  loss 0.5000  accuracy 90.00%  test 80.00%  1,234 images/s  1 min 05 s"


def test_a_live_bar_in_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # how Rich is told that a pipe is a terminal
    monkeypatch.setenv("COLUMNS", "120")
    with Reporter(total_steps=10, done_steps=0, epochs=2) as reporter:
        reporter.step(5, 0, 1.5, 0.25, 1000)
        reporter.bar.refresh()
        reporter.epoch(RECORD)
    shown = capsys.readouterr().out
    assert "epoch 1/2" in shown
    assert "5/10" in shown
    assert "loss 1.5000  accuracy 25.00%  1,000 images/s" in shown
    assert "test 80.00%" in shown


def test_nothing_when_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(total_steps=10, done_steps=0, epochs=2, show=False) as reporter:
        reporter.step(5, 0, 1.5, 0.25, 1000)
        reporter.epoch(RECORD)
        reporter.say("hello")
    assert capsys.readouterr().out == ""
