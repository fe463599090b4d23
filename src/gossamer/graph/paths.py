"""No dead filters (the paper, section 5.1): every connection must lie on a path from the image to the prediction."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from torch import nn

from gossamer.graph.channels import ChannelGraph, LayerCall
from gossamer.graph.tracing import Inputs


@dataclass(frozen=True)
class Dead:
    """What is dead in one layer: output channels, by the end of the path they miss, and connections on no path."""

    no_image: list[int]
    no_prediction: list[int]
    connections: int


def dead_channels(model: nn.Module, example_inputs: Inputs) -> dict[str, Dead]:
    """What is dead in each convolution or linear layer, by name; {} when every connection is on a path.

    A path runs through sums, concatenations, pooling and whatever else the channel graph follows, from the image to the
    model's output. Works for any model, dense or sparse, whoever made its pattern.
    """
    graph = ChannelGraph.of(model, example_inputs)
    uses: defaultdict[str, list[LayerCall]] = defaultdict(list)
    for use in graph.layers:
        uses[use.name].append(use)
    report = {}
    for name, calls in uses.items():  # something is dead only if it is dead in every use of a shared layer
        fed = np.logical_or.reduce([graph.from_image[c.outputs] for c in calls])
        used = np.logical_or.reduce([graph.to_prediction[c.outputs] for c in calls])
        live = np.logical_or.reduce([_live_connections(graph, c) for c in calls])
        if not (fed.all() and used.all() and live.all()):
            report[name] = Dead(np.flatnonzero(~fed).tolist(), np.flatnonzero(~used).tolist(), int((~live).sum()))
    return report


def _live_connections(graph: ChannelGraph, call: LayerCall) -> np.ndarray:
    """Which of the layer's connections lie on a path; for a dense layer as [out, in / groups], flattened."""
    fed, used = graph.from_image[call.inputs], graph.to_prediction[call.outputs]
    if call.connectivity is not None:
        return fed[call.connectivity.indices] & used[call.connectivity.rows]
    per_group = fed.reshape(call.groups, -1)
    return (np.repeat(per_group, len(used) // call.groups, axis=0) & used[:, None]).ravel()
