"""What a channel graph is made of: nodes, uses of layers, and joins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gossamer.connectivity import Connectivity

CONSTANT = -1  # the node of values that come from no channel: zero padding, noise


@dataclass(frozen=True)
class LayerCall:
    """One use of a convolution or linear layer: nodes `inputs` [in_channels] to nodes `outputs` [out_channels]."""

    name: str
    weight: str
    kind: str  # "conv" | "linear"
    inputs: np.ndarray
    outputs: np.ndarray
    groups: int = 1
    connectivity: Connectivity | None = None  # of a SparseConv2d

    @property
    def depthwise(self) -> bool:
        """Each output channel belongs to one input channel."""
        return self.groups > 1 and self.groups == len(self.inputs)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """For booleans of the inputs: which outputs listen to a true one."""
        if self.connectivity is not None:
            c = self.connectivity
            return np.bincount(c.rows, weights=values[c.indices], minlength=c.out_channels) > 0
        return np.repeat(values.reshape(self.groups, -1).any(1), len(self.outputs) // self.groups)

    def gather(self, values: np.ndarray) -> np.ndarray:
        """For booleans of the outputs: which inputs are heard by a true one."""
        if self.connectivity is not None:
            c = self.connectivity
            return np.bincount(c.indices, weights=values[c.rows], minlength=c.in_channels) > 0
        return np.repeat(values.reshape(self.groups, -1).any(1), len(self.inputs) // self.groups)


@dataclass(frozen=True)
class Join:
    """Sums, products and reductions: node `children[k]` depends on node `parents[k]`."""

    children: np.ndarray
    parents: np.ndarray
