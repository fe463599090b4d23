"""Denser again while training (section 3.2.1), or elsewhere at the same density: what has been learnt is kept.

Which connections are new: random ones, as in the paper, or those on which the loss depends most (`DenseGradients`).
Outputs that share their inputs go on doing so: connections come and go in whole blocks (`Connectivity.block`), and a block
counts as much as its kernels together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from torch import nn
from torch.optim import Optimizer

from gossamer.connectivity import Connectivity, check_density
from gossamer.connectivity.hashing import derive, hashes
from gossamer.layers import SparseConv2d
from gossamer.surgery.gradients import DenseGradients, absent
from gossamer.surgery.transplant import Init, check_optimizer, transplant

__all__ = ["DenseGradients", "densify", "grow", "rewire", "sparse_layers"]


def densify(
    model: nn.Module,
    *,
    density: float | None = None,
    factor: float | None = None,
    optimizer: Optimizer | None = None,
    init: Init = "zero",
    gradients: DenseGradients | None = None,
) -> nn.Module:
    """Grow the sparse layers in place, each to at least `density`, or to `factor` times its connections (at most all).

    Old connections keep their kernels, and `optimizer` its state for them. New ones are drawn at random, or with
    `gradients` those with the largest gradient; they start at `init`: "zero", so that the model still computes the same,
    or "random" within 1 / sqrt(fan-in). Parameter objects stay the same: the optimizer and its scheduler go on working,
    and only a DistributedDataParallel wrapper must be made anew. Returns the model.

    Raises ValueError for a density that all layers exceed already, one above 1, and a model without sparse layers;
    then nothing has changed.
    """
    if (density is None) == (factor is None):
        raise ValueError("densify takes either density= or factor=")
    if factor is not None and not factor >= 1:
        raise ValueError(f"factor must be at least 1, got {factor!r}")
    if density is not None:
        check_density(density)
    layers = sparse_layers(model)
    patterns = [layer.connectivity for layer in layers.values()]
    if density is not None and all(_exceeds(c, density) for c in patterns):
        least = min(c.density for c in patterns)
        raise ValueError(f"cannot grow to density {density:g}: every layer has more, the sparsest {least:.4g}")
    goals = [density if density is not None else min(1.0, c.density * (factor or 1)) for c in patterns]
    grow(layers, goals, optimizer, init, gradients)
    return model


def grow(
    layers: dict[str, SparseConv2d],
    goals: Iterable[float],
    optimizer: Optimizer | None,
    init: Init,
    gradients: DenseGradients | None,
) -> bool:
    """Grow each layer to its goal, or leave it where it is denser already. Says whether any has changed."""
    _check_init(init)
    check_optimizer(optimizer)
    grown = {}
    for (name, layer), goal in zip(layers.items(), goals, strict=True):
        c = layer.connectivity
        if _exceeds(c, goal) or c.density == 1:
            continue
        new = c.grow(goal) if gradients is None else _grow_best(c, goal, gradients.scores(layer, name))
        if new != c:
            grown[name] = new
    for name, new in grown.items():
        transplant(layers[name], new, optimizer, init)
    return bool(grown)


def rewire(
    model: nn.Module,
    fraction: float = 0.3,
    *,
    optimizer: Optimizer | None = None,
    init: Init = "zero",
    gradients: DenseGradients | None = None,
) -> nn.Module:
    """Drop the weakest `fraction` of each sparse layer's connections and grow as many elsewhere, in place.

    Weak is a kernel of small norm. New connections are random (SET, Mocanu et al. 2018), or with `gradients` those with
    the largest gradient (RigL, Evci et al. 2020), here for whole kernels. The strongest connection of every channel stays,
    so that none dies. The rest is as in `densify`. Returns the model.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be in (0, 1), got {fraction!r}")
    _check_init(init)
    check_optimizer(optimizer)
    layers = sparse_layers(model)
    rewired = {}
    for name, layer in layers.items():
        c = layer.connectivity
        norms = layer.weight.detach().flatten(1).norm(dim=1).double().numpy(force=True)
        seed = derive(c.seed, "rewire")
        gaps = absent(c)
        blocks, missing = c.merged(c.block), gaps.merged(c.block)
        if gradients is None:
            scores = hashes(seed, missing.connections).astype(float)
        else:
            scores = _by_block(gaps, c.block, gradients.scores(layer, name))
        count = min(round(fraction * blocks.connections), missing.connections)
        weak = _weakest(blocks, _by_block(c, c.block, norms), count)
        kept, new = np.delete(blocks.positions, weak), _best(missing.positions, scores, weak.size)
        rewired[name] = _chosen(blocks, np.concatenate([kept, new]), seed).repeated(c.block)
    for name, layer in layers.items():
        if rewired[name] != layer.connectivity:
            transplant(layer, rewired[name], optimizer, init)
    return model


def sparse_layers(model: nn.Module) -> dict[str, SparseConv2d]:
    """The layers that growth is about, by name. Raises ValueError when there are none, two share their kernels, or one
    computes them from other parameters."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, SparseConv2d)}
    if not layers:
        raise ValueError("the model has no sparse layers to grow: sparsify it first")
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        layer.check_own_kernels(name)
        if (other := owners.setdefault(id(layer.weight), name)) != name:
            raise ValueError(f"cannot grow {name!r}: it shares its kernels with {other!r}")
    return layers


# -- which connections ---------------------------------------------------------------------------------------------------


def _exceeds(c: Connectivity, density: float) -> bool:
    """Whether the pattern was drawn denser than that (what keeps channels alive comes on top)."""
    return c.asked(density) < c.connections - c.repaired


def _grow_best(c: Connectivity, density: float, scores: np.ndarray) -> Connectivity:
    """The old connections, and new ones of the highest scores up to the density."""
    blocks, gaps = c.merged(c.block), absent(c)
    add = max(0, c.asked(density) - c.connections) // c.block
    new = _best(gaps.merged(c.block).positions, _by_block(gaps, c.block, scores), add)
    grown = _chosen(blocks, np.concatenate([blocks.positions, new]), c.seed).repeated(c.block)
    return replace(grown, repaired=max(0, grown.connections - c.asked(density)))


def _by_block(c: Connectivity, block: int, values: np.ndarray) -> np.ndarray:
    """Sums of the connections' values over each block, in the order of the merged pattern's connections."""
    blocks = c.merged(block)
    place = blocks.indptr[c.rows // block] + np.arange(c.connections) - c.indptr[c.rows]
    return np.bincount(place, weights=values, minlength=blocks.connections)


def _weakest(c: Connectivity, strength: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` of the weakest connections, among those that are not the strongest of their input or output."""
    strongest_last = np.argsort(strength, kind="stable")
    last_of_output, last_of_input = np.full(c.out_channels, -1), np.full(c.in_channels, -1)
    last_of_output[c.rows[strongest_last]] = strongest_last  # of repeated indices the last assignment stays
    last_of_input[c.indices[strongest_last]] = strongest_last
    free = ~np.isin(strongest_last, np.concatenate([last_of_output, last_of_input]))
    return strongest_last[free][:count]


def _best(positions: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """The `count` positions of the highest scores."""
    return positions[np.argsort(-scores, kind="stable")[:count]]


def _chosen(like: Connectivity, positions: np.ndarray, seed: int) -> Connectivity:
    """A pattern that no random draw made; further random growth levels its fan-ins and fan-outs (`balanced`)."""
    c = Connectivity.from_positions(like.in_channels, like.out_channels, np.sort(positions), groups=like.groups)
    return replace(c, pattern="balanced", seed=seed, repaired=like.repaired)


def _check_init(init: str) -> None:
    if init not in ("zero", "random"):
        raise ValueError(f'init must be "zero" or "random", got {init!r}')
