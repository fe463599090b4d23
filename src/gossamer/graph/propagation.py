"""Channel nodes followed through the operators of a trace: how a `ChannelGraph` is drawn.

Every tensor gets a *label* tensor of its own shape that names the node of each element. Operators that only move data run on
the labels themselves, so `cat`, `view`, `chunk`, channel shuffle and their like need no rules (`labels`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from gossamer.graph.labels import along, compact, concatenated, constant_along, core, restore
from gossamer.graph.nodes import CONSTANT, Join, LayerCall
from gossamer.graph.tracing import Call, Trace
from gossamer.graph.uses import Use, Uses
from gossamer.layers import SparseConv2d

_MOVES = frozenset(
    """_unsafe_view alias cat channel_shuffle clone contiguous detach expand flatten flip lift_fresh narrow
    native_channel_shuffle permute pixel_shuffle pixel_unshuffle positive repeat reshape roll select slice split
    split_with_sizes squeeze stack t transpose unbind unsqueeze view""".split()
)
_RESHAPES = frozenset("_unsafe_view clone contiguous lift_fresh reshape view".split())
_VIEWS_OF_A_PART = frozenset("narrow select slice split split_with_sizes unbind".split())
_PLANES = frozenset(
    """_adaptive_avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d avg_pool2d max_pool2d max_pool2d_with_indices
    reflection_pad2d replication_pad2d upsample_bicubic2d upsample_bilinear2d upsample_nearest2d
    _upsample_bilinear2d_aa _upsample_nearest_exact2d""".split()
)
_REDUCTIONS = frozenset("amax amin linalg_vector_norm max mean min std sum var var_mean".split())
_SAME = frozenset(
    """_log_softmax _softmax _to_copy as_strided_ bernoulli bernoulli_ celu elu hardswish hardswish_ hardtanh hardtanh_
    native_dropout rrelu_with_noise""".split()
)
_NORMS = frozenset(
    """_fused_rms_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm
    native_batch_norm native_group_norm native_layer_norm""".split()
)
_FACTORIES = frozenset(
    """empty_like full_like new_empty new_empty_strided new_full new_ones new_zeros ones_like rand_like randn_like
    zeros_like""".split()
)
_LARGEST_MOVED_PARAMETER = 1 << 22  # elements; larger ones are matrices, followed only through a transposition


def propagate(model: nn.Module, trace: Trace) -> dict[str, Any]:
    """The fields of the `ChannelGraph` of a traced model."""
    return _Propagation(model, trace).run()


class _Propagation:
    def __init__(self, model: nn.Module, trace: Trace) -> None:
        self.trace = trace
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.labels: dict[int, Tensor] = {}
        self.layers = Uses.of(trace)
        self.parts: set[int] = set()
        self.parameters: dict[str, Tensor] = {}
        self.size = 0
        self.of_parameter: list[tuple[int, int]] = []  # node ranges that belong to parameters
        self.steps: list[LayerCall | Join] = []
        self.ties: list[np.ndarray] = []
        self.divided: list[tuple[np.ndarray, int]] = []
        self.uses: dict[str, LayerCall] = {}
        self.call: Call | None = None

    def run(self) -> dict[str, Any]:
        for tensor in self.trace.inputs:
            if tensor.dim() > 0:
                axis = self._channel_axis(tensor)
                self._set(tensor, along(self._new(tensor.shape[axis]), axis, tensor.shape))
        image = np.arange(self.size)
        for call in self.trace.calls:
            self.call = call
            self._follow(call)
        self.call = None
        outputs = [self._get(t) for t in self.trace.outputs]
        prediction = np.unique(np.concatenate([core([t])[0].ravel() for t in outputs])) if outputs else image[:0]
        if not (prediction != CONSTANT).any():
            raise ValueError("no channel of the model reaches its output: there is nothing to follow")
        return {
            "size": self.size,
            "image": image,
            "prediction": prediction[prediction != CONSTANT],
            "steps": self.steps,
            "parameters": {name: labels.numpy() for name, labels in self.parameters.items()},
            "ties": np.concatenate(self.ties) if self.ties else np.zeros((0, 2), np.int64),
            "divided": self.divided,
        }

    def _channel_axis(self, image: Tensor) -> int:
        """The second axis, but for a vector and for an image without a batch, which is given one first."""
        first = next((call for call in self.trace.calls if any(t is image for t in call.inputs)), None)
        alone = image.dim() == 3 and first is not None and first.name == "aten.unsqueeze" and first.args[1] == 0
        return 0 if image.dim() == 1 or alone else 1

    # -- one operator ----------------------------------------------------------------------------------------------------

    def _follow(self, call: Call) -> None:
        space, _, name = call.name.partition(".")
        plain = name.rstrip("_")
        if space == "gossamer":
            return self._layer(call)
        if not call.inputs or plain in _FACTORIES:
            return self._constant(call)
        rule = _RULES.get(plain) or _RULES.get(name)
        if rule is not None:
            return rule(self, call)
        if torch.Tag.pointwise in call.operator.tags:
            return self._pointwise(call)
        if all(self._is_constant(t) for t in call.inputs):
            return self._constant(call)
        self._fail(f"the operator {call.name}, whose output channels it cannot derive")

    def _constant(self, call: Call) -> None:
        for output in call.outputs:
            self._set(output, torch.tensor(CONSTANT).expand(output.shape))

    def _same(self, call: Call) -> None:
        for output in call.outputs:
            like = output.shape == call.inputs[0].shape and output.is_floating_point()
            labels = self._get(call.inputs[0]) if like else torch.tensor(CONSTANT)
            self._set(output, labels.expand(output.shape))

    def _moved(self, call: Call) -> None:
        first = call.inputs[0]
        name = call.name.partition(".")[2]
        if any(id(t) in self.layers.weights for t in call.outputs):
            return
        arguments = tree_map(lambda a: self._get(a) if isinstance(a, Tensor) else a, call.args)
        if name in _RESHAPES:
            moved: Any = arguments[0].reshape(call.output.shape)
            self._note_division(first, call.output)
        elif name == "cat":
            moved = concatenated(*arguments)
        else:
            moved = call.operator(*arguments, **call.kwargs)
        if name in ("split", "split_with_sizes", "unbind"):
            self._note_parts(first, len(call.outputs))
        for output, labels in zip(call.outputs, tree_leaves(moved), strict=True):
            self._set(output, labels)
            if name in _VIEWS_OF_A_PART:
                self.parts.add(id(output))

    def _padded(self, call: Call) -> None:
        labels, pads = self._get(call.args[0]), list(call.args[1])
        shape = call.output.shape
        for k in range(len(pads) // 2):
            axis = labels.dim() - 1 - k
            if labels.stride(axis) == 0 or labels.shape[axis] == 1:  # the same node all along: padding adds none
                labels = labels.narrow(axis, 0, 1).expand(*labels.shape[:axis], shape[axis], *labels.shape[axis + 1 :])
            else:
                before, after = pads[2 * k : 2 * k + 2]
                labels = F.pad(labels.movedim(axis, -1), (before, after), value=CONSTANT).movedim(-1, axis)
        self._set(call.output, labels)

    def _plane(self, call: Call) -> None:
        labels = self._get(call.inputs[0])
        if any(labels.shape[axis] > 1 and labels.stride(axis) for axis in (-1, -2)):
            self._fail(f"{call.name} over an axis that holds channels")
        corner = labels.narrow(-1, 0, 1).narrow(-2, 0, 1)
        for output in call.outputs:
            self._set(output, corner.expand(output.shape))

    def _reduced(self, call: Call) -> None:
        if len(call.inputs) > 1:  # the elementwise maximum of two tensors
            return self._pointwise(call)
        labels = self._get(call.inputs[0])
        axes = _reduced_axes(call, labels.dim())
        for axis in axes:
            labels = labels.narrow(axis, 0, 1) if constant_along(labels, axis) else labels
        if any(labels.shape[axis] > 1 for axis in axes):
            labels = self._mixed(labels, axes)
        for output in call.outputs:
            kept = output.dim() == labels.dim()
            self._set(output, labels if kept else labels.squeeze(axes))

    def _mixed(self, labels: Tensor, axes: tuple[int, ...]) -> Tensor:
        """One new node that depends on all channels of the reduced axes."""
        values, varying = core([labels])
        if not set(varying) <= set(axes):
            self._fail("a reduction over some of the axes that hold channels")
        parents = np.unique(values[values != CONSTANT])
        node = self._new(1)
        self.steps.append(Join(np.full(len(parents), int(node)), parents))
        return node.expand([1 if a in axes else n for a, n in enumerate(labels.shape)])

    def _normalised(self, call: Call) -> None:
        x = call.args[0]
        labels = self._get(x)
        over_last_axes = call.name.endswith(("layer_norm", "rms_norm"))
        if call.name.endswith("group_norm"):
            self._note_parts(x, int(call.args[6]))
        for parameter in call.inputs[1:]:
            if self._parameter(parameter) is None:
                self._fail("a normalisation whose weights are computed")
            own = self._get(parameter)
            if not over_last_axes:
                own = own.reshape(-1, *[1] * (x.dim() - 2))
            self._tie([labels, own.expand(x.shape)])
        self._set(call.outputs[0], labels)  # the others, saved statistics, are never used

    def _pointwise(self, call: Call) -> None:
        shape = call.outputs[0].shape
        operands = [self._get(t).expand(shape) for t in call.inputs if not self._is_constant(t)]
        if not operands:
            return self._constant(call)
        data = [t for t in operands if not self._belongs_to_parameters(t)]
        self._tie(operands)
        labels = self._joined(data, shape) if data else operands[0]
        for output in call.outputs:
            self._set(output, labels)
        if call.name.endswith("_") and not call.name.endswith("__"):
            changed = call.inputs[0]
            if id(changed) in self.parts and not torch.equal(self._get(changed), labels):
                self._fail(f"{call.name} writing into a part of another tensor")
            self._set(changed, labels)

    def _joined(self, operands: list[Tensor], shape: Sequence[int]) -> Tensor:
        """Nodes that depend on those of every operand; where all agree, the node itself."""
        values, axes = core(operands)
        rows = np.sort(values.reshape(len(operands), -1).T, axis=1)
        same = (rows == rows[:, -1:]) | (rows == CONSTANT)
        result = rows[:, -1].copy()
        mixed = np.flatnonzero(~same.all(1))
        if mixed.size:
            kinds, inverse = np.unique(rows[mixed], axis=0, return_inverse=True)
            children = self._new(len(kinds)).numpy()
            result[mixed] = children[inverse.ravel()]
            child, parent = np.repeat(children, len(operands)), kinds.ravel()
            keep = parent != CONSTANT
            self.steps.append(Join(child[keep], parent[keep]))
            varying = [k for k, t in enumerate(operands) if self._varies(t, axes)]
            for k in varying:  # the child goes with every operand that has channels of its own
                pairs = np.stack([result, values[k].ravel()], 1)[mixed]
                self.ties.append(pairs[pairs[:, 1] != CONSTANT])
        return restore(torch.from_numpy(result), axes, shape)

    def _tie(self, operands: list[Tensor]) -> None:
        """Couple the nodes that meet in one element, except those of an operand broadcast over the channels."""
        values, axes = core(operands)
        varying = [values[k].ravel() for k, t in enumerate(operands) if self._varies(t, axes)]
        for other in varying[1:]:
            pairs = np.unique(np.stack([varying[0], other], 1), axis=0)
            self.ties.append(pairs[(pairs[:, 0] != pairs[:, 1]) & (pairs != CONSTANT).all(1)])

    def _varies(self, labels: Tensor, axes: list[int]) -> bool:
        return all(labels.stride(a) != 0 or labels.shape[a] == 1 for a in axes)

    # -- layers ----------------------------------------------------------------------------------------------------------

    def _layer(self, call: Call) -> None:
        use = self.layers.get(call)
        if use is None:
            self._fail("a matrix product of two activations")
        if use.transposed:
            self._fail("a transposed convolution")
        name, x, weight = self._parameter(use.weight), use.input, use.weight
        sparse = self._sparse_layer(use)
        if not use.whole or name is None or name in self.parameters:
            self._fail("a weight that is computed in the forward pass")
        axis = 1 if use.kind == "conv" else x.dim() - 1
        labels = self._get(x)
        if any(a != axis and n > 1 and labels.stride(a) for a, n in enumerate(x.shape)):
            self._fail("channels that depend on the position in the image")
        inputs = core([labels], [axis])[0].ravel()
        outputs = self._new(sparse.out_channels if sparse else weight.shape[0]).numpy()
        step = LayerCall(use.name, name, use.kind, inputs, outputs, use.groups, sparse.connectivity if sparse else None)
        self.steps.append(step)
        self._couple(step)
        made = torch.from_numpy(outputs)
        if use.bias is not None and self._parameter(use.bias) is not None:
            self._tie([made, self._get(use.bias)])
        self._set(call.output, along(made, axis, call.output.shape))

    def _couple(self, step: LayerCall) -> None:
        """A depthwise convolution's channels go with its inputs'; the uses of a shared layer go together."""
        pairs = []
        if step.depthwise:
            pairs.append((step.outputs, np.repeat(step.inputs, len(step.outputs) // len(step.inputs))))
        first = self.uses.setdefault(step.weight, step)
        if first is not step:
            pairs += [(step.outputs, first.outputs), (step.inputs, first.inputs)]
        for one, other in pairs:
            both = np.stack([one, other], 1)
            self.ties.append(both[(both != CONSTANT).all(1)])

    # -- helpers ---------------------------------------------------------------------------------------------------------

    def _new(self, count: int) -> Tensor:
        self.size += count
        return torch.arange(self.size - count, self.size)

    def _set(self, tensor: Tensor, labels: Tensor) -> None:
        if labels.shape != tensor.shape:
            labels = labels.expand(tensor.shape)
        self.labels[id(tensor)] = compact(labels)

    def _get(self, tensor: Tensor) -> Tensor:
        labels = self.labels.get(id(tensor))
        if labels is not None:
            return labels
        name = self._parameter(tensor)
        if name is None:
            if tensor.numel() > 1 and id(tensor) in self.layers.weights:
                self._fail("a weight that is used other than in its layer")
            return torch.tensor(CONSTANT).expand(tensor.shape)
        if tensor.numel() <= 1 or not (tensor.is_floating_point() or tensor.is_complex()):
            return torch.tensor(CONSTANT).expand(tensor.shape)
        if tensor.numel() > _LARGEST_MOVED_PARAMETER or name in self.uses:
            self._fail(f"the parameter {name!r} used in a way that is not a convolution or a linear layer")
        start = self.size
        self.parameters[name] = self.labels[id(tensor)] = self._new(tensor.numel()).reshape(tensor.shape)
        self.of_parameter.append((start, self.size))
        return self.labels[id(tensor)]

    def _parameter(self, tensor: Tensor) -> str | None:
        return self.trace.parameter(tensor)

    def _sparse_layer(self, use: Use) -> SparseConv2d | None:
        module = self.modules.get(use.name)
        return (
            module
            if isinstance(module, SparseConv2d) and self._parameter(use.weight) == f"{use.name}.weight".lstrip(".")
            else None
        )

    def _is_constant(self, tensor: Tensor) -> bool:
        labels = self._get(tensor)
        return bool((core([labels])[0] == CONSTANT).all())

    def _belongs_to_parameters(self, labels: Tensor) -> bool:
        first = int(labels[(0,) * labels.dim()]) if labels.numel() else CONSTANT
        return any(start <= first < end for start, end in self.of_parameter)

    def _note_parts(self, tensor: Tensor, parts: int) -> None:
        labels = self._get(tensor)
        nodes = np.unique(core([labels])[0])
        if parts > 1 and len(nodes) > 1:
            self.divided.append((nodes[nodes != CONSTANT], parts))

    def _note_division(self, before: Tensor, after: Tensor) -> None:
        """A view that cuts the channel axis into (parts, rest), as channel shuffle does."""
        if before.dim() > 1 and after.dim() > before.dim() and after.shape[1] * after.shape[2] == before.shape[1]:
            self._note_parts(before, after.shape[1])

    def _fail(self, what: str) -> NoReturn:
        where = repr(self.call.module) if self.call is not None and self.call.module else "the model"
        raise ValueError(f"cannot follow the channels through {where}: it has {what}")


_RULES: dict[str, Callable[[_Propagation, Call], None]] = {
    **dict.fromkeys(_MOVES, _Propagation._moved),
    **dict.fromkeys(_PLANES, _Propagation._plane),
    **dict.fromkeys(_REDUCTIONS, _Propagation._reduced),
    **dict.fromkeys(_SAME, _Propagation._same),
    **dict.fromkeys(_NORMS, _Propagation._normalised),
    **dict.fromkeys(("convolution", "mm", "addmm", "linear"), _Propagation._layer),
    "constant_pad_nd": _Propagation._padded,
}


def _reduced_axes(call: Call, dims: int) -> tuple[int, ...]:
    """The axes that a reduction runs over: one, several, or all."""
    position = 2 if call.name == "aten.linalg_vector_norm" else 1
    given = call.args[position] if len(call.args) > position else call.kwargs.get("dim")
    axes = [given] if isinstance(given, int) else given or range(dims)
    return tuple(axis % dims for axis in axes)
