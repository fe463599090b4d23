"""Whole networks: dense (faster memory format), sparse and thin, through `gossamer.experiments.bench`.

    python benchmarks/networks.py [--seconds 2]

VGG-16n on one 224x224 image at density 0.1, and a training step of VGG-16 on 64 images of 32x32 at density 0.05.
"""

from __future__ import annotations

import argparse
import platform

import torch

from gossamer import models
from gossamer.experiments import bench


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="spent on each figure at least")
    options = parser.parse_args()
    print(f"# {platform.machine()}, {bench.info()['isa']}, torch {torch.__version__}")
    cases = [
        ("VGG-16n forward", models.create("vgg16n"), (3, 224, 224), (0.1,), 1, False),
        ("VGG-16 step at 32x32", models.create("vgg16", image_size=32, num_classes=10), (3, 32, 32), (0.05,), 64, True),
    ]
    for name, model, shape, densities, batch, train in cases:
        for threads in (1, 2):
            result = bench.whole(
                model, shape, densities, batch=batch, threads=threads, train=train, seconds=options.seconds
            )
            dense = result["dense"]
            cells = ", ".join(f"{variant} {ms:.1f} ms ({dense / ms:.1f}x)" for variant, ms in result.items())
            print(f"{name}, batch {batch}, {threads} threads: {cells}", flush=True)


if __name__ == "__main__":
    main()
