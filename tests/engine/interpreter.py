"""A program's operations in plain PyTorch, as `docs/program.md` defines them: what graphs must agree with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.engine.ir import Activation, Graph, Operation, Value


def run(graph: Graph, *inputs: Tensor) -> list[Tensor]:
    """The outputs, each [n, *shape]; images run one by one."""
    images = [_image(graph, [x[i] for x in inputs]) for i in range(inputs[0].shape[0])]
    return [torch.stack(outputs) for outputs in zip(*images, strict=True)]


def _image(graph: Graph, inputs: Sequence[Tensor]) -> list[Tensor]:
    values = {v: torch.from_numpy(array) for v, array in graph.constants.items()}
    for port, x in zip(graph.inputs, inputs, strict=True):
        values[port.value] = x.reshape(port.value.shape)
    for operation in graph.operations:
        assert operation.output not in values
        values[operation.output] = step(operation, values)
    return [values[p.value].reshape(p.shape) for p in graph.outputs]


def step(operation: Operation, values: Mapping[Value, Tensor]) -> Tensor:
    """What one operation computes, [c, h, w]."""
    given = [values[v] for v in operation.inputs]
    for value, tensor in zip(operation.inputs, given, strict=True):
        assert tensor.shape == value.shape, operation
    tensors = {role: torch.from_numpy(array) for role, array in operation.tensors.items()}
    output = KINDS[operation.kind](operation, given, tensors)
    assert output.shape == operation.output.shape, operation
    return output


def activated(x: Tensor, activation: Activation | None) -> Tensor:
    return x if activation is None else FUNCTIONS[activation.function](x, **dict(activation.parameters))


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "clamp": torch.clamp,
    "leaky_relu": lambda x, slope: F.leaky_relu(x, slope),
    "elu": lambda x, alpha, scale=1.0, rate=1.0: scale * torch.where(x > 0, x, alpha * torch.expm1(rate * x)),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "softplus": F.softplus,
    **{name: getattr(F, name) for name in "relu silu gelu hardsigmoid hardswish mish softsign logsigmoid".split()},
    **{name: getattr(torch, name) for name in "sigmoid tanh exp log sqrt rsqrt abs neg square".split()},
    **{name: getattr(torch, name) for name in "reciprocal erf sin cos floor".split()},
}


def _joined(operation: Operation, x: Tensor, given: Sequence[Tensor]) -> Tensor:
    """The residual and the activation."""
    if len(given) == 1:
        return activated(x, operation.activation)
    if operation.attributes.get("residual", "before") == "before":
        return activated(x + given[1].reshape(x.shape), operation.activation)
    return activated(x, operation.activation) + given[1].reshape(x.shape)


def _conv(operation: Operation, given: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
    a = operation.attributes
    top, left, bottom, right = a["padding"]
    x = F.pad(given[0][None], (left, right, top, bottom))
    stride, dilation = tuple(a["stride"]), tuple(a["dilation"])
    weight, groups = tensors["weight"], a.get("groups", 1)
    if "indptr" in tensors:
        rows = torch.repeat_interleave(tensors["indptr"].diff().long())
        weight = weight.new_zeros(operation.output.shape.c, x.shape[1], *weight.shape[1:])
        weight[rows, tensors["indices"].long()] = tensors["weight"]
    y = F.conv2d(x, weight, tensors.get("bias"), stride, 0, dilation, groups)
    return _joined(operation, y[0], given)


def _linear(operation: Operation, given: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
    x, weight = given[0], tensors["weight"]
    rows = x if weight.shape[1] == x.shape[2] and x.shape[0] * x.shape[1] > 1 else x.flatten()
    return _joined(operation, F.linear(rows, weight, tensors.get("bias")).reshape(operation.output.shape), given)


def _affine(operation: Operation, given: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
    scale = tensors.get("scale", torch.ones(1))[:, None, None]
    shift = tensors.get("shift", torch.zeros(1))[:, None, None]
    return activated(given[0] * scale + shift, operation.activation)


def _binary(operation: Operation, given: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
    a, b = given
    function = operation.attributes["function"]
    y = torch.where(a > 0, a, b * a) if function == "prelu" else getattr(torch, function)(a, b)
    return activated(y, operation.activation)


def _windows(operation: Operation, given: Sequence[Tensor]) -> Tensor:
    a, x = operation.attributes, given[0]
    (kh, kw), (sh, sw), (dh, dw), (top, left, _, _) = (a[k] for k in ("kernel", "stride", "dilation", "padding"))
    _, oh, ow = operation.output.shape
    _, h, w = x.shape
    bottom, right = (
        max(0, (oh - 1) * sh + (kh - 1) * dh + 1 - h - top),
        max(0, (ow - 1) * sw + (kw - 1) * dw + 1 - w - left),
    )
    if a["function"] == "max":
        wide = F.pad(x, (left, right, top, bottom), value=-torch.inf)
        return F.max_pool2d(wide[None], (kh, kw), (sh, sw), 0, (dh, dw))[0][:, :oh, :ow]
    wide = F.pad(x, (left, right, top, bottom))
    inside = F.pad(torch.ones(1, h, w), (left, right, top, bottom))
    if a.get("count_padding"):
        inside = F.pad(torch.ones(1, h + top + a["padding"][2], w + left + a["padding"][3]), (0, right, 0, bottom))
        inside = inside[:, : wide.shape[1], : wide.shape[2]]
    total, count = (
        F.avg_pool2d(t[None], (kh, kw), (sh, sw), divisor_override=1)[0][:, :oh, :ow] for t in (wide, inside)
    )
    return total / a.get("divisor", count)


def _pool(operation: Operation, given: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
    y = _windows(operation, given)
    y = y + tensors["shift"][:, None, None] if "shift" in tensors else y
    return activated(y, operation.activation)


def _adaptive_pool(operation: Operation, given: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
    pool = F.adaptive_max_pool2d if operation.attributes["function"] == "max" else F.adaptive_avg_pool2d
    return pool(given[0][None], tuple(operation.output.shape[1:]))[0]


def _reduce(operation: Operation, given: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
    function = {"mean": torch.mean, "sum": torch.sum, "max": torch.amax, "min": torch.amin}[
        operation.attributes["function"]
    ]
    return function(given[0], tuple(operation.attributes["axes"]), keepdim=True)


def _norm(operation: Operation, given: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
    a, x = operation.attributes, given[0]
    apart = x.reshape(a["groups"], -1) if a["over"] == "group" else x
    dim = {"group": 1, "channel": 0, "width": 2}[a["over"]]
    apart = apart - apart.mean(dim, keepdim=True) if a.get("center", True) else apart
    y = (apart / (apart.square().mean(dim, keepdim=True) + a["epsilon"]).sqrt()).reshape(x.shape)
    like = (-1,) if a["over"] == "width" else (-1, 1, 1)
    y = y * tensors["scale"].view(like) if "scale" in tensors else y
    return activated(y + tensors["shift"].view(like) if "shift" in tensors else y, operation.activation)


def _softmax(operation: Operation, given: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
    function = F.log_softmax if operation.attributes.get("log") else F.softmax
    return function(given[0], operation.attributes["axis"])


def _copy(operation: Operation, given: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
    a = operation.attributes
    at = torch.tensor(a["start"])
    for size, stride in zip(a["sizes"], a["strides"], strict=True):
        at = at[..., None] + torch.arange(size) * stride
    return given[0].flatten()[at.flatten()].reshape(operation.output.shape)


def _select(operation: Operation, given: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
    x, fill = given[0], operation.attributes.get("fill", 0.0)
    for axis, role in enumerate(("channels", "rows", "columns")):
        if role in tensors:
            places = tensors[role].long()
            x = x.index_select(axis, places.clamp(min=0))
            x[(slice(None),) * axis + (places < 0,)] = fill
    return x


def _resample(operation: Operation, given: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
    x = given[0]
    if "rows" in tensors:
        x = (x[:, tensors["rows"].long()] * tensors["row_weights"][:, :, None]).sum(2)
    if "columns" in tensors:
        x = (x[:, :, tensors["columns"].long()] * tensors["column_weights"]).sum(3)
    return x


def _matmul(operation: Operation, given: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
    a, b = given
    a = a.transpose(1, 2) if operation.attributes.get("transpose_a") else a
    b = b.transpose(1, 2) if operation.attributes.get("transpose_b") else b
    return (a @ b) * operation.attributes.get("scale", 1.0)


def _concat(operation: Operation, given: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat(list(given), operation.attributes["axis"])


def _slice(operation: Operation, given: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
    first = operation.attributes["first"]
    return given[0][first : first + operation.output.shape.c]


KINDS: dict[str, Callable[[Operation, Sequence[Tensor], Mapping[str, Tensor]], Tensor]] = {
    "conv": _conv,
    "linear": _linear,
    "affine": _affine,
    "binary": _binary,
    "pool": _pool,
    "adaptive_pool": _adaptive_pool,
    "reduce": _reduce,
    "norm": _norm,
    "softmax": _softmax,
    "copy": _copy,
    "select": _select,
    "resample": _resample,
    "matmul": _matmul,
    "concat": _concat,
    "slice": _slice,
}
