"""Colour refinement over a channel graph (section 4): each channel's connection tree, as one 64-bit number.

Two channels of a layer get different colours as soon as the colours of the channels they listen to differ (upwards from the
image) or, as an option, of those that listen to them (downwards from the prediction). Colours are hashes of
multisets of colours, so a permuted network has the same ones, permuted; two trees share a colour by accident about once in
2**64 pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gossamer.connectivity import Connectivity
from gossamer.connectivity.hashing import derive, mixed
from gossamer.graph.channels import Join, LayerCall
from gossamer.graph.classes import scatter
from gossamer.symmetry.coupling import Coupling, occurrences

_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Relation:
    """One step of the computation, between classes: position j of its inputs belongs to class `sources[j]`, position k of its
    outputs to `targets[k]`. `rows` and `columns` are the positions that each connection joins; None when all are.

    The salts [positions] tell apart positions of one class, and the steps.
    """

    sources: np.ndarray
    source_salt: np.ndarray
    targets: np.ndarray
    target_salt: np.ndarray
    rows: np.ndarray | None
    columns: np.ndarray | None

    def upwards(self, colours: np.ndarray) -> None:
        """Mix into the targets' colours the multiset of those they listen to."""
        heard = mixed(colours[self.sources] * _ODD + self.source_salt)
        if self.rows is None:
            sums = np.broadcast_to(heard.sum(keepdims=True), self.targets.shape)
        else:
            sums = scatter(self.rows, heard[self.columns], len(self.targets))
        _absorb(colours, self.targets, mixed(sums + self.target_salt))

    def downwards(self, colours: np.ndarray) -> None:
        """Mix into the sources' colours the multiset of those that listen to them."""
        heard = mixed(colours[self.targets] * _ODD + self.target_salt)
        if self.columns is None:
            sums = np.broadcast_to(heard.sum(keepdims=True), self.sources.shape)
        else:
            sums = scatter(self.columns, heard[self.rows], len(self.sources))
        _absorb(colours, self.sources, mixed(sums + self.source_salt))


def relations(coupling: Coupling) -> list[Relation]:
    """The steps of a channel graph as relations between its classes."""
    found = []
    for number, step in enumerate(coupling.graph.steps):
        salt = np.uint64(derive(number, "step"))
        inputs, outputs, rows, columns = _connections(step)
        found.append(
            Relation(
                coupling.of[inputs],
                _salted(coupling, inputs, salt),
                coupling.of[outputs],
                _salted(coupling, outputs, ~salt),
                rows,
                columns,
            )
        )
    return found


def refine(coupling: Coupling, steps: list[Relation], downwards: bool) -> np.ndarray:
    """Stable colours of the classes, uint64 [classes]; fixed ones differ from all others.

    Sweeps over the steps, upwards in the order of computation and, with `downwards` (when the model's outputs are fixed
    too), back, until no sweep tells more channels apart.
    """
    fixed = coupling.fixed | coupling.predicted if downwards else coupling.fixed
    lowest = coupling.order[coupling.start].astype(np.uint64)  # the first node of each class
    colours = np.where(fixed, mixed(~lowest), mixed(coupling.makers))
    told = 0
    while (now := len(np.unique(colours))) > told:
        told = now
        for step in steps:
            step.upwards(colours)
        for step in reversed(steps) if downwards else ():
            step.downwards(colours)
    return colours


def _connections(
    step: LayerCall | Join,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Nodes of the inputs, nodes of the outputs, and the two positions of each connection (None when all are joined)."""
    if isinstance(step, Join):
        inputs, columns = np.unique(step.parents, return_inverse=True)
        outputs, rows = np.unique(step.children, return_inverse=True)
        pairs = np.unique(rows.ravel() * len(inputs) + columns.ravel())
        if len(pairs) == len(inputs) * len(outputs):
            return inputs, outputs, None, None
        return inputs, outputs, pairs // len(inputs), pairs % len(inputs)
    c = step.connectivity
    if c is None and step.groups > 1:
        c = Connectivity.grouped(len(step.inputs), len(step.outputs), step.groups)
    if c is None or c.connections == c.in_channels * c.out_channels:
        return step.inputs, step.outputs, None, None
    return step.inputs, step.outputs, c.rows, c.indices


def _salted(coupling: Coupling, nodes: np.ndarray, salt: np.uint64) -> np.ndarray:
    place = coupling.rank[nodes].astype(np.uint64) * _ODD + occurrences(nodes).astype(np.uint64)
    return mixed(mixed(place) + salt)


def _absorb(colours: np.ndarray, classes: np.ndarray, values: np.ndarray) -> None:
    gathered = scatter(classes, values, len(colours))
    touched = np.unique(classes)
    colours[touched] = mixed(colours[touched] * _ODD + gathered[touched])
