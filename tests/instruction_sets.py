"""One file's tests over again for the instruction sets that this machine has and does not use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gossamer.kernels import cpu

every_lesser_one = pytest.mark.parametrize("isa", sorted({*cpu.info()["isa_available"].split()} - {cpu.info()["isa"]}))


def pass_the_tests(isa: str, file: str, names: str) -> None:
    """The tests of `file` whose names match the pytest expression `names` pass in a process that uses `isa`."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", names, "-p", "no:cacheprovider", "-p", "no:xdist", file],
        env={**os.environ, "GOSSAMER_ISA": isa, "GOSSAMER_EXAMPLES": "40"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
