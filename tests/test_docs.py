"""What the documentation shows is run: docstrings' examples, the tutorial, and the drawing of the rooms."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src"
WITH_EXAMPLES = [
    ".".join(path.relative_to(SOURCES).with_suffix("").parts)
    for path in sorted(SOURCES.rglob("*.py"))
    if ">>> " in path.read_text()
]


def test_some_docstrings_have_examples() -> None:
    assert "gossamer.connectivity.connectivity" in WITH_EXAMPLES


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted
    assert not result.failed


def test_the_tutorials_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom, as a reader would."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) > 3


def test_the_drawing_of_the_rooms_is_the_import_contract() -> None:
    """docs/design.md lists the packages from top to bottom; lint-imports keeps the code to the contract."""
    drawing = re.search(r"## Rooms\n\n```\n(.*?)\n", (ROOT / "docs" / "design.md").read_text())
    assert drawing is not None
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rooms = [layer.replace("(", "").replace(")", "") for layer in contracts[0]["layers"]]
    assert drawing[1].split(" -> ") == rooms[:-1]
    there = {path.stem for path in (ROOT / "src" / "gossamer").iterdir() if not path.stem.startswith("_")}
    drawn = {name for room in rooms for name in room.split(" | ") if not name.startswith("_")}
    assert there - {"py"} == drawn | {"models", "data"}
