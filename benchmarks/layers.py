"""Layers of well-known networks: our kernels against PyTorch's dense convolution in its faster memory format.

    python benchmarks/layers.py [--set inference|training|pointwise|all] [--threads 1] [--densities 0.3,0.1,0.03] [--json FILE]

Dense and sparse calls take turns, and each figure is the fastest of many, so that a busy machine is unfair to neither.
For every layer and pass (f forward, i input gradient, w weight gradient) it prints dense ms and, for each density, sparse
ms, times faster than dense, the share of the ideal 1 / density, and the share of the multiply-add peak measured at the
start (useful multiply-adds only).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from gossamer import Connectivity
from gossamer.kernels import cpu


@dataclass(frozen=True)
class Layer:
    """One convolution, named after the network it comes from."""

    name: str
    batch: int
    inputs: int
    outputs: int
    size: int
    kernel: tuple[int, int]
    stride: int = 1
    valid: bool = False  # no padding

    @property
    def padding(self) -> tuple[int, int]:
        return (0, 0) if self.valid else (self.kernel[0] // 2, self.kernel[1] // 2)


def square(k: int) -> tuple[int, int]:
    return k, k


SETS = {
    "inference": [
        *(
            Layer(f"VGG-16n {i}-{o} at {s}", 1, i, o, s, square(3))
            for i, o, s in ((64, 64, 224), (128, 128, 112), (256, 256, 56), (512, 512, 28), (512, 512, 14))
        ),
        *(Layer(f"ResNet-50 {c} at {s}", 1, c, c, s, square(3)) for c, s in ((64, 56), (128, 28), (256, 14), (512, 7))),
        *(Layer(f"ResNet-50 {c} at {s} /2", 1, c, c, s, square(3), 2) for c, s in ((128, 56), (256, 28), (512, 14))),
        Layer("Inception 96-96 at 35", 1, 96, 96, 35, square(3)),
        Layer("Inception 80-192 at 73 valid", 1, 80, 192, 73, square(3), valid=True),
        Layer("Inception 48-64 5x5 at 35", 1, 48, 64, 35, square(5)),
        Layer("Inception 192 1x7 at 17", 1, 192, 192, 17, (1, 7)),
        Layer("Inception 192 7x1 at 17", 1, 192, 192, 17, (7, 1)),
        Layer("Inception 448-384 at 8", 1, 448, 384, 8, square(3)),
    ],
    "pointwise": [
        Layer(f"ResNet-50 {i}-{o} at {s}", 1, i, o, s, square(1))
        for i, o, s in ((64, 256, 56), (256, 64, 56), (512, 128, 28), (256, 1024, 14), (1024, 256, 14), (512, 2048, 7))
    ],
    "training": [
        *(
            Layer(f"VGG-16n@32 {i}-{o} at {s}", 64, i, o, s, square(3))
            for i, o, s in ((64, 64, 32), (128, 128, 16), (256, 256, 8), (512, 512, 4), (512, 512, 2))
        ),
        *(
            Layer(f"ResNet-50 {c} at {s}", 16, c, c, s, square(3))
            for c, s in ((64, 56), (128, 28), (256, 14), (512, 7))
        ),
        Layer("MNIST 32-64 5x5 at 14", 100, 32, 64, 14, square(5)),
        Layer("MNIST 64-512 7x7 at 7", 100, 64, 512, 7, square(7), valid=True),
        Layer("CIFAR 64-64 5x5 at 16", 128, 64, 64, 16, square(5)),
        Layer("CIFAR 64-384 8x8 at 8", 128, 64, 384, 8, square(8), valid=True),
    ],
}


def fastest(calls: list[Callable[[], object]], seconds: float) -> list[float]:
    """Seconds of each call's fastest run, all calls taking turns."""
    for call in calls:
        call()
    best, rounds, start = [math.inf] * len(calls), 0, time.perf_counter()
    while rounds < 5 or time.perf_counter() - start < seconds * len(calls):
        for k, call in enumerate(calls):
            begin = time.perf_counter()
            call()
            best[k] = min(best[k], time.perf_counter() - begin)
        rounds += 1
    return best


def peak(seconds: float = 1.0) -> float:
    """Multiply-adds a second that this machine's best dense product reaches, a stand-in for the hardware's peak."""
    a = torch.randn(1024, 1024)
    return 1024**3 / fastest([lambda: a @ a], seconds)[0]


def measure(layer: Layer, densities: list[float], seconds: float) -> dict[str, dict[str, list[float]]]:
    """Seconds by pass: {"dense": [best], "sparse": [one for each density]}."""
    x = torch.randn(layer.batch, layer.inputs, layer.size, layer.size)
    w = torch.randn(layer.outputs, layer.inputs, *layer.kernel)
    geometry = [layer.stride] * 2, list(layer.padding), [1, 1]
    grad = torch.randn_like(F.conv2d(x, w, None, *geometry))
    formats = [
        [t.contiguous(memory_format=m) for t in (x, w, grad)] for m in (torch.contiguous_format, torch.channels_last)
    ]
    backward = torch.ops.aten.convolution_backward
    taken = {}
    for name, mask in (("f", ()), ("i", (True, False, False)), ("w", (False, True, False))):
        if mask:
            dense = [
                lambda t=t, mask=mask: backward(t[2], t[0], t[1], None, *geometry, False, [0, 0], 1, mask)
                for t in formats
            ]
        else:
            dense = [lambda t=t: F.conv2d(t[0], t[1], None, *geometry) for t in formats]
        sparse: list[Callable[[], object]] = []
        for density in densities:
            c = Connectivity.random(layer.inputs, layer.outputs, density, seed=0)
            csr, kernels = (torch.tensor(c.indptr), torch.tensor(c.indices)), torch.randn(c.connections, *layer.kernel)
            sparse.append(
                {
                    "f": lambda csr=csr, k=kernels: cpu.sparse_conv2d(x, k, *csr, *geometry),
                    "i": lambda csr=csr, k=kernels: cpu.sparse_conv2d_input_grad(
                        grad, k, *csr, list(x.shape), *geometry
                    ),
                    "w": lambda csr=csr: cpu.sparse_conv2d_weight_grad(grad, x, *csr, list(layer.kernel), *geometry),
                }[name]
            )
        best = fastest(dense + sparse, seconds)
        taken[name] = {"dense": [min(best[: len(dense)])], "sparse": best[len(dense) :]}
    return taken


def keep_memory() -> None:
    """Stops glibc from handing large blocks back to the system after each call, whose return costs more than the layer."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="all", choices=[*SETS, "all"], help="which layers")
    parser.add_argument("--threads", type=int, default=1, help="threads of both sides")
    parser.add_argument("--densities", default="0.3,0.1,0.03", help="with commas between them")
    parser.add_argument("--seconds", type=float, default=0.3, help="spent on each figure at least")
    parser.add_argument("--json", type=Path, help="also append one line for each layer to this file")
    options = parser.parse_args()
    keep_memory()
    torch.set_num_threads(options.threads)
    densities = [float(d) for d in options.densities.split(",")]
    most = peak()
    print(
        f"# {platform.machine()}, {cpu.info()['isa']}, {options.threads} threads, torch {torch.__version__}, "
        f"gossamer {cpu.info()['version']}, peak {2 * most / 1e9:.0f} GFLOP/s"
    )
    print(
        "| layer, batch | pass | dense ms |" + "".join(f" d = {d:g}: ms, times, of ideal, of peak |" for d in densities)
    )
    print("| --- | --- | ---: |" + " ---: |" * len(densities))
    for layer in [x for name, layers in SETS.items() if options.set in (name, "all") for x in layers]:
        with cpu.use_path("native"), torch.no_grad():
            taken = measure(layer, densities, options.seconds)
        rows = (layer.size + 2 * layer.padding[0] - layer.kernel[0]) // layer.stride + 1
        cols = (layer.size + 2 * layer.padding[1] - layer.kernel[1]) // layer.stride + 1
        madds = layer.batch * layer.inputs * layer.outputs * layer.kernel[0] * layer.kernel[1] * rows * cols
        for name, times in taken.items():
            dense = times["dense"][0]
            cells = [
                f" {1e3 * t:.3g}, {dense / t:.1f}x, {dense / t * d:.2f}, {madds * d / t / most:.2f} |"
                for d, t in zip(densities, times["sparse"], strict=True)
            ]
            print(f"| {layer.name}, {layer.batch} | {name} | {1e3 * dense:.3g} |{''.join(cells)}", flush=True)
        if options.json:
            with options.json.open("a") as file:
                line = {"layer": layer.name, "threads": options.threads, "densities": densities, "seconds": taken}
                file.write(json.dumps(line | {"isa": cpu.info()["isa"], "peak": most}) + "\n")


if __name__ == "__main__":
    main()
