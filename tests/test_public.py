"""The front door: these names, no others, and nothing heavy behind it until one is used."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

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


PUBLIC = """
    AvgPool2d BatchNorm2d ChannelGraph Connectivity Cost DenseGradients Doubling Growth MaxPool2d Program Ramp SparseConv2d
    compile count dead_channels densify load models repair rewire save sparsify symmetry thin
""".split()


def test_the_front_door_is_this_list() -> None:
    """A name that comes or goes is a decision: here, in docs/api.md and in CHANGELOG.md."""
    assert sorted(gs.__all__) == PUBLIC
    code = "import gossamer as gs; [getattr(gs, name) for name in gs.__all__]; print(*dir(gs))"
    seen = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    rooms = {path.stem for path in Path(gs.__file__).parent.iterdir()}
    assert {name for name in seen if not name.startswith("_")} - rooms <= {
        *PUBLIC,
        "TYPE_CHECKING",
        "Any",
        "annotations",
    }
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
    assert not [name for name in PUBLIC if name not in page]


def test_every_public_name_is_documented() -> None:
    assert not [name for name in PUBLIC if not getattr(gs, name).__doc__]


def test_the_version_is_the_packages() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", gs.__version__)
    assert f'version = "{gs.__version__}"' in (Path(__file__).parents[1] / "pyproject.toml").read_text()


def test_types_are_for_users_too() -> None:
    assert (Path(gs.__file__).parent / "py.typed").exists()
