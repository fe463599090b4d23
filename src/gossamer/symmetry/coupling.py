"""Which channels move together when channels are permuted (section 4): the classes of a channel graph, by space."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gossamer.connectivity.hashing import derive, mixed
from gossamer.graph.channels import CONSTANT, ChannelGraph


@dataclass(frozen=True)
class Space:
    """Channels that may be exchanged with each other, as classes: made by the same layers, free to move."""

    layers: tuple[str, ...]
    members: np.ndarray


class Coupling:
    """The classes of a channel graph, counted 0, 1, ...: nodes of one class move together, as those of a residual sum do.

    `of` [nodes + 1] is the class of each node, `rank` [nodes + 1] its place within the class: when a class takes the
    place of another, nodes take that of the same rank. The constant is a last node, in a last class of its own.
    `fixed` [classes] are classes that must stay where they are whatever happens: those of the image's channels, and those
    that no layer makes. `predicted` are those of the model's outputs, `divided` those on an axis that is cut into parts.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        members, of = np.unique(np.append(graph.classes, graph.size), return_inverse=True)
        self.of = of.ravel()
        self.count = len(members)
        self.order = np.argsort(self.of, kind="stable")
        self.sizes = np.bincount(self.of)
        self.start = np.cumsum(self.sizes) - self.sizes
        self.rank = np.empty_like(self.of)
        self.rank[self.order] = np.arange(len(self.of)) - np.repeat(self.start, self.sizes)
        self.made_by = self._made_by()
        self.predicted = self._touched(graph.prediction)
        self.divided = self._touched(*(nodes for nodes, _ in graph.divided))
        self.fixed = self._touched(graph.image, np.array([CONSTANT])) | (self.made_by == 0)

    @cached_property
    def spaces(self) -> list[Space]:
        """The spaces, in the order of computation."""
        free = ~self.fixed & ~self.predicted
        spaces: dict[int, np.ndarray] = {}
        layers: dict[int, list[str]] = {}
        for call in self.graph.layers:
            made = self.of[call.outputs]
            for key in dict.fromkeys(self.made_by[made[free[made]]].tolist()):
                names = layers.setdefault(key, [])
                if call.name not in names:
                    names.append(call.name)
                if key not in spaces:
                    own = made[free[made] & (self.made_by[made] == np.uint64(key))]
                    spaces[key] = own[np.sort(np.unique(own, return_index=True)[1])]
        return [Space(tuple(layers[key]), members) for key, members in spaces.items()]

    def _made_by(self) -> np.ndarray:
        """For each class a number for the set of layers that make its nodes, uint64; 0 for none."""
        made_by = np.zeros(self.count, np.uint64)
        for weight, outputs in {call.weight: call.outputs for call in self.graph.layers}.items():
            salt = np.uint64(derive(0, weight))
            made_by += scatter(self.of[outputs], mixed(salt + self.rank[outputs].astype(np.uint64)), self.count)
        return made_by

    def _touched(self, *nodes: np.ndarray) -> np.ndarray:
        touched = np.zeros(self.count, np.bool_)
        for some in nodes:
            touched[self.of[some]] = True
        return touched


def occurrences(nodes: np.ndarray) -> np.ndarray:
    """For each position of an axis, how often its node came before: 0 but where one node feeds several positions."""
    order = np.argsort(nodes, kind="stable")
    ranked = nodes[order]
    first = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    result = np.empty(len(nodes), np.int64)
    result[order] = np.arange(len(nodes)) - np.repeat(first, np.diff(np.append(first, len(nodes))))
    return result


def scatter(index: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """Sums of uint64 values, modulo 2**64, of each index; [size]."""
    low, high = values & np.uint64(0xFFFFFFFF), values >> np.uint64(32)  # doubles add 2**21 such halves exactly
    sums = [np.bincount(index, weights=half, minlength=size).astype(np.uint64) for half in (low, high)]
    return sums[0] + (sums[1] << np.uint64(32))
