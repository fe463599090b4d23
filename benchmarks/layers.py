"""Layers of well-known networks: our kernels against PyTorch's dense convolution in its faster memory format.

    python benchmarks/layers.py [--set inference|pointwise|training|all] [--passes fiw] [--block 4] [--threads 1]
        [--densities 0.3,0.1,0.03]
    python benchmarks/layers.py --rule

Dense and sparse calls take turns, and each figure is the fastest of many, so that a busy machine is unfair to neither.

The first table has one row for each layer and pass (f forward, i input gradient, w weight gradient): dense ms and, for
each density, the native kernel's ms, the times it is faster than dense, the share `of ideal` (times x density: the ideal
is to be 1 / density times faster), and the share `of peak`, the roofline: useful multiply-adds a second, with neither
padding nor lanes that hold no position counted, over those of a 1024 x 1024 matrix product, measured at the start with
the same threads. What is missing to 1 is what a better kernel could gain, had it no memory to wait for. The second table
holds the shares of the ideal against the project's targets: smallest, median and largest over the layers of at least 64
channels. With `--block`, so many outputs in a row have the same inputs. Where a layer cannot be as sparse as asked, because
every input is to be heard by a whole block, shares and multiply-adds are those of the connections it has.

`--rule` shows what the choice between the native and the dense path (`gossamer.kernels.cpu.choose_path`) rests on. The
dense path inside a sparse layer scatters the weights into a dense array and convolves in NCHW; the peer that users compare
with is the faster format. So each cell has the path that the rule takes, how many times faster the native path is than
the dense path, and than the peer; `!` marks a choice of the slower path. Only layers with at least 64 channels on both
sides.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from timing import Call, agree, fastest, header, keep_memory, peak
from torch import Tensor
from torch.nn import functional as F

from gossamer import Connectivity
from gossamer.kernels import cpu
from gossamer.kernels.native import conv

PASSES = {"f": "forward", "i": "input_grad", "w": "weight_grad"}


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

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.inputs, self.size, self.size

    @property
    def madds(self) -> int:
        """Multiply-adds of one pass over the full layer."""
        rows, cols = (
            (self.size + 2 * p - k) // self.stride + 1 for p, k in zip(self.padding, self.kernel, strict=True)
        )
        return self.batch * self.inputs * self.outputs * self.kernel[0] * self.kernel[1] * rows * cols

    @property
    def kind(self) -> str:
        """What the rule may tell apart."""
        if self.kernel == (1, 1):
            return "1x1"
        if self.stride > 1:
            return "strided"
        if min(self.kernel) == 1:
            return "one-dimensional"
        return "as large as the map" if self.kernel[0] >= self.size else "other"


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


@dataclass(frozen=True)
class Target:
    """A line of the table of targets: the layers and the passes (taken together) that it speaks of."""

    what: str
    share: str
    passes: str
    holds: Callable[[Layer], bool]


TARGETS = [
    Target(
        "3x3, 5x5, 1x7, 7x1, stride 1, forward, batch 1",
        "0.75 at 0.1, 0.6 at 0.03",
        "f",
        lambda x: x.batch == 1 and x.stride == 1 and max(x.kernel) > 1,
    ),
    Target("1x1, forward", "0.6 at 0.1, 0.45 at 0.03", "f", lambda x: x.kernel == (1, 1)),
    Target("stride 2, forward", "0.5 at 0.1, 0.4 at 0.03", "f", lambda x: x.stride == 2),
    Target(
        "forward and both gradients together, 3x3, batch 16-64",
        "0.7 at 0.1, 0.55 at 0.03",
        "fiw",
        lambda x: x.batch >= 16 and x.kernel == (3, 3),
    ),
]

Times = dict[str, list[float]]
"""Seconds: of the dense peer (one figure), of the native and perhaps the dense path at each density; and those densities."""


def pattern(layer: Layer, density: float, block: int) -> tuple[Tensor, Tensor]:
    """(indptr, indices) of a pattern in which `block` outputs in a row have the same inputs."""
    c = Connectivity.random(layer.inputs, layer.outputs // block, density, seed=0)
    rows = [np.asarray(row, np.int32) for row in np.split(np.asarray(c.indices), np.asarray(c.indptr)[1:-1])]
    lengths = np.repeat(np.diff(c.indptr), block)
    indptr = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    return torch.from_numpy(indptr), torch.from_numpy(np.concatenate([row for row in rows for _ in range(block)]))


def calls(layer: Layer, patterns: Sequence[tuple[Tensor, Tensor]]) -> dict[str, tuple[list[Call], list[Call]]]:
    """By pass: the dense calls in both memory formats, and the sparse ones, one for each pattern."""
    x = torch.randn(layer.input_shape)
    w = torch.randn(layer.outputs, layer.inputs, *layer.kernel)
    geometry = [layer.stride] * 2, list(layer.padding), [1, 1]
    grad = torch.randn_like(F.conv2d(x, w, None, *geometry))
    found: dict[str, tuple[list[Call], list[Call]]] = {name: ([], []) for name in PASSES}
    for layout in (torch.contiguous_format, torch.channels_last):
        xf, wf, gf = (t.contiguous(memory_format=layout) for t in (x, w, grad))
        backward = partial(torch.ops.aten.convolution_backward, gf, xf, wf, None, *geometry, False, [0, 0], 1)
        found["f"][0].append(partial(F.conv2d, xf, wf, None, *geometry))
        found["i"][0].append(partial(backward, [True, False, False]))
        found["w"][0].append(partial(backward, [False, True, False]))
    for csr in patterns:
        kernels = torch.randn(len(csr[1]), *layer.kernel)
        found["f"][1].append(partial(conv.sparse_conv2d, x, kernels, *csr, *geometry))
        found["i"][1].append(partial(conv.sparse_conv2d_input_grad, grad, kernels, *csr, list(x.shape), *geometry))
        found["w"][1].append(partial(conv.sparse_conv2d_weight_grad, grad, x, *csr, list(layer.kernel), *geometry))
    return found


def on(path: str, call: Call) -> Call:
    """The call, on one of the two paths."""

    def run() -> object:
        with cpu.use_path(path):
            return call()

    return run


def measure(
    layer: Layer, densities: Sequence[float], block: int, seconds: float, passes: str, paths: Sequence[str]
) -> dict[str, Times]:
    """Times by pass."""
    patterns = [pattern(layer, d, block) for d in densities]
    taken = {}
    for name, (dense, sparse) in calls(layer, patterns).items():
        if name not in passes:
            continue
        for call in sparse:
            agree(on("native", call), on("dense", call))
        best = fastest([*dense, *(on(path, call) for path in paths for call in sparse)], seconds)
        taken[name] = {"dense": [min(best[: len(dense)])]}
        taken[name]["densities"] = [len(indices) / (layer.inputs * layer.outputs) for _, indices in patterns]
        for k, path in enumerate(paths):
            start = len(dense) + k * len(sparse)
            taken[name][f"{path} path"] = best[start : start + len(sparse)]
    return taken


def takes(layer: Layer, name: str, density: float) -> str:
    """The path that the rule takes for this pass."""
    c = Connectivity.random(layer.inputs, layer.outputs, density, seed=0)
    return cpu.choose_path(PASSES[name], layer.input_shape, layer.kernel, c.connections, layer.outputs)[0]


def columns(first: str, align: str, densities: Sequence[float], what: str) -> str:
    """The head of a Markdown table: its first columns, and one for each density."""
    return f"{first}{''.join(f' d = {d:g}{what} |' for d in densities)}\n{align}{' ---: |' * len(densities)}"


def spread(values: Sequence[float]) -> str:
    return f"{min(values):.2f}, {statistics.median(values):.2f}, {max(values):.2f}"


def layer_rows(layer: Layer, taken: dict[str, Times], most: float) -> list[str]:
    """The first table's rows."""
    rows = []
    for name, times in taken.items():
        dense = times["dense"][0]
        cells = [
            f" {1e3 * t:.3g}, {dense / t:.1f}x, {dense / t * d:.2f}, {layer.madds * d / t / most:.2f} |"
            for d, t in zip(times["densities"], times["native path"], strict=True)
        ]
        rows.append(f"| {layer.name}, {layer.batch} | {name} | {1e3 * dense:.3g} |{''.join(cells)}")
    return rows


def target_rows(results: dict[Layer, dict[str, Times]], densities: Sequence[float]) -> list[str]:
    """The table of targets: shares of the ideal by group of layers, and where a single pass is slower than dense."""
    rows = []
    for target in TARGETS:
        shares = [
            [
                taken[target.passes[0]]["densities"][k]
                * sum(taken[p]["dense"][0] for p in target.passes)
                / sum(taken[p]["native path"][k] for p in target.passes)
                for layer, taken in results.items()
                if target.holds(layer) and min(layer.inputs, layer.outputs) >= 64 and {*target.passes} <= taken.keys()
            ]
            for k in range(len(densities))
        ]
        if shares[0]:
            rows.append(f"| {target.what} | {target.share} |" + "".join(f" {spread(s)} |" for s in shares))
    cells = []
    for k in range(len(densities)):
        times = {
            f"{layer.name} {name}": t["dense"][0] / t["native path"][k]
            for layer, taken in results.items()
            for name, t in taken.items()
        }
        slow = sum(value < 1 for value in times.values())
        worst = min(times, key=times.__getitem__)
        cells.append(f" {slow} of {len(times)} slower; least: {times[worst]:.2f}x ({worst}) |")
    rows.append("| any layer and pass, native, up to d = 0.3 | faster than dense |" + "".join(cells))
    return rows


def rule_rows(layer: Layer, taken: dict[str, Times], densities: Sequence[float]) -> list[str]:
    """One row for each pass: the path taken, native against the dense path and against the peer."""
    rows = []
    for name, times in taken.items():
        cells = []
        for d, native, dense in zip(densities, times["native path"], times["dense path"], strict=True):
            path = takes(layer, name, d)
            wrong = (path == "native") != (native <= dense)
            cells.append(f" {path} {dense / native:.2f} {times['dense'][0] / native:.2f}{' !' if wrong else ''} |")
        rows.append(f"| {layer.name}, {layer.batch} | {layer.kind} | {name} |{''.join(cells)}")
    return rows


def limit_rows(results: dict[Layer, dict[str, Times]], densities: Sequence[float]) -> list[str]:
    """By kind of layer and pass: up to which density native is faster (smallest, median, largest), and what the rule takes.

    A figure of 0 says that it is slower at the lowest density already.
    """

    def up_to(wins: Sequence[bool]) -> float:
        return max((d for k, d in enumerate(densities) if all(wins[: k + 1])), default=0.0)

    rows = []
    for kind in dict.fromkeys(layer.kind for layer in results):
        for name in PASSES:
            some = {layer: taken[name] for layer, taken in results.items() if layer.kind == kind}
            cells = [
                spread(
                    [up_to([n <= t for n, t in zip(x["native path"], other(x), strict=True)]) for x in some.values()]
                )
                for other in (lambda x: x["dense path"], lambda x: x["dense"] * len(densities))
            ]
            rule = min(up_to([takes(layer, name, d) == "native" for d in densities]) for layer in some)
            rows.append(f"| {kind} | {name} | {len(some)} | {' | '.join(cells)} | {rule:g} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="all", choices=[*SETS, "all"], help="which layers")
    parser.add_argument("--only", default="", metavar="TEXT", help="of these, those with TEXT in their names")
    parser.add_argument("--passes", default="fiw", help="which passes")
    parser.add_argument("--block", type=int, default=1, help="outputs in a row that have the same inputs")
    parser.add_argument("--threads", type=int, default=1, help="threads of both sides")
    parser.add_argument(
        "--rule", action="store_true", help="the native against the dense path, beside the rule's choice"
    )
    parser.add_argument(
        "--densities", help="with commas between them (0.3,0.1,0.03; of --rule 0.05,0.1,0.15,0.2,0.25,0.3)"
    )
    parser.add_argument("--seconds", type=float, default=0.3, help="spent on each figure at least")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also append one line for each layer to this file")
    options = parser.parse_args()
    densities = [
        float(d)
        for d in (options.densities or ("0.05,0.1,0.15,0.2,0.25,0.3" if options.rule else "0.3,0.1,0.03")).split(",")
    ]
    layers = [x for name, some in SETS.items() if options.set in (name, "all") for x in some if options.only in x.name]
    if options.rule:
        densities, layers = sorted(densities), [x for x in layers if min(x.inputs, x.outputs) >= 64]
    if not layers:
        parser.error(f"no layer of the set {options.set} has {options.only!r} in its name")
    keep_memory()
    torch.set_num_threads(options.threads)
    most = peak()
    print(header(str(options.threads), f"block {options.block}", f"peak {2 * most / 1e9:.0f} GFLOP/s"), end="\n\n")
    if options.rule:
        print(columns("| layer, batch | kind | pass |", "| --- | --- | --- |", densities, ""))
    else:
        print(
            columns(
                "| layer, batch | pass | dense ms |",
                "| --- | --- | ---: |",
                densities,
                ": ms, times, of ideal, of peak",
            )
        )
    results = {}
    for layer in layers:
        with torch.no_grad():
            paths = ("native", "dense") if options.rule else ("native",)
            taken = measure(layer, densities, options.block, options.seconds, options.passes, paths)
        results[layer] = taken
        rows = rule_rows(layer, taken, densities) if options.rule else layer_rows(layer, taken, most)
        print("\n".join(rows), flush=True)
        if options.json:
            with options.json.open("a") as file:
                line = {"layer": layer.name, "threads": options.threads, "densities": densities, "seconds": taken}
                file.write(json.dumps(line | {"isa": cpu.info()["isa"], "peak": most}) + "\n")
    print()
    if options.rule:
        print("| kind | pass | layers | faster than the dense path up to d | than the peer | the rule takes it up to |")
        print("| --- | --- | ---: | ---: | ---: | ---: |", *limit_rows(results, densities), sep="\n")
    else:
        print(columns("| share of the ideal | target |", "| --- | --- |", densities, ": smallest, median, largest"))
        print("\n".join(target_rows(results, densities)))


if __name__ == "__main__":
    main()
