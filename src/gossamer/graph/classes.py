"""Which channels belong together: the classes of a channel graph, as thinning and symmetry read them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gossamer.connectivity.hashing import derive, mixed
from gossamer.graph.channels import ChannelGraph, LayerCall


class Classes:
    """The classes of a channel graph, counted 0, 1, ...: nodes of one class go together, as those of a residual sum do.

    `of` [nodes + 1] is the class of each node, `rank` [nodes + 1] its place within the class: when a class takes the
    place of another, nodes take that of the same rank. The constant is a last node, in a last class of its own.
    `order` lists the nodes class by class, and each class has `sizes` of them from `start` on.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        members, of = np.unique(np.append(graph.classes, graph.size), return_inverse=True)
        self.of = of.ravel()
        self.count = len(members)
        self.order, self.start, self.sizes, self.rank = ranked(self.of)

    def made_by(self, layers: Iterable[LayerCall]) -> np.ndarray:
        """For each class a number for the set of those layers that make its nodes, uint64 [count]; 0 for none.

        The number depends on the layers' names alone, so it is the same in a network of other sizes.
        """
        made_by = np.zeros(self.count, np.uint64)
        for weight, outputs in {call.weight: call.outputs for call in layers}.items():
            salt = np.uint64(derive(0, weight))
            made_by += scatter(self.of[outputs], mixed(salt + self.rank[outputs].astype(np.uint64)), self.count)
        return made_by

    def touched(self, *nodes: np.ndarray) -> np.ndarray:
        """Which classes have one of these nodes, boolean [count]."""
        touched = np.zeros(self.count, np.bool_)
        for some in nodes:
            touched[self.of[some]] = True
        return touched


def ranked(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For things in groups 0, 1, ...: the things group by group, where each group starts there, its size, and the place of
    each thing within its group."""
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups)
    start = np.cumsum(sizes) - sizes
    rank = np.empty_like(groups)
    rank[order] = np.arange(len(groups)) - np.repeat(start, sizes)
    return order, start, sizes, rank


def scatter(index: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """Sums of uint64 values, modulo 2**64, of each index; [size]."""
    low, high = values & np.uint64(0xFFFFFFFF), values >> np.uint64(32)  # doubles add 2**21 such halves exactly
    sums = [np.bincount(index, weights=half, minlength=size).astype(np.uint64) for half in (low, high)]
    return sums[0] + (sums[1] << np.uint64(32))
