"""The paper's rule for a layer with a single input channel (section 5.2.1).

There a connection is a filter: keeping a fraction alpha of the connections would keep alpha of the filters, and the
next layer would lose that much again. So sqrt(alpha) of the filters stay, as many as in the network thinned to the same
size, and the next layer spends all of its connections on those. A dropped filter has no connections, in or out; its
channel stays in the tensors, as under the paper's masks, and costs no parameter or multiply-add of a convolution.
"""

from __future__ import annotations

import math

import numpy as np
from torch import nn

from gossamer.connectivity import Connectivity
from gossamer.connectivity.hashing import derive, permutation
from gossamer.graph.channels import CONSTANT, ChannelGraph
from gossamer.layers import SparseConv2d


def drop_filters(model: nn.Module, density: float, shape: tuple[int, int, int], seed: int = 0) -> nn.Module:
    """Keep ceil(sqrt(density) * outputs) filters of each sparse layer with one input channel, in place.

    Single filters, not blocks: the rule is about their number, and all share the one input anyway. Sparse layers that
    listened to a dropped filter are drawn anew among the others, in their blocks, with as many connections as before (or
    all there are). `shape` is that of an image.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, SparseConv2d) and layer.in_channels == 1:
            keep = math.ceil(math.sqrt(density) * layer.out_channels - 1e-9)
            mask = np.zeros((layer.out_channels, 1), dtype=np.bool_)
            mask[permutation(derive(seed, f"filters of {name}"), layer.out_channels)[:keep]] = True
            _draw(layer, Connectivity.from_mask(mask))
    while _avoid_dead_inputs(model, shape, seed):
        pass
    return model


def _avoid_dead_inputs(model: nn.Module, shape: tuple[int, int, int], seed: int) -> bool:
    """Draw anew the first sparse layer that listens to a channel which nothing feeds; whether there was one."""
    graph = ChannelGraph.of(model, shape)
    for call in graph.layers:
        layer = model.get_submodule(call.name)
        live = (call.inputs == CONSTANT) | graph.from_image[call.inputs]
        if isinstance(layer, SparseConv2d) and layer.groups == 1 and layer.connectivity.fan_out[~live].any():
            old = layer.connectivity
            among_live = min(1.0, old.connections / int(live.sum() * old.out_channels))
            new = old.redrawn(int(live.sum()), old.out_channels, among_live, seed=derive(seed, call.name))
            mask = np.zeros((old.out_channels, old.in_channels), dtype=np.bool_)
            mask[:, live] = new.mask()
            _draw(layer, Connectivity.from_mask(mask))
            return True
    return False


def _draw(layer: SparseConv2d, connectivity: Connectivity) -> None:
    """Give the layer another pattern, and initial weights for it."""
    new = connectivity.drawn_like(layer.connectivity)
    layer.replace_connectivity(new, layer.weight.new_empty(new.connections, *layer.kernel_size))
    layer.reset_parameters()
