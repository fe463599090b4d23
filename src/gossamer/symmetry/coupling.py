"""Which channels move together when channels are permuted (section 4): the classes of a channel graph, by space."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gossamer.graph.channels import CONSTANT, ChannelGraph
from gossamer.graph.classes import Classes


@dataclass(frozen=True)
class Space:
    """Channels that may be exchanged with each other, as classes: made by the same layers, free to move."""

    layers: tuple[str, ...]
    members: np.ndarray


class Coupling(Classes):
    """The classes of a channel graph, and what holds them in place when channels are permuted.

    `fixed` [classes] are classes that must stay where they are whatever happens: those of the image's channels, and those
    that no layer makes (`made_by` is 0). `predicted` are those of the model's outputs, `divided` those on an axis that
    is cut into parts.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        super().__init__(graph)
        self.graph = graph
        self.makers = self.made_by(graph.layers)
        self.predicted = self.touched(graph.prediction)
        self.divided = self.touched(*(nodes for nodes, _ in graph.divided))
        self.fixed = self.touched(graph.image, np.array([CONSTANT])) | (self.makers == 0)

    @cached_property
    def spaces(self) -> list[Space]:
        """The spaces, in the order of computation."""
        free = ~self.fixed & ~self.predicted
        spaces: dict[int, np.ndarray] = {}
        layers: dict[int, list[str]] = {}
        for call in self.graph.layers:
            made = self.of[call.outputs]
            for key in dict.fromkeys(self.makers[made[free[made]]].tolist()):
                names = layers.setdefault(key, [])
                if call.name not in names:
                    names.append(call.name)
                if key not in spaces:
                    own = made[free[made] & (self.makers[made] == np.uint64(key))]
                    spaces[key] = own[np.sort(np.unique(own, return_index=True)[1])]
        return [Space(tuple(layers[key]), members) for key, members in spaces.items()]


def occurrences(nodes: np.ndarray) -> np.ndarray:
    """For each position of an axis, how often its node came before: 0 but where one node feeds several positions."""
    order = np.argsort(nodes, kind="stable")
    ranked = nodes[order]
    first = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    result = np.empty(len(nodes), np.int64)
    result[order] = np.arange(len(nodes)) - np.repeat(first, np.diff(np.append(first, len(nodes))))
    return result
