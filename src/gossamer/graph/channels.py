"""One channel graph of any model: which channel feeds which, and which channels must change together.

Every channel of every tensor is a *node*. A convolution or linear layer makes new nodes from its inputs' (a `LayerCall`);
a sum or product makes nodes with several parents (a `Join`); everything else, from pooling over concatenation to
channel shuffle, passes nodes on. Dead channels (`paths`), the depth multiplier (`surgery.thin`) and symmetry all read
this graph; `propagation` draws it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import nn

from gossamer.graph.nodes import CONSTANT, Join, LayerCall
from gossamer.graph.propagation import propagate
from gossamer.graph.tracing import Inputs, trace

__all__ = ["CONSTANT", "ChannelGraph", "Join", "LayerCall", "components", "training_graph"]


@dataclass(frozen=True)
class ChannelGraph:
    """The channels of a model and how they depend on each other, in the order of computation.

    `of(model, example_inputs)` traces any module; it raises ValueError, naming the layer and the operator, for a model
    whose channels it cannot follow. `parameters` gives the nodes of the elements of every parameter and buffer that is
    not a layer's weight: those of a bias or a batch norm are coupled to the channels they belong to.
    """

    size: int
    image: np.ndarray
    prediction: np.ndarray
    steps: list[LayerCall | Join]
    parameters: dict[str, np.ndarray]
    ties: np.ndarray = field(repr=False)  # [k, 2] pairs of nodes that must stay or go together
    divided: list[tuple[np.ndarray, int]] = field(repr=False)  # nodes of an axis, and the equal parts it is cut into

    @classmethod
    def of(cls, model: nn.Module, example_inputs: Inputs, training: bool = False) -> ChannelGraph:
        """The graph of a model on such inputs: a tensor, a tuple of them, or one image's (channels, height, width)."""
        return cls(**propagate(model, trace(model, example_inputs, training)))

    @property
    def layers(self) -> Iterator[LayerCall]:
        """Every use of a layer, in the order of computation."""
        return (step for step in self.steps if isinstance(step, LayerCall))

    @cached_property
    def classes(self) -> np.ndarray:
        """For each node, the number of its class: nodes of one class are coupled, as by a residual sum; [size]."""
        return components(self.size, self.ties)

    @cached_property
    def from_image(self) -> np.ndarray:
        """Which nodes a path from the image reaches, boolean [size + 1]; the last is the constant's: never."""
        alive = np.zeros(self.size + 1, dtype=np.bool_)
        alive[self.image] = True
        alive[CONSTANT] = False
        for step in self.steps:
            if isinstance(step, LayerCall):
                alive[step.outputs] |= step.spread(alive[step.inputs])
            else:
                np.logical_or.at(alive, step.children, alive[step.parents])
        return alive

    @cached_property
    def to_prediction(self) -> np.ndarray:
        """From which nodes a path leads to the model's output, boolean [size + 1]."""
        alive = np.zeros(self.size + 1, dtype=np.bool_)
        alive[self.prediction] = True
        for step in reversed(self.steps):
            if isinstance(step, LayerCall):
                np.logical_or.at(alive, step.inputs, step.gather(alive[step.outputs]))
            else:
                np.logical_or.at(alive, step.parents, alive[step.children])
        alive[CONSTANT] = False
        return alive


def training_graph(model: nn.Module, example_inputs: Inputs) -> tuple[ChannelGraph, bool]:
    """The graph of a training pass, in which auxiliary heads run, or of an inference pass where that cannot be had."""
    try:
        return ChannelGraph.of(model, example_inputs, training=True), True
    except ValueError:
        return ChannelGraph.of(model, example_inputs), False


def components(count: int, pairs: np.ndarray) -> np.ndarray:
    """Connected components of `count` things under `pairs` [k, 2]: for each thing, its component's lowest member."""
    root = np.arange(count)
    left, right = pairs.T if len(pairs) else (root[:0], root[:0])
    while True:
        a, b = root[left], root[right]
        apart = a != b
        if not apart.any():
            return root
        np.minimum.at(root, np.maximum(a, b)[apart], np.minimum(a, b)[apart])
        while (root != root[root]).any():
            root = root[root]
