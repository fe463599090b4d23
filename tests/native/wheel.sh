#!/bin/sh
# Builds the wheel, installs it into a fresh environment (with the packages of the one that PYTHON names) and runs a sparse layer there.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
$python -m pip wheel -q --no-deps --no-build-isolation -C build-dir="$out/build" -w "$out" .
ls "$out" | grep -q -- '-py3-none-.*\.whl$'
$python -m venv "$out/env"
"$out/env/bin/python" -m pip install -q --no-deps "$out"/*.whl
# the dependencies of the environment at hand, but not its copy of gossamer
cat > "$out/use.py" <<'PY'
import sys
sys.path.append(sys.argv[1])
import torch, gossamer as gs
from gossamer.kernels import cpu
assert gs.__file__.startswith(sys.prefix) and cpu.info()["library"].startswith(sys.prefix), cpu.info()
layer = gs.SparseConv2d(8, 8, 3, padding=1, density=0.3)
x = torch.randn(2, 8, 9, 9, requires_grad=True)
layer(x).sum().backward()
assert torch.allclose(layer(x), layer.to_dense()(x), atol=1e-5)
print("the wheel works:", cpu.info())
PY
cd "$out"
"$out/env/bin/python" "$out/use.py" "$(cd - >/dev/null && $python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
