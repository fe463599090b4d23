"""Dead channels brought to life (the paper, section 5.1) by the fewest connections.

Outputs that share their inputs go on doing so: masks are of blocks, [out_channels / block, in_channels].
"""

from __future__ import annotations

import numpy as np
from torch import nn

from gossamer.connectivity import Connectivity
from gossamer.graph.channels import ChannelGraph
from gossamer.graph.paths import dead_channels
from gossamer.graph.state import copied
from gossamer.graph.tracing import Inputs
from gossamer.layers import SparseConv2d
from gossamer.surgery.transplant import transplant

_PASSES = 10


def repair(model: nn.Module, example_inputs: Inputs, inplace: bool = False) -> tuple[nn.Module, int]:
    """Add to sparse layers the fewest connections, greedily, that bring every dead channel to life: whole blocks of
    them where outputs share their inputs.

    Returns the model (a copy unless `inplace`) and how many connections were added; the new kernels start at zero, so
    the model computes what it did. Raises ValueError naming the layers that stay dead, because only dense layers or the
    model's own code could revive them.
    """
    model = model if inplace else copied(model)
    added = 0
    for _ in range(_PASSES):
        dead = dead_channels(model, example_inputs)
        if not dead:
            return model, added
        more = _feed(model, example_inputs) or _use(model, example_inputs)
        if not more:
            break
        added += more
    raise ValueError(
        f"no connection of a sparse layer can revive the dead channels of {', '.join(map(repr, dead))}: "
        "the model itself does not use them"
    )


def _feed(model: nn.Module, example_inputs: Inputs) -> int:
    """Connect outputs that no path from the image reaches to live inputs, the least heard first."""
    graph = ChannelGraph.of(model, example_inputs)
    masks: dict[str, np.ndarray] = {}
    for call in graph.layers:
        alive = graph.from_image[call.inputs]
        if call.connectivity is None or not alive.any():
            continue
        blocks = call.connectivity.merged(call.connectivity.block)
        mask = masks.setdefault(call.name, blocks.mask())
        for o in np.flatnonzero(~(mask & alive).any(1)):
            i = _best(alive & _same_group(blocks, o), mask.sum(0))
            if i is not None:
                mask[o, i] = True
    return _install(model, masks)


def _use(model: nn.Module, example_inputs: Inputs) -> int:
    """Connect inputs from which no path leads to the prediction to live outputs, those with the lowest fan-in first."""
    graph = ChannelGraph.of(model, example_inputs)
    masks: dict[str, np.ndarray] = {}
    revived: set[int] = set()
    for call in reversed(list(graph.layers)):
        if call.connectivity is None or not graph.to_prediction[call.outputs].any():
            continue
        blocks = call.connectivity.merged(call.connectivity.block)
        alive = graph.to_prediction[call.outputs].reshape(blocks.out_channels, -1).any(1)
        mask = masks.setdefault(call.name, blocks.mask())
        for i in np.flatnonzero(~graph.to_prediction[call.inputs] & graph.from_image[call.inputs]):
            o = _best(alive & _same_group(blocks.transpose(), i), mask.sum(1))
            if o is not None and int(call.inputs[i]) not in revived:
                mask[o, i] = True
                revived.add(int(call.inputs[i]))
    return _install(model, masks)


def _same_group(c: Connectivity, output: int | np.integer) -> np.ndarray:
    """The inputs that an output may listen to, boolean."""
    return np.arange(c.in_channels) // (c.in_channels // c.groups) == output // (c.out_channels // c.groups)


def _best(allowed: np.ndarray, load: np.ndarray) -> int | None:
    return int(np.where(allowed, load, np.iinfo(np.int64).max).argmin()) if allowed.any() else None


def _install(model: nn.Module, masks: dict[str, np.ndarray]) -> int:
    """Give layers the connections of these masks of blocks; returns how many are new."""
    added = 0
    for name, mask in masks.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, SparseConv2d)
        old = layer.connectivity
        new = Connectivity.from_mask(mask, old.groups).repeated(old.block).drawn_like(old)
        if new != old:
            transplant(layer, new)
            added += new.connections - old.connections
    return added
