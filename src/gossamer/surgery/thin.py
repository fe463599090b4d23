"""The depth multiplier (section 3.1): the same network with fewer channels in every layer."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from gossamer.connectivity import check_density
from gossamer.graph.channels import CONSTANT, ChannelGraph, LayerCall, training_graph
from gossamer.graph.classes import Classes, ranked
from gossamer.graph.state import copied
from gossamer.graph.tracing import Inputs
from gossamer.layers import SparseConv2d


def thin(model: nn.Module, multiplier: float, example_inputs: Inputs | None = None, *, divisor: int = 1) -> nn.Module:
    """A copy of the model with `multiplier` in (0, 1] of the channels of every convolution (section 3.1).

    A layer of d channels keeps ceil(d * multiplier); with a `divisor` above 1, max(divisor, divisor * floor(d *
    multiplier / divisor)), which reproduces Table 1 with 8. Channels coupled by sums shrink together; the image's
    channels and the classes stay, and so do fully connected layers that only lead to the classifier. A grouped
    convolution keeps its groups while each has two channels, a depthwise one stays depthwise. Weights are the leading ones of
    the model, scaled to the smaller fan-in, so that a fresh initialisation stays one. A sparse layer is drawn anew, at
    its density and, as far as they fit, in its blocks.

    `example_inputs` is a tensor, a tuple of them, or one image's (channels, height, width); by default the model's
    `input_shape`. Raises ValueError naming the layer and the reason where a model cannot be followed or its code
    fixes a number of channels.
    """
    check_density(multiplier, "multiplier")
    if not isinstance(divisor, int) or divisor < 1:
        raise ValueError(f"divisor must be a positive integer, got {divisor!r}")
    example_inputs = getattr(model, "input_shape", None) if example_inputs is None else example_inputs
    if example_inputs is None:
        raise ValueError("thin needs example inputs: this model has no input_shape")
    graph, training = training_graph(model, example_inputs)
    plan = Plan(graph, multiplier, divisor, divided=False)
    try:
        return _thinned(model, plan, example_inputs, training)
    except ValueError:  # an axis that is cut into parts may need sizes that the parts divide
        plan = Plan(graph, multiplier, divisor, divided=True)
        try:
            return _thinned(model, plan, example_inputs, training)
        except ValueError as error:
            raise ValueError(f"cannot thin this model by {multiplier:g}: {error}") from error


class Plan:
    """How many channels stay, for every axis of every parameter.

    Channels come in *classes* (those that must stay together), and classes in *atoms*: all classes that the same layers
    produce. Each atom of N classes keeps K of them, and every axis follows: its size is the sum over its channels of
    their atom's K / N.
    """

    def __init__(self, graph: ChannelGraph, multiplier: float, divisor: int, divided: bool) -> None:
        self.graph = graph
        self.layers: dict[str, LayerCall] = {}
        for call in graph.layers:
            self.layers.setdefault(call.weight, call)
        classes = Classes(graph)
        self.made_by = classes.made_by(call for call in graph.layers if not call.depthwise)
        _, atom = np.unique(self.made_by, return_inverse=True)
        _, _, self.before, rank = ranked(atom.ravel())
        self.classes = classes.of  # of every node, as are the atoms and the rank within the atom
        self.atom, self.rank = atom.ravel()[self.classes], rank[self.classes]
        fixed = self._fixed()
        self.groups = {w: self._groups(call, multiplier, fixed) for w, call in self.layers.items()}
        multiples = self._multiples(divided)
        self.after = np.array(
            [
                n if fix else _size(int(n), multiplier, divisor, int(q))
                for n, fix, q in zip(self.before, fixed, multiples, strict=True)
            ]
        )

    def size(self, nodes: np.ndarray, what: str) -> int:
        """How long an axis with these channels becomes."""
        real = nodes[nodes != CONSTANT]
        share = self.after / self.before
        size = float(share[self.atom[real]].sum()) + (len(nodes) - len(real))
        if abs(size - round(size)) > 1e-6:
            raise ValueError(
                f"{what} would get {size:.2f} channels: its {len(nodes)} are cut in a way that does not fit"
            )
        return round(size)

    def kept(self, nodes: np.ndarray, what: str) -> np.ndarray:
        """The positions of an axis that stay: where whole classes can be told apart those of the leading classes."""
        size = self.size(nodes, what)
        stays = (nodes == CONSTANT) | (self.rank[nodes] < self.after[self.atom[nodes]])
        return np.flatnonzero(stays) if stays.sum() == size else np.arange(size)

    def _fixed(self) -> np.ndarray:
        """Atoms whose size must not change: the image, the classes, what no layer makes, and heads."""
        graph = self.graph
        fixed = np.ones(len(self.before), dtype=np.bool_)
        for call in self.layers.values():
            fixed[self.atom[call.outputs]] = False
        leads = self._leads_to_convolution()
        for call in self.layers.values():
            if call.kind == "linear" and not leads[graph.classes[call.outputs]].any():
                fixed[self.atom[call.outputs]] = True
        fixed[self.atom[graph.image]] = True
        fixed[self.atom[graph.prediction]] = True
        return fixed

    def _leads_to_convolution(self) -> np.ndarray:
        """For each class, whether a convolution makes it or anything computed from it."""
        graph = self.graph
        leads = np.zeros(graph.size, dtype=np.bool_)
        for call in self.layers.values():
            if call.kind == "conv":
                leads[graph.classes[call.outputs]] = True
        inside = [c for c in self.layers.values() if c.kind == "linear"]
        for call in reversed(inside):
            if leads[graph.classes[call.outputs]].any():
                leads[graph.classes[call.inputs[call.inputs != CONSTANT]]] = True
        return leads

    def _groups(self, call: LayerCall, multiplier: float, fixed: np.ndarray) -> int:
        if call.depthwise:
            return 0  # as many as inputs, once those are known
        width = len(call.inputs) // call.groups
        if call.groups == 1 or fixed[self.atom[call.inputs]].any() or multiplier * width > 1:
            return call.groups
        return math.ceil(multiplier * len(call.inputs) / 2 - 1e-9)  # pairs: with one channel each it would be depthwise

    def _multiples(self, divided: bool) -> np.ndarray:
        """What each atom's size must be a multiple of, so that groups (and, if `divided`, other parts) come out equal."""
        cuts = [
            (nodes, self.groups[weight])
            for weight, call in self.layers.items()
            if self.groups[weight] > 1
            for nodes in (call.inputs, call.outputs)
        ]
        multiples = np.ones(len(self.before), dtype=np.int64)
        for nodes, parts in cuts + (self.graph.divided if divided else []):
            there = np.bincount(self.atom[nodes[nodes != CONSTANT]], minlength=len(self.before))
            touched = np.flatnonzero(there)
            pieces = np.maximum(1, self.before[touched] // there[touched]) if divided else 1  # the axis may hold a part
            multiples[touched] = np.lcm(multiples[touched], parts * pieces)
        return multiples


def _size(channels: int, multiplier: float, divisor: int, multiple: int) -> int:
    if divisor > 1:
        size = max(divisor, divisor * math.floor(channels * multiplier / divisor + 1e-9))
    else:
        size = math.ceil(channels * multiplier - 1e-9)
    return min(channels, multiple * math.ceil(size / multiple))


# -- applying a plan ---------------------------------------------------------------------------------------------------


def _thinned(model: nn.Module, plan: Plan, example_inputs: Inputs, training: bool) -> nn.Module:
    small = copied(model)
    for weight, call in plan.layers.items():
        _shrink_layer(small.get_submodule(call.name), weight.rpartition(".")[2], call, plan)
    for name, nodes in plan.graph.parameters.items():
        _shrink_parameter(small, name, nodes, plan)
    _verify(small, plan, example_inputs, training)
    return small


@torch.no_grad()
def _shrink_layer(layer: nn.Module, name: str, call: LayerCall, plan: Plan) -> None:
    outputs = plan.kept(call.outputs, f"the output of {call.name!r}")
    inputs = plan.kept(call.inputs, f"the input of {call.name!r}")
    groups = plan.groups[call.weight] or len(inputs)
    if len(inputs) % groups or len(outputs) % groups:
        raise ValueError(f"{call.name!r} would get {len(inputs)} -> {len(outputs)} channels in {groups} groups")
    if isinstance(layer, SparseConv2d):
        return _redraw(layer, len(inputs), len(outputs), groups)
    weight: nn.Parameter = getattr(layer, name)
    width, old_width = len(inputs) // groups, weight.shape[1]
    columns = inputs if call.groups == 1 else np.arange(width)
    small = weight[torch.from_numpy(outputs)][:, torch.from_numpy(columns)]
    weight.data = small.mul(math.sqrt(old_width / width)).contiguous()
    for attribute, value in (
        ("in_channels", len(inputs)),
        ("out_channels", len(outputs)),
        ("groups", groups),
        ("in_features", len(inputs)),
        ("out_features", len(outputs)),
    ):
        if hasattr(layer, attribute):
            setattr(layer, attribute, value)


def _redraw(layer: SparseConv2d, inputs: int, outputs: int, groups: int) -> None:
    old = layer.connectivity
    layer.in_channels, layer.out_channels, layer.groups = inputs, outputs, groups
    new = old.redrawn(inputs, outputs, old.density, groups=groups)
    layer.replace_connectivity(new, layer.weight.new_empty(new.connections, *layer.kernel_size))
    bias = layer.bias
    if bias is not None:
        bias.data = bias[:outputs].clone()
    layer.reset_parameters()


@torch.no_grad()
def _shrink_parameter(model: nn.Module, name: str, nodes: np.ndarray, plan: Plan) -> None:
    """Shrink every axis of a bias, a normalisation or a free parameter that belongs to channels."""
    owner_name, _, own = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    tensor: torch.Tensor = getattr(owner, own)
    if isinstance(owner, SparseConv2d) or not (plan.after < plan.before)[plan.atom[nodes.ravel()]].any():
        return
    classes = plan.graph.classes[nodes]
    varying = [a for a in range(nodes.ndim) if (classes != np.take(classes, [0], a)).any()]
    if len(varying) != 1:
        raise ValueError(f"the parameter {name!r} of shape {list(nodes.shape)} holds channels on {len(varying)} axes")
    axis = varying[0]
    along = np.moveaxis(nodes, axis, 0).reshape(nodes.shape[axis], -1)[:, 0]
    tensor.data = tensor.index_select(axis, torch.from_numpy(plan.kept(along, repr(name))).to(tensor.device))
    size = tensor.shape[axis]
    for attribute in ("num_features", "num_channels"):
        if isinstance(getattr(owner, attribute, None), int):
            setattr(owner, attribute, size)
    if isinstance(getattr(owner, "normalized_shape", None), tuple):
        setattr(owner, "normalized_shape", tuple(tensor.shape))  # noqa: B010 - nn.Module types it as a tensor


def _verify(small: nn.Module, plan: Plan, example_inputs: Inputs, training: bool) -> None:
    """Run the thinned model's own code and compare what feeds every layer with the plan: nothing may differ in silence."""
    graph = ChannelGraph.of(small, example_inputs, training)
    before, after = list(plan.graph.layers), list(graph.layers)
    if [c.name for c in before] != [c.name for c in after] or len(graph.prediction) != len(plan.graph.prediction):
        raise ValueError("the thinned model computes other layers than the original")
    thinned = Classes(graph)
    made_by = thinned.made_by(call for call in graph.layers if not call.depthwise)
    for old, new in zip(before, after, strict=True):
        share = (plan.after / plan.before)[plan.atom[old.inputs]]
        share[old.inputs == CONSTANT] = 1
        wanted = _tally(plan.made_by[plan.classes[old.inputs]], share)
        found = _tally(made_by[thinned.of[new.inputs]], np.ones(len(new.inputs)))
        for key in wanted.keys() | found.keys():
            if abs(wanted.get(key, 0) - found.get(key, 0)) > max(2.0, 0.1 * len(new.inputs)):
                raise ValueError(
                    f"{old.name!r} would listen to other channels than before: the model's code fixes a number of channels"
                )


def _tally(keys: np.ndarray, values: Iterable[float]) -> dict[int, float]:
    unique, inverse = np.unique(keys, return_inverse=True)
    sums = np.bincount(inverse.ravel(), weights=np.asarray(list(values)), minlength=len(unique))
    return dict(zip(unique.tolist(), sums.tolist(), strict=True))
