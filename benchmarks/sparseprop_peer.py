"""ResNet-18's convolutions at density 0.05, forward and backward on one thread: ours, sparseprop's, and PyTorch's dense.

    python benchmarks/sparseprop_peer.py [--only TEXT] [--batch 64] [--seconds 0.5] [--json FILE]

sparseprop (https://pypi.org/project/sparseprop, compiled at installation) trains unstructured sparse weights. It is given
the kernels of our connections and zeros elsewhere, so that all three hold the same weights, and has to agree with dense
first. Forward pass, input gradient and weight gradient go through autograd in each. Dense is the faster of PyTorch's two
memory formats, sparseprop the faster of its two ways to vectorise (over the batch, over the output's width), as its own
`sparsify_conv2d_auto` chooses; its gradient comes in the layout that its output has. Ours follows the automatic rule; the
last column names the path of each pass (f forward, i input gradient, w weight gradient). All take turns, and each figure
is the fastest of at least five runs.

The first layer has three inputs for 64 outputs, and an output needs one: its density is 0.33.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from timing import Call, fastest, header, keep_memory
from torch import Tensor, nn

import gossamer as gs
from gossamer.kernels import cpu

try:
    from sparseprop.modules import SparseConv2d
except ModuleNotFoundError as error:
    raise SystemExit(
        f"{error.name} is missing. sparseprop is compiled at installation (C++, OpenMP), in an activated environment: "
        "pip install pybind11 scipy setuptools && pip install --no-build-isolation sparseprop==0.1.14"
    ) from None

DENSITY = 0.05


@dataclass(frozen=True)
class Layer:
    """One of ResNet-18's square convolutions, padded by half the kernel."""

    inputs: int
    outputs: int
    kernel: int
    size: int
    stride: int = 1

    def __str__(self) -> str:
        stride = f" /{self.stride}" if self.stride > 1 else ""
        return f"{self.inputs}-{self.outputs} {self.kernel}x{self.kernel}{stride} at {self.size}"


LAYERS = [
    Layer(3, 64, 7, 224, 2),
    Layer(64, 64, 3, 56),
    *(
        layer
        for width, size in ((128, 56), (256, 28), (512, 14))
        for layer in (
            Layer(width // 2, width, 3, size, 2),
            Layer(width // 2, width, 1, size, 2),
            Layer(width, width, 3, size // 2),
        )
    ),
]


def step(layer: nn.Module, x: Tensor, weight: Tensor) -> Call:
    """Forward and backward, down to the gradients of `x` and `weight`."""
    x = x.detach().requires_grad_()
    grad = torch.ones_like(layer(x))
    return lambda: torch.autograd.grad(layer(x), (x, weight), grad)


def check(layer: Layer, dense: nn.Conv2d, peers: list[tuple[nn.Module, Tensor]], x: Tensor) -> None:
    """Raises AssertionError where a peer's output or gradients are not those of dense."""
    x = x.detach().requires_grad_()
    expected = dense(x)
    grad = torch.randn_like(expected)
    grad_x, grad_weight = torch.autograd.grad(expected, (x, dense.weight), grad)
    wanted = expected, grad_x, grad_weight[dense.weight != 0]
    for peer, weight in peers:
        found = peer(x)
        found_x, found_weight = torch.autograd.grad(found, (x, weight), grad)
        for a, b in zip((found, found_x, found_weight.flatten()), wanted, strict=True):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-2), f"{peer} on {layer} is not what dense computes"


def measure(layer: Layer, batch: int, seconds: float) -> dict[str, float]:
    """Milliseconds of "dense", "sparseprop" and "ours"."""
    connectivity = gs.Connectivity.random(layer.inputs, layer.outputs, DENSITY, seed=0)
    whole = nn.Conv2d(layer.inputs, layer.outputs, layer.kernel, layer.stride, padding=layer.kernel // 2, bias=False)
    ours = gs.SparseConv2d.from_dense(whole, connectivity)
    dense = ours.to_dense()
    theirs = [SparseConv2d.from_dense(dense, vectorizing_over_on=over_width) for over_width in (False, True)]
    x = torch.randn(batch, layer.inputs, layer.size, layer.size)
    check(layer, dense, [(ours, ours.weight), *((peer, peer.W_val) for peer in theirs)], x[:8])
    last = ours.to_dense().to(memory_format=torch.channels_last)
    calls = {
        "dense": [
            step(dense, x, dense.weight),
            step(last, x.contiguous(memory_format=torch.channels_last), last.weight),
        ],
        "sparseprop": [step(peer, x, peer.W_val) for peer in theirs],
        "ours": [step(ours, x, ours.weight)],
    }
    best = iter(fastest([call for some in calls.values() for call in some], seconds))
    return {name: 1e3 * min(next(best) for _ in some) for name, some in calls.items()}


def path(layer: Layer, batch: int) -> str:
    """The path that each pass of ours takes."""
    shape, kernel = (batch, layer.inputs, layer.size, layer.size), [layer.kernel] * 2
    edges = gs.Connectivity.random(layer.inputs, layer.outputs, DENSITY, seed=0).connections
    taken = {
        letter: cpu.choose_path(operation, shape, kernel, edges, layer.outputs)[0]
        for letter, operation in (("f", "forward"), ("i", "input_grad"), ("w", "weight_grad"))
    }
    if len(set(taken.values())) == 1:
        return taken["f"]
    return ", ".join(f"{letter} {name}" for letter, name in taken.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="layers with TEXT in their names")
    parser.add_argument("--batch", type=int, default=64, help="images, a multiple of 8")
    parser.add_argument("--seconds", type=float, default=0.5, help="spent on each figure at least")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also append one line for each layer to this file")
    options = parser.parse_args()
    layers = [layer for layer in LAYERS if options.only in str(layer)]
    if not layers:
        parser.error(f"no layer has {options.only!r} in its name: {', '.join(map(str, LAYERS))}")
    if options.batch < 8 or options.batch % 8:
        parser.error(f"sparseprop gives wrong outputs for the images past a multiple of 8, got --batch {options.batch}")
    keep_memory()
    torch.set_num_threads(1)  # sparseprop shares PyTorch's OpenMP runtime, which is loaded first
    first = header("1", f"sparseprop {version('sparseprop')}", f"batch {options.batch}", f"d = {DENSITY}")
    print(first, "", sep="\n")
    print("| layer | dense ms | sparseprop ms | ours ms | faster than sparseprop | than dense | path |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for layer in layers:
        ms = measure(layer, options.batch, options.seconds)
        times = " | ".join(f"{ms[name]:.3g}" for name in ("dense", "sparseprop", "ours"))
        ratios = " | ".join(f"{ms[name] / ms['ours']:.1f}x" for name in ("sparseprop", "dense"))
        print(f"| {layer} | {times} | {ratios} | {path(layer, options.batch)} |", flush=True)
        if options.json:
            with options.json.open("a") as file:
                file.write(json.dumps({"layer": str(layer), "batch": options.batch, "ms": ms, "on": first}) + "\n")


if __name__ == "__main__":
    main()
