"""The benchmarks by name: what each asks, and against whom. Each has its own --help.

    python benchmarks/run.py [NAME [ARGUMENT ...]]

Every figure is the fastest of many runs that take turns (`gossamer.timing`), after a check that all sides compute the same.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

BENCHMARKS = {
    "layers": "single layers, three passes: native kernels beside dense PyTorch in its faster memory format",
    "networks": "whole networks: sparse and thin beside dense, eager and in onnxruntime",
    "engine": "programs beside the thin network of equal multiply-adds in OpenVINO, onnxruntime and PyTorch",
    "planes": "pooling and normalisation of planes beside PyTorch's",
    "full_layer": "a layer with all its connections beside nn.Conv2d",
    "sparseprop_peer": "layers in training beside sparseprop (extra: peers)",
}


def main() -> int:
    if len(sys.argv) < 2:
        print("\n".join(f"{name:<16} {what}" for name, what in BENCHMARKS.items()))
        return 0
    name = sys.argv[1]
    if name not in BENCHMARKS:
        print(f"there is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    sys.argv = sys.argv[1:]
    runpy.run_path(str(Path(__file__).with_name(f"{name}.py")), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
