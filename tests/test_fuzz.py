"""A few wrong inputs of every kind; `make fuzz` hands in many more."""

from __future__ import annotations

import functools
import random
import warnings
from pathlib import Path

import pytest
from fuzzing import files

QUICK = {**files.KINDS, "result lines": functools.partial(files.result_lines, report=False)}
"""The report takes a second to draw."""
INPUTS = {"model": 100, "checkpoint": 20, "run folder": 60, "result lines": 100, "picture": 60, "npz": 100}


@pytest.mark.parametrize(("kind", "inputs"), INPUTS.items())
def test_a_wrong_file_is_one_sentence_or_does_no_harm(kind: str, inputs: int, tmp_path: Path) -> None:
    once = QUICK[kind](random.Random(1), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged pictures
        outcomes = [once() for _ in range(inputs)]
    assert set(outcomes) <= {"refused", "accepted"}
    assert "refused" in outcomes
