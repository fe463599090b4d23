"""`gossamer bench`: where the time of a network goes, dense beside sparse beside thin at equal multiply-adds.

Every convolution is timed by itself on an input of its true shape, and the network as a whole; all variants take turns, so
that a busy machine is unfair to none of them, and each figure is the median. Dense convolutions get the faster of
PyTorch's two memory formats, one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.graph.accounting import count
from gossamer.graph.state import copied
from gossamer.graph.tracing import trace
from gossamer.graph.uses import Uses
from gossamer.kernels import cpu
from gossamer.kernels.native import conv
from gossamer.layers import SparseConv2d
from gossamer.surgery import sparsify
from gossamer.surgery.thin import thin
from gossamer.timing import take_turns

__all__ = ["bench", "info", "network_calls", "show", "variants_of"]

Shape = tuple[int, int, int]


def info() -> dict[str, Any]:
    """What `gossamer info` prints: versions, instruction set, threads and the backends of this installation."""
    backends = ["dense", "cpu: native kernels"] + (["cuda: dense"] if torch.cuda.is_available() else [])
    return {
        "gossamer": cpu.info()["version"],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "backends": backends,
    } | {name: value for name, value in cpu.info().items() if name != "version"}


def bench(
    model: nn.Module,
    input_shape: Shape,
    densities: Sequence[float],
    *,
    block: int | str = 1,
    batch: int = 1,
    threads: Sequence[int] = (),
    train: bool = False,
    seconds: float = 0.5,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """JSON-able: for each thread count the network's and each convolution's milliseconds, dense, sparse and thin.

    `train` times forward and backward instead of the forward pass alone. `seconds` is spent on each figure at least.
    Sparse variants are named by their density, thin ones (width sqrt(density), so equal multiply-adds) by their width.
    """
    variants = variants_of(model, input_shape, densities, block)
    before, results = torch.get_num_threads(), []
    try:
        for number in threads or (before,):
            torch.set_num_threads(number)
            progress(f"{number} threads: the network")
            total = _time({name: network_calls(m, input_shape, batch, train) for name, m in variants.items()}, seconds)
            layers = _layers(variants, input_shape, batch, train, seconds, progress)
            results.append({"threads": number, "ms": total, "layers": layers})
    finally:
        torch.set_num_threads(before)
    sizes = {name: _size(m, input_shape, train) for name, m in variants.items()}
    return {"batch": batch, "train": train, "input": list(input_shape), "variants": sizes, "runs": results} | info()


def variants_of(
    model: nn.Module, input_shape: Shape, densities: Sequence[float], block: int | str = 1
) -> dict[str, nn.Module]:
    """The networks to compare by name: "dense", and for each density "sparse 0.1" and, at equal multiply-adds, "thin 0.32"."""
    variants: dict[str, nn.Module] = {"dense": model}
    for density in densities:
        if density < 1:
            variants[f"sparse {density:g}"] = sparsify(model, density, block=block)
            variants[f"thin {math.sqrt(density):.2g}"] = thin(model, math.sqrt(density), input_shape)
    return variants


def _size(model: nn.Module, input_shape: Shape, train: bool) -> dict[str, Any]:
    """Params, madds and bytes held: weights (and, in training, gradients and momentum) and the tables of connections."""
    cost = count(model, input_shape)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    tables = sum(
        b.numel() * b.element_size()
        for m in model.modules()
        if isinstance(m, SparseConv2d)
        for b in (m.indptr, m.indices)
    )
    return {
        "params": cost.params,
        "madds": cost.madds,
        "weight_bytes": weights * (3 if train else 1),
        "index_bytes": tables,
    }


def network_calls(model: nn.Module, input_shape: Shape, batch: int, train: bool) -> list[Callable[[], object]]:
    """The network's calls in both memory formats: a forward pass or, to `train`, a whole step with the optimizer's."""
    calls: list[Callable[[], object]] = []
    for layout in (torch.contiguous_format, torch.channels_last):
        net = copied(model).to(memory_format=layout).train(train)  # type: ignore[call-overload]
        images = torch.randn(batch, *input_shape).contiguous(memory_format=layout)
        labels = torch.zeros(batch, dtype=torch.long)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)
        calls.append(_step(net, images, labels, optimizer) if train else _forward(net, images))
    return calls


def _step(net: nn.Module, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _forward(net: nn.Module, images: Tensor) -> Callable[[], object]:
    def forward() -> Tensor:
        with torch.inference_mode():
            return net(images)

    return forward


def _layers(
    variants: dict[str, nn.Module],
    input_shape: Shape,
    batch: int,
    train: bool,
    seconds: float,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    shapes = {name: _input_shapes(m, input_shape) for name, m in variants.items()}
    rows = []
    for index, (layer, shape) in enumerate(shapes["dense"].items()):
        progress(f"{torch.get_num_threads()} threads: layer {index + 1} of {len(shapes['dense'])}, {layer}")
        calls: dict[str, list[Callable[[], object]]] = {}
        paths: dict[str, str] = {}
        blocks: dict[str, int] = {}
        for name, m in variants.items():
            if layer not in shapes[name]:
                continue
            module, size = m.get_submodule(layer), (batch, *shapes[name][layer])
            calls[name] = _layer_calls(module, size, train, index == 0)
            if isinstance(module, SparseConv2d):
                paths[name] = _path(module, size, train, index == 0)
                blocks[name] = module.connectivity.block
        conv = variants["dense"].get_submodule(layer)
        assert isinstance(conv, nn.Conv2d | SparseConv2d)
        kernel = "x".join(map(str, conv.kernel_size))
        text = f"{conv.in_channels}-{conv.out_channels} {kernel} /{conv.stride[0]} at {shape[1]}x{shape[2]}"
        rows.append({"layer": layer, "shape": text, "ms": _time(calls, seconds), "block": blocks, "path": paths})
    return rows


def _input_shapes(model: nn.Module, input_shape: Shape) -> dict[str, Shape]:
    """The shape that each convolution sees of one image, in the order of the forward pass (first call)."""
    modules = dict(model.named_modules())
    shapes: dict[str, Shape] = {}
    for use in Uses.of(trace(model, input_shape)).calls.values():
        if isinstance(modules.get(use.call.module), nn.Conv2d | SparseConv2d):
            image, *_ = use.call.given or (use.input,)
            shapes.setdefault(use.call.module, tuple(image.shape[1:]))
    return shapes


def _layer_calls(layer: nn.Module, size: tuple[int, ...], train: bool, first: bool) -> list[Callable[[], object]]:
    """One layer's forward pass or, in training, that and its gradients (none for the image itself)."""
    sparse = isinstance(layer, SparseConv2d)
    calls: list[Callable[[], object]] = []
    for layout in (torch.contiguous_format,) if sparse else (torch.contiguous_format, torch.channels_last):
        module = copied(layer).to(memory_format=layout)  # type: ignore[call-overload]
        x = torch.randn(size).contiguous(memory_format=layout).requires_grad_(train and not first)
        calls.append(_gradients(module, x) if train else _forward(module, x))
    return calls


def _gradients(module: nn.Module, x: Tensor) -> Callable[[], object]:
    wanted = [t for t in (x, *module.parameters()) if t.requires_grad]
    grad = torch.randn_like(module(x))
    return lambda: torch.autograd.grad(module(x), wanted, grad)


def _path(layer: SparseConv2d, size: tuple[int, ...], train: bool, first: bool) -> str:
    """Which backend computes each pass of this layer, with which native kernel, and why."""
    passes = ["forward", *(["weight_grad"] if train else []), *(["input_grad"] if train and not first else [])]
    edges, pattern = layer.indices.numel(), (layer.indptr, layer.indices)
    chosen = []
    for name in passes:
        path, why = cpu.choose_path(name, size, layer.kernel_size, edges, layer.out_channels, layer.groups)
        if path == "native":
            geometry = layer.stride, layer.own_padding, layer.dilation
            path = f"native: {conv.kernel_name(name, size, layer.kernel_size, *pattern, *geometry)}"
        chosen.append((name, path, why))
    if len({path for _, path, _ in chosen}) == 1:
        return f"{chosen[0][1]} ({chosen[0][2]})"
    return ", ".join(f"{name} {path} ({why})" for name, path, why in chosen)


def _time(variants: dict[str, list[Callable[[], object]]], seconds: float) -> dict[str, float]:
    """Median milliseconds of each variant's fastest call, all calls taking turns."""
    calls = [(name, call) for name, several in variants.items() for call in several]
    best: dict[str, float] = {}
    for (name, _), timing in zip(calls, take_turns([call for _, call in calls], seconds), strict=True):
        best[name] = min(best.get(name, math.inf), 1e3 * timing.median)
    return best


def show(result: dict[str, Any]) -> None:
    """Prints what `bench` returned as tables: milliseconds, and how many times faster than dense."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"gossamer {result['gossamer']}, torch {result['torch']}, {result['isa']}; batch {result['batch']}, "
        f"{'forward and backward' if result['train'] else 'forward'}; median ms (times faster than dense)"
    )
    for run in result["runs"]:
        names = list(run["ms"])
        table = Table(title=f"{run['threads']} threads")
        for column in ("layer", "shape", *names, "block", "path of the sparse layer"):
            table.add_column(column, justify="left" if column in ("layer", "shape") else "right", overflow="fold")
        for row in [*run["layers"], {"layer": "network", "shape": "", "ms": run["ms"], "block": {}, "path": {}}]:
            dense = row["ms"]["dense"]
            cells = [
                f"{row['ms'][n]:.3g}" + ("" if n == "dense" else f" ({dense / row['ms'][n]:.1f}x)")
                if n in row["ms"]
                else "-"
                for n in names
            ]
            shared = ", ".join(dict.fromkeys(map(str, row["block"].values())))
            table.add_row(row["layer"], row["shape"], *cells, shared, "; ".join(dict.fromkeys(row["path"].values())))
        console.print(table)
    sizes = Table(title="size")
    for column in (
        "network",
        "params",
        "madds",
        "weights, gradients, momentum" if result["train"] else "weights",
        "indices",
    ):
        sizes.add_column(column, justify="left" if column == "network" else "right")
    for name, size in result["variants"].items():
        index = f"{size['index_bytes'] / 1e6:.2f} MB ({size['index_bytes'] / size['weight_bytes']:.1%})"
        sizes.add_row(name, f"{size['params']:,}", f"{size['madds']:,}", f"{size['weight_bytes'] / 1e6:.2f} MB", index)
    console.print(sizes)
