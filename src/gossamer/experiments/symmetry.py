"""Symmetries against density (section 4): how many channel permutations sparse connections leave, and thin channels.

`run` counts them in a network sparsified with both patterns and thinned to as many params, at each density; lines go to
`symmetry.jsonl`, as every result does, and the figure and the table only read those.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from gossamer import __version__, models, symmetry
from gossamer.connectivity import PATTERNS, check_density
from gossamer.experiments import results
from gossamer.experiments.results import Row
from gossamer.graph import accounting
from gossamer.graph.channels import ChannelGraph, LayerCall
from gossamer.layers import SparseConv2d
from gossamer.surgery import sparsify, thin
from gossamer.surgery.thin import Plan
from gossamer.training.run_folder import machine

FILE = "symmetry.jsonl"


def run(
    model: str, densities: Sequence[float], out: Path, *, shape: tuple[int, int, int] | None = None, seed: int = 0
) -> list[Row]:
    """Count the symmetries of every network; returns the result lines.

    Each network is a line on stderr as it is done, and one in the file, which leaves out the layers. At density 1 all are the
    dense network.
    """
    rows = []
    for row in measure(model, densities, shape=shape, seed=seed):
        results.append(out / FILE, {key: value for key, value in row.items() if key != "layers"})
        print(describe(row), file=sys.stderr)
        rows.append(row)
    return rows


def measure(
    model: str, densities: Sequence[float], *, shape: tuple[int, int, int] | None = None, seed: int = 0
) -> Iterable[Row]:
    """A result line for each network, by falling density. Raises ValueError for what cannot be made."""
    for density in densities:
        check_density(density)
    torch.manual_seed(seed)
    given = {"in_channels": shape[0], "image_size": shape[1]} if shape else {}
    network = models.create(model, **given)
    image: tuple[int, int, int] = shape or network.input_shape  # type: ignore[assignment]
    sizes = _Sizes(network, image)
    for density in sorted(set(densities), reverse=True):
        about = {"density": density, "width": 1.0, "seed": seed, "image": list(image)}
        if density == 1:
            yield _row(model, "dense", sizes.graph, {**about, "params": sizes.params(network)})
            continue
        params = {}
        for name in PATTERNS:
            sparse = sparsify(network, density, pattern=name, seed=seed)
            params[name] = sizes.params(sparse)
            yield _row(model, name, _with_patterns(sizes.graph, sparse), {**about, "params": params[name]})
        width = sizes.width(params["balanced"])
        small = thin(network, width, image)
        about |= {"width": width, "params": sizes.params(small)}
        yield _row(model, "thin", symmetry.graph_of(small, image), about)


def _with_patterns(graph: ChannelGraph, sparse: nn.Module) -> ChannelGraph:
    """The graph of a network made sparse: that of the dense one, but for the connections of its layers."""
    patterns = {name: m.connectivity for name, m in sparse.named_modules() if isinstance(m, SparseConv2d)}
    steps = [
        replace(step, connectivity=patterns[step.name])
        if isinstance(step, LayerCall) and step.name in patterns
        else step
        for step in graph.steps
    ]
    return replace(graph, steps=steps)


def _row(model: str, name: str, graph: ChannelGraph, about: Row) -> Row:
    start = time.perf_counter()
    found = symmetry.count(graph)
    seconds = time.perf_counter() - start
    return {
        "run": f"{model}-{name}-{about['density']:g}-s{about['seed']}",
        "model": model,
        "network": name,
        **about,
        "log10": found.log10,
        "exact": found.exact,
        "lemma1": found.dense,
        "channels": sum(layer.channels for layer in found.layers),
        "distinct": sum(layer.distinct for layer in found.layers),
        "seconds": round(seconds, 4),
        "layers": [asdict(layer) for layer in found.layers],
        "version": __version__,
        "machine": machine(torch.device("cpu")),
    }


class _Sizes:
    """Params of a dense network's relatives, and the width at which the thinned one has as many as asked."""

    def __init__(self, network: nn.Module, image: tuple[int, int, int]) -> None:
        cost = accounting.count(network, image)
        self.names = [layer.name for layer in cost.layers if layer.kind == "conv" and not layer.classifier]
        self.graph = symmetry.graph_of(network, image)
        self.calls = {call.name: call for call in self.graph.layers if call.name in self.names}
        self.kernels = {
            name: network.get_parameter(call.weight).numel() * call.groups // (len(call.inputs) * len(call.outputs))
            for name, call in self.calls.items()
        }

    def params(self, network: nn.Module) -> int:
        return sum(network.get_parameter(f"{name}.weight").numel() for name in self.names)

    def width(self, params: int) -> float:
        """The depth multiplier whose network has the number of params nearest to these."""
        low, high = 1e-4, 1.0
        for _ in range(24):
            middle = (low + high) / 2
            low, high = (middle, high) if self._thinned(middle) < params else (low, middle)
        return min(low, high, key=lambda width: abs(self._thinned(width) - params))

    def _thinned(self, width: float) -> int:
        plan = Plan(self.graph, width, 1, divided=bool(self.graph.divided))
        total = 0
        for name, call in self.calls.items():
            inputs, outputs = plan.size(call.inputs, name), plan.size(call.outputs, name)
            total += self.kernels[name] * inputs * outputs // (plan.groups[call.weight] or inputs)
        return total


def describe(row: Row) -> str:
    """A result line in one line of text."""
    return (
        f"{row['network']:<9} density {row['density']:<6g} {row['params']:>12,} params: {logarithm(row)} symmetries "
        f"in {row['seconds']:.2f} s"
    )


def logarithm(row: Row) -> str:
    """The number of symmetries as text; "<=" before an upper bound."""
    return f"{'' if row['exact'] else '<= '}10^{row['log10']:.1f}"
