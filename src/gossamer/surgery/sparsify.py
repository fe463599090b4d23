"""From a dense network to a sparse one (section 3.2)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from gossamer.connectivity import Connectivity, check_density
from gossamer.connectivity.hashing import derive
from gossamer.graph.state import copied
from gossamer.layers import SparseConv2d, exchange_layers
from gossamer.layers.sparse_conv import computes_as_conv2d

__all__ = ["Sparsified", "sparsify"]


@dataclass(frozen=True)
class Sparsified:
    """What `sparsify` did, kept on its result as `model.sparsified`: a report of that moment. Growth and rewiring leave it as
    it is; what the patterns are now, the layers say."""

    density: float  # asked for
    connections: int
    possible: int
    repaired: int  # connections added beyond the density, because without them a channel would be dead
    layers: tuple[str, ...]
    blocks: tuple[int, ...]  # of each layer: outputs that share their inputs

    def __str__(self) -> str:
        counted = sorted(Counter(self.blocks).items(), reverse=True)
        shared = ", ".join(f"{block} ({layers})" for block, layers in counted)
        return (
            f"{len(self.layers)} layers, {self.connections:,} of {self.possible:,} connections "
            f"(density {self.connections / self.possible:.4g}, asked {self.density:.4g}; {self.repaired:,} of them "
            f"keep a channel alive); blocks that share inputs (layers): {shared}"
        )


def sparsify(
    model: nn.Module,
    density: float,
    *,
    seed: int = 0,
    pattern: str = "balanced",
    block: int | str = 1,
    allocation: str | Mapping[str, float] = "uniform",
    exclude: Iterable[str | type[nn.Module] | nn.Module] = (),
    keep_weights: bool = False,
    inplace: bool = False,
) -> nn.Module:
    """Keep a random `density` in (0, 1] of the connections of every convolution (section 3.2).

    Returns a copy (the model itself with `inplace`) whose `nn.Conv2d` are `SparseConv2d`; depthwise convolutions, linear
    layers and what `exclude` names (modules, or their names, regular expressions or types; with all inside) stay whole. No
    channel dies (section 5.1), which costs connections at the lowest densities: `result.sparsified` says how many. Plain
    `nn.MaxPool2d`, `nn.AvgPool2d` and `nn.BatchNorm2d` become Gossamer's, which compute the same, faster.

    With a `block` of 2 or 4, so many consecutive outputs of a layer listen to the same inputs, which the kernels compute
    faster; "auto" takes for each layer the largest of 4, 2 and 1 that costs no connections (`Connectivity.random`).

    `allocation` spreads the density over the layers: `uniform` gives each the same; `erdos-renyi` gives layers with few
    channels more, at the same total; a mapping from regular expression to density names layers, the rest get `density`.
    The kept kernels are the model's own. They are scaled by sqrt(inputs / fan-in), so that a freshly initialised network
    stays so; with `keep_weights` they are left as trained.

    Raises ValueError for a density or block that cannot be, a model without convolutions, or a layer that cannot be made
    sparse.
    """
    check_density(density)
    excluded = _excluded(model, exclude)
    model = model if inplace else copied(model)
    layers = _convolutions(model, excluded)
    densities = _allocate(layers, density, allocation, block if isinstance(block, int) else 1)
    made: dict[nn.Module, SparseConv2d] = {}
    for name, conv in layers.items():
        try:
            c = Connectivity.random(
                conv.in_channels,
                conv.out_channels,
                densities[name],
                pattern=pattern,
                seed=derive(seed, name),
                groups=conv.groups,
                block=block,
            )
        except ValueError as error:
            hint = '; block="auto" takes what fits each layer' if block not in (1, "auto") else ""
            raise ValueError(f"cannot make {name!r} sparse: {error}{hint}") from error
        made[conv] = SparseConv2d.from_dense(conv, c)
        if not keep_weights:
            _rescale(made[conv], c)
    if "" in layers:
        model = made[layers[""]]
    else:
        _replace(model, made)
        model = exchange_layers(model, inplace)
    patterns = [made[conv].connectivity for conv in layers.values()]
    model.sparsified = Sparsified(  # type: ignore[assignment]
        float(density),
        sum(c.connections for c in patterns),
        sum(c.possible for c in patterns),
        sum(c.repaired for c in patterns),
        tuple(layers),
        tuple(c.block for c in patterns),
    )
    return model


# -- which layers, and how dense ---------------------------------------------------------------------------------------


def _excluded(model: nn.Module, exclude: Iterable[str | type[nn.Module] | nn.Module]) -> set[str]:
    """The names of the modules that stay as they are: those that `exclude` means, and all inside them."""
    everything = dict(model.named_modules(remove_duplicate=False))
    roots: set[str] = set()
    for e in (exclude,) if isinstance(exclude, str | nn.Module) else exclude:
        if isinstance(e, str):
            found = {name for name in everything if _matches(e, name)}
        elif isinstance(e, type) and issubclass(e, nn.Module):
            found = {name for name, module in everything.items() if isinstance(module, e)}
        elif isinstance(e, nn.Module):
            found = {name for name, module in everything.items() if module is e}
        else:
            raise TypeError(f"exclude takes modules, and their names, regular expressions or types, got {e!r}")
        if not found and not isinstance(e, type):
            what = repr(e) if isinstance(e, str) else f"<a {type(e).__name__}>"
            raise ValueError(f"exclude={what} names no layer of the model")
        roots |= found
    inside = {module for name in roots for module in everything[name].modules()}
    return {name for name, module in everything.items() if module in inside}


def _convolutions(model: nn.Module, excluded: set[str]) -> dict[str, nn.Conv2d]:
    """The convolutions to make sparse, by their first name."""
    layers: dict[str, nn.Conv2d] = {}
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d) or 1 < module.groups == module.in_channels or name in excluded:
            continue
        if is_lazy(module.weight):
            raise ValueError(
                f"cannot make {name!r} sparse: it gets its shape from data; run the model once on an input first"
            )
        if not computes_as_conv2d(module):
            raise ValueError(
                f"cannot make {name!r} sparse: {type(module).__name__} computes its weight or output its own way; "
                f"leave it whole with exclude=[{name!r}]"
            )
        other = owners.setdefault(id(module.weight), name)
        if other != name:
            raise ValueError(f"cannot make {name!r} sparse: it shares its weight with {other!r}; exclude both")
        layers[name] = module
    if not layers:
        raise ValueError(
            "the model has no dense convolution left to make sparse (depthwise and excluded ones stay whole)"
        )
    return layers


def _matches(expression: str, name: str) -> bool:
    return expression == name or re.fullmatch(expression, name) is not None


def _allocate(
    layers: dict[str, nn.Conv2d], density: float, allocation: str | Mapping[str, float], block: int
) -> dict[str, float]:
    if isinstance(allocation, Mapping):
        densities = dict.fromkeys(layers, density)
        for expression, value in allocation.items():
            check_density(value, f"the density of {expression!r}")
            named = [name for name in layers if _matches(expression, name)]
            if not named:
                raise ValueError(f"allocation names {expression!r}, which matches none of the convolutions")
            densities.update(dict.fromkeys(named, value))
        return densities
    if allocation == "uniform":
        return dict.fromkeys(layers, density)
    if allocation == "erdos-renyi":
        return _erdos_renyi(layers, density, block)
    raise ValueError(f'allocation must be "uniform", "erdos-renyi" or a mapping, got {allocation!r}')


def _erdos_renyi(layers: dict[str, nn.Conv2d], density: float, block: int) -> dict[str, float]:
    """Density ~ (n_in + n_out) / (n_in * n_out), kept within what each layer allows, at the total asked for."""
    inputs, outputs = (
        np.array([getattr(c, f"{side}_channels") // c.groups for c in layers.values()]) for side in ("in", "out")
    )
    sizes = np.array([c.weight.numel() for c in layers.values()])
    least = np.maximum(block * inputs, outputs) / (inputs * outputs)  # one block for every input
    nearest = float((least * sizes).sum() / sizes.sum())
    if nearest > density:
        raise ValueError(
            f"erdos-renyi cannot reach density {density:g} without dead channels: the nearest it can is {nearest:.4g}"
        )
    ratio = (inputs + outputs) / (inputs * outputs)
    low, high = 0.0, float((1 / ratio).max())
    for _ in range(100):
        scale = (low + high) / 2
        total = float((np.clip(scale * ratio, least, 1) * sizes).sum())
        low, high = (scale, high) if total < density * sizes.sum() else (low, scale)
    return dict(zip(layers, np.clip(high * ratio, least, 1).tolist(), strict=True))


def _rescale(layer: SparseConv2d, c: Connectivity) -> None:
    gain = np.sqrt(c.in_channels // c.groups / np.maximum(c.fan_in, 1))[c.rows]
    with torch.no_grad():
        layer.weight.mul_(torch.from_numpy(gain).to(layer.weight)[:, None, None])


def _replace(model: nn.Module, made: Mapping[nn.Module, nn.Module]) -> None:
    """Put each new layer wherever the old one stands: a shared layer stands in several places."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in made:
                parent._modules[name] = made[child]
