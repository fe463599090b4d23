"""Lemma 1 (section 4): the same network with its channels in another order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.connectivity import Connectivity
from gossamer.graph.channels import ChannelGraph, Join, LayerCall
from gossamer.graph.inputs import Inputs, arguments, tensors
from gossamer.graph.state import copied
from gossamer.layers import SparseConv2d
from gossamer.symmetry.coupling import Coupling, occurrences

_SAME = 1e-6  # largest difference of outputs, relative to the largest output, in float64


def permuted(
    model: nn.Module,
    graph: ChannelGraph,
    permutations: Mapping[str, Sequence[int] | np.ndarray],
    example_inputs: Inputs,
) -> nn.Module:
    """A copy of the model whose channels are in another order; see `symmetry.permute`."""
    coupling = Coupling(graph)
    source = _sources(coupling, permutations)
    _check_joins(graph, source)
    result = copied(model)
    done: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for call in graph.layers:
        axes = _axis(call.name, call.outputs, source), _axis(call.name, call.inputs, source)
        if call.weight not in done:
            done[call.weight] = axes
            _permute_weight(result, call, *axes)
        elif not all(np.array_equal(a, b) for a, b in zip(axes, done[call.weight], strict=True)):
            raise ValueError(f"{call.name!r} is used more than once, on channels that would no longer be in one order")
    for name, nodes in graph.parameters.items():
        _permute_parameter(result, name, nodes, source)
    _check_outputs(model, result, example_inputs)
    return result


def _sources(coupling: Coupling, permutations: Mapping[str, Sequence[int] | np.ndarray]) -> np.ndarray:
    """For each node, the node whose channel takes its place, [nodes + 1]; the constant is the last."""
    layers = {call.name: call.outputs for call in coupling.graph.layers}
    source = np.arange(coupling.count)  # of each class
    given = np.full(coupling.count, -1)
    still = coupling.fixed | coupling.predicted
    for name, permutation in permutations.items():
        if name not in layers:
            raise ValueError(f"the model has no layer {name!r} to permute: it has {', '.join(map(repr, layers))}")
        outputs = layers[name]
        order = _checked(name, permutation, len(outputs))
        to, origin = coupling.of[outputs], coupling.of[outputs[order]]
        if (still[to] & (to != origin)).any():
            raise ValueError(f"the channels of {name!r} are the image's or the classes: they must stay in place")
        alike = (coupling.sizes[to] == coupling.sizes[origin]) & (coupling.makers[to] == coupling.makers[origin])
        if not (alike & (coupling.rank[outputs] == coupling.rank[outputs[order]])).all():
            raise ValueError(f"the permutation of {name!r} exchanges channels that are coupled to different layers")
        source[to] = origin
        if (source[to] != origin).any() or ((given[to] >= 0) & (given[to] != origin)).any():
            raise ValueError(
                f"the permutation of {name!r} takes apart channels that are coupled (by a sum, a product or a layer "
                "used twice): give coupled layers the same permutation, or only one of them"
            )
        given[to] = origin
    return coupling.order[coupling.start[source[coupling.of]] + coupling.rank]


def _checked(name: str, permutation: Sequence[int] | np.ndarray, channels: int) -> np.ndarray:
    order = np.asarray(permutation)
    if order.shape != (channels,) or not np.array_equal(np.sort(order), np.arange(channels)):
        raise ValueError(f"the permutation of {name!r} must hold each of 0..{channels - 1} once, got {permutation!r}")
    return order.astype(np.int64)


def _axis(name: str, nodes: np.ndarray, source: np.ndarray) -> np.ndarray:
    """For each position of an axis, the position whose content it takes."""
    nodes = np.where(nodes < 0, len(source) - 1, nodes)
    count, times = len(nodes), occurrences(nodes)
    keys, wanted = nodes * count + times, source[nodes] * count + times
    order = np.argsort(keys, kind="stable")
    at = order[np.minimum(np.searchsorted(keys[order], wanted), count - 1)]
    if not np.array_equal(keys[at], wanted):
        raise ValueError(
            f"the permutations bring other channels to {name!r}: the model tells their places apart, as a split or a "
            "shuffle of channels does"
        )
    return at


def _check_joins(graph: ChannelGraph, source: np.ndarray) -> None:
    for step in graph.steps:
        if isinstance(step, Join):
            before = np.unique(step.children * graph.size + step.parents)
            after = np.unique(source[step.children] * graph.size + source[step.parents])
            if not np.array_equal(before, after):
                raise ValueError("the permutations take apart channels that the model adds or multiplies")


@torch.no_grad()
def _permute_weight(model: nn.Module, call: LayerCall, outputs: np.ndarray, inputs: np.ndarray) -> None:
    """Rows and columns of a weight: [out, in / groups, ...], or one kernel for each connection."""
    layer = model.get_submodule(call.name)
    groups, height, width = call.groups, len(outputs) // call.groups, len(inputs) // call.groups
    group = inputs.reshape(groups, width) // width
    if not (np.append(group, outputs.reshape(groups, height) // height, axis=1) == group[:, :1]).all():
        raise ValueError(f"the permutations break up the {groups} groups of {call.name!r}")
    if isinstance(layer, SparseConv2d):
        return _permute_connections(layer, outputs, inputs)
    weight: Tensor = getattr(layer, call.weight.rpartition(".")[2])
    columns = (inputs % width).reshape(groups, width)[np.arange(len(outputs)) // height]
    rows = torch.from_numpy(outputs)[:, None].to(weight.device)
    weight.data = weight[rows, torch.from_numpy(columns).to(weight.device)].contiguous()


def _permute_connections(layer: SparseConv2d, outputs: np.ndarray, inputs: np.ndarray) -> None:
    old = layer.connectivity
    positions = np.argsort(outputs)[old.rows] * old.in_channels + np.argsort(inputs)[old.indices]
    order = np.argsort(positions)
    new = Connectivity.from_positions(old.in_channels, old.out_channels, positions[order], groups=old.groups)
    layer.replace_connectivity(new.drawn_like(old), layer.weight[torch.from_numpy(order).to(layer.weight.device)])


@torch.no_grad()
def _permute_parameter(model: nn.Module, name: str, nodes: np.ndarray, source: np.ndarray) -> None:
    """Biases, normalisations and free parameters: every element is a node."""
    owner, _, own = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(owner), own)
    flat = nodes.ravel()
    at = torch.from_numpy(_axis(name, flat, source)).to(tensor.device)
    tensor.data = tensor.flatten()[at].reshape(tensor.shape)


@torch.no_grad()
def _check_outputs(model: nn.Module, result: nn.Module, example_inputs: Inputs) -> None:
    """Run both networks on random numbers: what a channel graph does not see, as group normalisation, shows here."""
    if any(t.is_meta for t in model.state_dict().values() if isinstance(t, Tensor)):
        return  # nothing to compute with
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)

    def numbers(given: Tensor | Sequence[int]) -> Tensor:
        if not isinstance(given, Tensor):
            given = torch.randn(max(2, given[0]), *given[1:], generator=generator)
        return (given.double() if given.is_floating_point() else given).to(device)

    args, kwargs = arguments(example_inputs, numbers)
    before, after = (tensors(copied(m).double().eval()(*args, **kwargs)) for m in (model, result))
    for a, b in zip(before, after, strict=True):
        largest = torch.nan_to_num(a).abs().max().item() if a.numel() else 0.0
        if not torch.allclose(b, a, rtol=0, atol=_SAME * largest, equal_nan=True):
            raise ValueError(
                f"the permuted network computes something else (outputs differ by {(a - b).abs().max().item():.3g} of "
                f"{largest:.3g}): the model treats channels by their place, as group normalisation does, so not all of "
                "these can be exchanged"
            )
