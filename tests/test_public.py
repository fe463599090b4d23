"""The front door: these names, no others, and nothing heavy behind it until one is used."""

from __future__ import annotations

import subprocess
import sys

import gossamer as gs


def test_importing_gossamer_imports_no_torch() -> None:
    code = "import sys, gossamer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_core_needs_only_three_packages() -> None:
    """torchvision, timm, matplotlib and the rest are imported when something that needs them runs."""
    code = (
        "import sys, torch, gossamer as gs; m = gs.models.create('mnist');"
        "gs.count(gs.sparsify(gs.thin(m, 0.5), 0.5)); m = gs.save;"
        "bad = {'torchvision', 'timm', 'matplotlib', 'plotly', 'sklearn', 'rich', 'tyro', 'PIL'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_exists_and_is_documented() -> None:
    assert len(set(gs.__all__)) == len(gs.__all__)
    for name in gs.__all__:
        assert getattr(gs, name).__doc__, name
    assert not {name for name in dir(gs) if not name.startswith("_")} - {
        *gs.__all__,
        "annotations",
        "import_module",
        "TYPE_CHECKING",
        "Any",
        *(m.split(".")[1] for m in sys.modules if m.startswith("gossamer.")),
    }
