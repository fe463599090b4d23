"""What each PyTorch operator is in a program: a table from its name to a function that writes operations down.

A function takes the builder and the operator's arguments by name, and returns what the operator returns. Arguments
that are tensors are `Seen`, or plain tensors where they are constants (what has only constant arguments is computed at once,
elsewhere). Whoever cannot do something raises `MissingError` with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.engine.ir import Activation, Shape
from gossamer.engine.views import Arrangement, Builder, Seen, canonical, fresh, new_storage

Handler = Callable[..., Any]


class MissingError(Exception):
    """What a program cannot do, in words that follow the operator's name."""


# -- functions of one number -------------------------------------------------------------------------------------------

_PLAIN = {
    name: name
    for name in """relu silu hardswish hardsigmoid sigmoid tanh mish exp log sqrt rsqrt abs neg square reciprocal erf sin cos
    floor""".split()
} | {"log_sigmoid": "logsigmoid"}


def activate(b: Builder, x: Seen, function: str, **parameters: float) -> Seen:
    """A function of one number on every element, wherever it lies."""
    activation = Activation(function, tuple((k, float(v)) for k, v in parameters.items()))
    return elementwise(b, x, activation=activation)


def elementwise(
    b: Builder, x: Seen, scale: float | None = None, shift: float | None = None, activation: Activation | None = None
) -> Seen:
    """activation(x * scale + shift) on every element, wherever it lies."""
    value = x.value if x.whole else b.planes(x)
    tensors = {
        role: None if number is None else torch.full((value.shape.c,), float(number))
        for role, number in (("scale", scale), ("shift", shift))
    }
    output = b.emit("affine", [value], value.shape, {}, tensors, activation)
    return Seen(output, x.view, new_storage()) if x.whole else fresh(output, x.shape)


def clamp(b: Builder, x: Seen, low: float | None, high: float | None) -> Seen:
    bounds = {"min": low, "max": high}
    if any(isinstance(v, (Seen, Tensor)) and not _is_number(v) for v in bounds.values()):
        raise MissingError("with tensors as bounds")
    return activate(b, x, "clamp", **{k: float(v) for k, v in bounds.items() if v is not None})


def gelu(b: Builder, x: Seen, approximate: str) -> Seen:
    return activate(b, x, "gelu" if approximate == "none" else "gelu_tanh")


def elu(b: Builder, x: Seen, alpha: float, scale: float, input_scale: float) -> Seen:
    return activate(b, x, "elu", alpha=alpha, scale=scale, rate=input_scale)


def prelu(b: Builder, x: Seen, weight: Tensor) -> Seen:
    if isinstance(weight, Seen):
        raise MissingError("with slopes that are computed")
    return binary(b, "prelu", x, weight.reshape(1, -1, *[1] * (len(x.shape) - 2)))


def softmax(b: Builder, x: Seen, dim: int, log: bool = False) -> Seen:
    if dim % len(x.shape) == 0:
        raise MissingError("over the batch")
    planes, arrangement = b.in_place_order(x)
    axis = arrangement.axis(dim)
    if axis is None:
        planes, arrangement = b.with_channels(x, dim)
        axis = 0
    attributes = {"axis": axis, **({"log": True} if log else {})}
    return arrangement.seen(b.emit("softmax", [planes], planes.shape, attributes))


def glu(b: Builder, x: Seen, dim: int) -> Seen:
    one, gate = x.view.chunk(2, dim)
    return binary(b, "mul", x.through(one), activate(b, x.through(gate), "sigmoid"))


# -- functions of two --------------------------------------------------------------------------------------------------


def binary(b: Builder, function: str, x: Any, y: Any) -> Seen:
    """`function` of two tensors, broadcast as PyTorch does; either may be a constant or a number."""
    x, y = _number(x), _number(y)
    if isinstance(x, float) or isinstance(y, float):
        simple = _with_number(b, function, x, y)
        if simple is not None:
            return simple
        x, y = (torch.tensor(v) if isinstance(v, float) else v for v in (x, y))
    if _alike(x, y):
        return Seen(b.emit("binary", [x.value, y.value], x.value.shape, {"function": function}), x.view, new_storage())
    shape = torch.broadcast_shapes(x.shape, y.shape)
    if shape[:1] != (1,):
        raise MissingError(f"of shape {list(shape)}, whose first dimension is not the batch")
    for operand in (x, y):
        if isinstance(operand, Seen) and len(operand.shape) != len(shape) and operand.view.numel() != 1:
            raise MissingError("between an activation with fewer dimensions and one with more")
    big = max((v for v in (x, y) if isinstance(v, Seen)), key=lambda v: (len(v.shape), v.view.numel()))
    order: Sequence[int] = range(1, len(shape))
    if len(big.shape) == len(shape):
        order = b.in_place_order(big)[1].order
    arrangement = Arrangement(tuple(order), tuple(shape))
    operands = [_arranged(b, v, arrangement) for v in (x, y)]
    per_channel = _as_affine(b, function, x, y, operands, arrangement)
    if per_channel is not None:
        return per_channel
    return arrangement.seen(b.emit("binary", operands, arrangement.planes, {"function": function}))


def _arranged(b: Builder, operand: Any, arrangement: Arrangement) -> Any:
    """One operand's planes, in the arrangement of the result: sizes are the result's or 1."""
    rank = len(arrangement.shape)
    tensor = operand.view if isinstance(operand, Seen) else operand
    tensor = tensor.reshape([1] * (rank - tensor.dim()) + list(tensor.shape))
    sizes = tuple(tensor.shape)
    inner = arrangement.order[:-2] if rank > 4 else ()
    if any(sizes[d] != arrangement.shape[d] for d in inner) and any(sizes[d] != 1 for d in inner):
        tensor = tensor.expand([arrangement.shape[d] if d in inner else n for d, n in enumerate(sizes)])
    own = Arrangement(arrangement.order, tuple(tensor.shape))
    tensor = tensor.permute(0, *arrangement.order)
    return b.planes(operand.through(tensor) if isinstance(operand, Seen) else tensor, own.planes)


def _as_affine(b: Builder, function: str, x: Any, y: Any, operands: list[Any], arrangement: Arrangement) -> Seen | None:
    """A sum or product with one constant for each channel."""
    c, h, w = arrangement.planes
    which = next((i for i, v in enumerate((x, y)) if isinstance(v, Tensor)), None)
    if which is None or operands[which].shape != (c, 1, 1) or operands[1 - which].shape != (c, h, w):
        return None
    constant = torch.from_numpy(b.constants[operands[which]].reshape(c))
    scale, shift = _line(function, constant, which == 1)
    if scale is None and shift is None:
        return None
    del b.constants[operands[which]]
    tensors = {"scale": scale, "shift": shift}
    return arrangement.seen(b.emit("affine", [operands[1 - which]], (c, h, w), {}, tensors))


def _line(function: str, constant: Any, second: bool) -> tuple[Any, Any]:
    """(scale, shift) with which `function` of an activation and a constant is a straight line, if it is one."""
    if function == "add":
        return None, constant
    if function == "mul":
        return constant, None
    if function == "sub":
        return (None, -constant) if second else (constant * 0 - 1, constant)
    if function == "div" and second:
        return 1 / constant, None
    return None, None


def _with_number(b: Builder, function: str, x: Any, y: Any) -> Seen | None:
    """A function of an activation and a number, where one operation on each element does it."""
    number, second = (y, True) if isinstance(y, float) else (x, False)
    tensor = x if second else y
    if function in ("maximum", "minimum"):
        return activate(b, tensor, "clamp", **{"min" if function == "maximum" else "max": number})
    if function == "pow" and second:
        if number == 1:
            return tensor
        known = {2.0: "square", 0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}.get(number)
        return activate(b, tensor, known) if known else None
    if function == "div" and second and number == 0:
        return None
    if function == "div" and not second and number == 1:
        return activate(b, tensor, "reciprocal")
    scale, shift = _line(function, number, second)
    return None if scale is None and shift is None else elementwise(b, tensor, scale, shift)


def _alike(x: Any, y: Any) -> bool:
    """Whether two tensors lie in the same way in planes of the same shape."""
    if not (isinstance(x, Seen) and isinstance(y, Seen)) or x.shape != y.shape or x.value.shape != y.value.shape:
        return False
    return x.whole and y.whole and x.view.stride() == y.view.stride()


def _scaled(function: str) -> Handler:
    """add and sub, whose second operand may have a factor."""

    def handler(b: Builder, x: Any, y: Any, alpha: float = 1) -> Seen:
        return binary(b, function, x, y if alpha == 1 else times(b, y, alpha))

    return handler


def times(b: Builder, x: Any, factor: float) -> Any:
    return elementwise(b, x, scale=factor) if isinstance(x, Seen) else x * factor


def div(b: Builder, x: Any, y: Any, rounding_mode: str | None = None) -> Seen:
    quotient = binary(b, "div", x, y)
    if rounding_mode not in (None, "floor"):
        raise MissingError(f"with rounding_mode={rounding_mode!r}")
    return activate(b, quotient, "floor") if rounding_mode else quotient


def lerp(b: Builder, x: Any, end: Any, weight: Any) -> Seen:
    return binary(b, "add", x, binary(b, "mul", binary(b, "sub", end, x), weight))


# -- convolutions and products of matrices ------------------------------------------------------------------------------


def conv(b: Builder, x: Seen, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Seen:
    """nn.Conv1d and nn.Conv2d, `padding` a number, numbers, or a name."""
    source, dims = _image(b, x, weight.dim() - 2)
    kernel = [1] * (2 - dims) + list(weight.shape[2:])
    stride, dilation = _pair(stride, dims, 1), _pair(dilation, dims, 1)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        before = [t // 2 for t in total]
        sides = [*before, *(t - p for t, p in zip(total, before, strict=True))]
    else:
        sides = _pair(0 if padding == "valid" else padding, dims, 0) * 2
    attributes = {"kernel": kernel, "stride": stride, "padding": sides, "dilation": dilation, "groups": groups}
    shape = _conv_shape(source.shape, weight.shape[0], attributes)
    tensors = {"weight": weight.reshape(*weight.shape[:2], *kernel), "bias": bias}
    return _spatial(x, b.emit("conv", [source], shape, attributes, tensors))


def sparse_conv2d(
    b: Builder,
    x: Seen,
    weight: Tensor,
    indptr: Tensor,
    indices: Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    path: Any = None,
) -> Seen:
    source = b.planes(x)
    kernel = list(weight.shape[1:])
    sides = [*padding, *padding]
    attributes = {"kernel": kernel, "stride": list(stride), "padding": sides, "dilation": list(dilation)}
    shape = _conv_shape(source.shape, len(indptr) - 1, attributes)
    tensors = {"weight": weight, "indptr": indptr, "indices": indices}
    return _spatial(x, b.emit("conv", [source], shape, attributes, tensors))


def conv_transpose(
    b: Builder,
    x: Seen,
    weight: Tensor,
    bias: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> Seen:
    """A convolution with turned kernels over the input with zeros between its elements; where kernels do not overlap, one that
    makes a channel for each of their elements, and a copy."""
    source, dims = _image(b, x, weight.dim() - 2)
    inputs, each = weight.shape[:2]
    kernel = [1] * (2 - dims) + list(weight.shape[2:])
    weight = weight.reshape(inputs, each, *kernel)
    stride, dilation = _pair(stride, dims, 1), _pair(dilation, dims, 1)
    padding, extra = _pair(padding, dims, 0), _pair(output_padding, dims, 0)
    turned = weight.reshape(groups, inputs // groups, each, *kernel).transpose(1, 2)  # [groups, out, in, kh, kw]
    if kernel == stride and not any(padding) and not any(extra) and dilation == [1, 1]:
        points = turned.permute(0, 1, 3, 4, 2).reshape(groups * each * math.prod(kernel), inputs // groups, 1, 1)
        many = None if bias is None else bias.repeat_interleave(math.prod(kernel))
        attributes = {"kernel": [1, 1], "stride": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": groups}
        c, h, w = points.shape[0], source.shape.h, source.shape.w
        apart = b.emit("conv", [source], (c, h, w), attributes, {"weight": points, "bias": many})
        o, (kh, kw) = groups * each, kernel
        view = fresh(apart, (1, o, kh, kw, h, w)).view.permute(0, 1, 4, 2, 5, 3)
        shape = (o, h * kh, w * kw)
        value = b.planes(Seen(apart, view, new_storage()), shape)
        return _spatial(x, value)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    lists = []
    for n, s in zip(source.shape[1:], stride, strict=True):
        spread = torch.full((s * (n - 1) + 1,), -1, dtype=torch.int32)
        spread[::s] = torch.arange(n, dtype=torch.int32)
        lists.append(spread)
    if stride != [1, 1]:
        shape = (source.shape.c, len(lists[0]), len(lists[1]))
        source = b.emit("select", [source], shape, {}, {"rows": lists[0], "columns": lists[1]})
    before = [r - p for r, p in zip(reach, padding, strict=True)]
    sides = [*before, *(p + e for p, e in zip(before, extra, strict=True))]
    if min(sides) < 0:
        raise MissingError(f"with padding {padding} greater than its kernel's reach")
    attributes = {"kernel": kernel, "stride": [1, 1], "padding": sides, "dilation": dilation, "groups": groups}
    kernels = turned.flip(-1, -2).reshape(groups * each, inputs // groups, *kernel)
    shape = _conv_shape(source.shape, groups * each, attributes)
    return _spatial(x, b.emit("conv", [source], shape, attributes, {"weight": kernels, "bias": bias}))


def linear(b: Builder, x: Seen, weight: Tensor, bias: Any) -> Seen:
    """On a vector; on planes whose channels are the features, which is a convolution by points; or on rows."""
    out = weight.shape[0]
    tensors = {"weight": weight, "bias": bias}
    if len(x.shape) == 2:
        whole = x.packed and x.view.numel() == x.value.shape.size
        source = x.value if whole else b.planes(x)
        return fresh(b.emit("linear", [source], (out, 1, 1), {}, tensors), (1, out))
    channels = Arrangement((len(x.shape) - 1, *range(1, len(x.shape) - 1)), x.shape)
    planes = b.direct(x.through(x.view.permute(0, *channels.order)), channels.planes)
    if planes is not None:
        attributes = {"kernel": [1, 1], "stride": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": 1}
        points = {"weight": weight[:, :, None, None], "bias": bias}
        value = b.emit("conv", [planes], (out, *planes.shape[1:]), attributes, points)
        return channels.seen(value, {len(x.shape) - 1: out})
    rows = b.planes(x)
    if rows.shape[:2] == (1, 1):
        return fresh(b.emit("linear", [rows], (1, 1, out), {}, tensors), (*x.shape[:-1], out))
    return fresh(b.emit("linear", [rows], (*rows.shape[:2], out), {}, tensors), (*x.shape[:-1], out))


def addmm(b: Builder, bias: Any, x: Seen, weight: Tensor, beta: float, alpha: float) -> Seen:
    if isinstance(weight, Seen) or isinstance(bias, Seen) or bias.dim() != 1 or beta != 1 or alpha != 1:
        raise MissingError("of matrices that are computed")
    return linear(b, x, weight.t(), bias)


def matmul(b: Builder, x: Any, y: Any, scale: float = 1.0) -> Seen:
    if isinstance(x, Tensor):
        raise MissingError("of a constant with an activation")
    if isinstance(y, Tensor) and y.dim() == 2:
        product = linear(b, x, y.t(), None)
        return product if scale == 1 else times(b, product, scale)
    if isinstance(y, Tensor):
        raise MissingError("with a constant of more than two dimensions")
    if len(x.shape) != len(y.shape) or len(x.shape) < 3 or x.shape[:-2] != y.shape[:-2]:
        raise MissingError(f"of shapes {list(x.shape)} and {list(y.shape)}")
    *lead, m, k = x.shape
    p = y.shape[-1]
    n = math.prod(lead)
    left, right = b.planes(x, (n, m, k)), b.planes(y, (n, k, p))
    attributes = {} if scale == 1 else {"scale": float(scale)}
    return fresh(b.emit("matmul", [left, right], (n, m, p), attributes), (*lead, m, p))


def attention(
    b: Builder,
    query: Seen,
    key: Seen,
    value: Seen,
    attn_mask: Any,
    dropout_p: float,
    is_causal: bool,
    scale: Any,
    enable_gqa: bool,
) -> Seen:
    if is_causal or enable_gqa or isinstance(attn_mask, Seen):
        raise MissingError("with a computed mask, a causal one or grouped heads")
    factor = scale if scale is not None else query.shape[-1] ** -0.5
    scores = matmul(b, query, key.through(key.view.transpose(-1, -2)), factor)
    if attn_mask is not None:
        scores = binary(b, "add", scores, attn_mask)
    return matmul(b, softmax(b, scores, -1), value)


def _image(b: Builder, x: Seen, dims: int) -> tuple[Any, int]:
    """Planes of channels of an image or a line."""
    if dims not in (1, 2):
        raise MissingError(f"over {dims} dimensions")
    if len(x.shape) != dims + 2:
        raise MissingError(f"on a tensor of shape {list(x.shape)} without a batch")
    return b.with_channels(x, 1)[0], dims


def _spatial(x: Seen, value: Any) -> Seen:
    """Planes as the tensor [1, c, h, w] they are, or [1, c, l]."""
    c, h, w = value.shape
    return fresh(value, (1, c, h, w) if len(x.shape) == 4 else (1, c, w))


def _conv_shape(source: Shape, out: int, attributes: dict[str, Any]) -> Shape:
    top, left, bottom, right = attributes["padding"]
    sizes = [
        (n + pad - d * (k - 1) - 1) // s + 1
        for n, pad, d, k, s in zip(
            source[1:],
            (top + bottom, left + right),
            attributes["dilation"],
            attributes["kernel"],
            attributes["stride"],
            strict=True,
        )
    ]
    return Shape(out, *sizes)


def _pair(size: Any, dims: int, missing: int) -> list[int]:
    """One number or one for each dimension, as two for rows and columns."""
    sizes = [int(size)] if isinstance(size, int) else [int(s) for s in size]
    sizes = sizes * dims if len(sizes) == 1 else sizes
    return [missing] * (2 - dims) + sizes


# -- pooling and sums --------------------------------------------------------------------------------------------------


def max_pool(b: Builder, x: Seen, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Seen:
    shape = F.max_pool2d(_meta(x), kernel, stride or kernel, padding, dilation, ceil_mode).shape[1:]
    return _pooled(b, x, "max", shape, kernel, stride, padding, dilation, {})


def avg_pool(
    b: Builder, x: Seen, kernel: Any, stride: Any, padding: Any, ceil_mode: bool, count: bool, divisor: int | None
) -> Seen:
    shape = F.avg_pool2d(_meta(x), kernel, stride or None, padding, ceil_mode, count, divisor).shape[1:]
    more: dict[str, Any] = {"count_padding": True} if count and (any(_pair(padding, 2, 0)) or ceil_mode) else {}
    return _pooled(
        b, x, "average", shape, kernel, stride, padding, 1, {**more, **({"divisor": divisor} if divisor else {})}
    )


def _pooled(
    b: Builder,
    x: Seen,
    function: str,
    shape: Any,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    more: dict[str, Any],
) -> Seen:
    kernel = _pair(kernel, 2, 1)
    attributes = {
        "function": function,
        "kernel": kernel,
        "stride": _pair(stride, 2, 1) if stride else kernel,
        "padding": _pair(padding, 2, 0) * 2,
        "dilation": _pair(dilation, 2, 1),
        **more,
    }
    source = b.planes(x)
    if kernel == [1, 1] and attributes["stride"] == [1, 1] and not any(attributes["padding"]):
        return x
    return fresh(b.emit("pool", [source], shape, attributes), (1, *shape))


def adaptive_pool(b: Builder, x: Seen, size: Any, function: str) -> Seen:
    if len(x.shape) != 4:
        raise MissingError(f"on a tensor of shape {list(x.shape)}")
    given = size if isinstance(size, (list, tuple)) else [size] * 2
    sizes = [n if s is None else s for s, n in zip(given, x.shape[2:], strict=True)]
    c, h, w = x.shape[1:]
    if sizes == [h, w]:
        return x
    if sizes == [1, 1]:
        return reduced(b, x, [2, 3], True, "mean" if function == "average" else "max")
    return fresh(b.emit("adaptive_pool", [b.planes(x)], (c, *sizes), {"function": function}), (1, c, *sizes))


def reduced(b: Builder, x: Seen, dims: Any, keep: bool, function: str) -> Seen:
    """A mean, sum or extreme over some dimensions."""
    rank = len(x.shape)
    given = [dims] if isinstance(dims, int) else list(dims or range(rank))
    wanted = sorted({d % rank for d in given})
    if 0 in wanted:
        raise MissingError("over the batch")
    planes, arrangement = b.in_place_order(x)
    axes = [arrangement.axis(d) for d in wanted]
    if None in axes:  # several dimensions lie in the channels
        kept = [d for d in range(1, rank) if d not in wanted]
        apart = (1, math.prod(x.shape[d] for d in kept), math.prod(x.shape[d] for d in wanted))
        planes = b.planes(x.through(x.view.permute(0, *kept, *wanted)), apart)
        value = b.emit("reduce", [planes], (1, apart[1], 1), {"function": function, "axes": [2]})
        shape = [1 if d in wanted else n for d, n in enumerate(x.shape)]
        output = fresh(value, shape)
    else:
        sizes = tuple(1 if axis in axes else n for axis, n in enumerate(planes.shape))
        value = b.emit("reduce", [planes], sizes, {"function": function, "axes": sorted(axes)})  # type: ignore[type-var]
        output = arrangement.seen(value, dict.fromkeys(wanted, 1))
    return output if keep else output.through(output.view.squeeze(wanted))


def variance(b: Builder, x: Seen, dims: Any, correction: float, keep: bool) -> Seen:
    rank = len(x.shape)
    wanted = [d % rank for d in ([dims] if isinstance(dims, int) else list(dims or range(rank)))]
    count = math.prod(x.shape[d] for d in wanted)
    apart = binary(b, "sub", x, reduced(b, x, wanted, True, "mean"))
    total = reduced(b, activate(b, apart, "square"), wanted, keep, "sum")
    return times(b, total, 1 / max(count - correction, 0))


def vector_norm(b: Builder, x: Seen, order: float, dims: Any, keep: bool) -> Seen:
    if order == 2:
        return activate(b, reduced(b, activate(b, x, "square"), dims, keep, "sum"), "sqrt")
    if order == 1:
        return reduced(b, activate(b, x, "abs"), dims, keep, "sum")
    raise MissingError(f"of order {order}")


def _meta(x: Seen) -> Tensor:
    if len(x.shape) != 4:
        raise MissingError(f"on a tensor of shape {list(x.shape)}")
    return torch.empty(x.shape, device="meta")


# -- normalisation -----------------------------------------------------------------------------------------------------


def batch_norm(
    b: Builder, x: Seen, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, eps: float
) -> Seen:
    if training or mean is None or variance is None:
        raise MissingError("with the statistics of the batch")
    scale = (variance.double() + eps).rsqrt() * (1 if weight is None else weight.double())
    shift = (0 if bias is None else bias.double()) - mean.double() * scale
    planes, arrangement = b.with_channels(x, 1)
    if arrangement.planes.c != len(scale):
        raise MissingError(f"on a tensor of shape {list(x.shape)}")
    tensors = {"scale": scale.float(), "shift": shift.float()}
    return arrangement.seen(b.emit("affine", [planes], planes.shape, {}, tensors))


def instance_norm(
    b: Builder, x: Seen, weight: Any, bias: Any, mean: Any, variance: Any, use_input_stats: bool, eps: float
) -> Seen:
    if not use_input_stats:
        return batch_norm(b, x, weight, bias, mean, variance, False, eps)
    return group_norm(b, x, x.shape[1], weight, bias, eps)


def group_norm(b: Builder, x: Seen, groups: int, weight: Any, bias: Any, eps: float) -> Seen:
    planes, arrangement = b.with_channels(x, 1)
    attributes = {"over": "group", "groups": groups, "epsilon": eps}
    return arrangement.seen(b.emit("norm", [planes], planes.shape, attributes, {"scale": weight, "shift": bias}))


def layer_norm(
    b: Builder, x: Seen, shape: Sequence[int], weight: Any, bias: Any, eps: float, center: bool = True
) -> Seen:
    more = {} if center else {"center": False}
    tensors = {"scale": weight, "shift": bias}
    if len(shape) == 1:
        channels = Arrangement((len(x.shape) - 1, *range(1, len(x.shape) - 1)), x.shape)
        planes = b.direct(x.through(x.view.permute(0, *channels.order)), channels.planes)
        if planes is not None:
            attributes = {"over": "channel", "epsilon": eps, **more}
            return channels.seen(b.emit("norm", [planes], planes.shape, attributes, tensors))
        rows = b.planes(x, (1, 1, shape[0]) if len(x.shape) == 2 else None)
        return fresh(b.emit("norm", [rows], rows.shape, {"over": "width", "epsilon": eps, **more}, tensors), x.shape)
    if len(shape) != len(x.shape) - 1:
        raise MissingError(f"over {list(shape)} of a tensor of shape {list(x.shape)}")
    planes = b.planes(x)
    attributes = {"over": "group", "groups": 1, "epsilon": eps, **more}
    output = fresh(b.emit("norm", [planes], planes.shape, attributes), x.shape)
    output = output if weight is None else binary(b, "mul", output, weight)
    return output if bias is None else binary(b, "add", output, bias)


def rms_norm(b: Builder, x: Seen, shape: Sequence[int], weight: Any, eps: float | None) -> Seen:
    return layer_norm(b, x, shape, weight, None, torch.finfo(torch.float32).eps if eps is None else eps, center=False)


# -- moving ------------------------------------------------------------------------------------------------------------


def concat(b: Builder, tensors: Sequence[Any], dim: int) -> Seen:
    kept = [t for t in tensors if t.shape != (0,)]
    first = next(t for t in kept if isinstance(t, Seen))
    rank = len(first.shape)
    dim %= rank
    if dim == 0:
        raise MissingError("over the batch")
    if len(kept) == 1:
        return first
    _, arrangement = b.in_place_order(first)
    axis = arrangement.axis(dim)
    if axis is None:
        arrangement = Arrangement((dim, *(d for d in range(1, rank) if d != dim)), first.shape)
        axis = 0
    parts = [_part(b, t, arrangement.order) for t in kept]
    sizes = list(parts[0].shape)
    sizes[axis] = sum(p.shape[axis] for p in parts)
    total = sum(t.shape[dim] for t in kept)
    return arrangement.seen(b.emit("concat", parts, sizes, {"axis": axis}), {dim: total})


def _part(b: Builder, tensor: Any, order: tuple[int, ...]) -> Any:
    planes = Arrangement(order, tuple(tensor.shape)).planes
    if isinstance(tensor, Seen):
        return b.planes(tensor.through(tensor.view.permute(0, *order)), planes)
    return b.planes(tensor.permute(0, *order), planes)


def stack(b: Builder, tensors: Sequence[Any], dim: int) -> Seen:
    rank = len(tensors[0].shape) + 1
    return concat(b, [_unsqueezed(t, dim % rank) for t in tensors], dim % rank)


def _unsqueezed(tensor: Any, dim: int) -> Any:
    return tensor.through(tensor.view.unsqueeze(dim)) if isinstance(tensor, Seen) else tensor.unsqueeze(dim)


def viewed(operator: Any) -> Handler:
    """An operator that only looks at its input in another way."""

    def handler(b: Builder, x: Seen, *args: Any) -> Any:
        views = operator(x.view, *args)
        if isinstance(views, Tensor):
            return x.through(views)
        return [x.through(view) for view in views]

    return handler


def reshape(b: Builder, x: Seen, shape: Sequence[int]) -> Seen:
    """Another shape of the same elements in order: a view where there is one, else a copy."""
    try:
        return x.through(x.view.view(list(shape)))
    except (RuntimeError, ValueError):
        sizes = torch.empty(x.shape, device="meta").view(list(shape)).shape
        planes = b.planes(x, canonical(sizes))
        return fresh(planes, sizes)


def shuffled(b: Builder, x: Seen, shape: Sequence[int], order: Sequence[int], result: Sequence[int]) -> Seen:
    """Cut dimensions, move them, join them."""
    apart = reshape(b, x, shape)
    return reshape(b, apart.through(apart.view.permute(list(order))), result)


def pixel_shuffle(b: Builder, x: Seen, factor: int) -> Seen:
    n, c, h, w = x.shape
    r = factor
    shape, result = (n, c // r**2, r, r, h, w), (n, c // r**2, h * r, w * r)
    return shuffled(b, x, shape, (0, 1, 4, 2, 5, 3), result)


def pixel_unshuffle(b: Builder, x: Seen, factor: int) -> Seen:
    n, c, h, w = x.shape
    r = factor
    shape, result = (n, c, h // r, r, w // r, r), (n, c * r**2, h // r, w // r)
    return shuffled(b, x, shape, (0, 1, 3, 5, 2, 4), result)


def channel_shuffle(b: Builder, x: Seen, groups: int) -> Seen:
    n, c, *rest = x.shape
    tail = range(3, 3 + len(rest))
    return shuffled(b, x, (n, groups, c // groups, *rest), (0, 2, 1, *tail), x.shape)


def pad(b: Builder, x: Seen, sides: Sequence[int], mode: str, value: float | None) -> Seen:
    """Every mode by where each row, column and channel comes from, which PyTorch tells of a line of numbers."""
    rank, wide = len(x.shape), len(sides) // 2
    if wide > rank - 1 or rank != 4:
        raise MissingError(f"of a tensor of shape {list(x.shape)} by {list(sides)}")
    lists: dict[str, Tensor] = {}
    sizes = list(x.shape[1:])
    for at in range(wide):
        pair = list(sides[2 * at : 2 * at + 2])
        if any(pair):
            axis = 2 - at
            line = torch.arange(1, sizes[axis] + 1, dtype=torch.float32).view(1, 1, -1)
            source = (
                F.pad(line, pair, mode=mode, value=0.0 if mode == "constant" else None).view(-1).to(torch.int32) - 1
            )
            lists[("channels", "rows", "columns")[axis]] = source
            sizes[axis] = len(source)
    if not lists:
        return x
    fill = {"fill": float(value)} if value and mode == "constant" else {}
    return fresh(b.emit("select", [b.planes(x)], sizes, fill, lists), (1, *sizes))


def padded(mode: str) -> Handler:
    def handler(b: Builder, x: Seen, sides: Sequence[int]) -> Seen:
        return pad(b, x, sides, mode, None)

    return handler


def selected(b: Builder, x: Seen, dim: int, indices: Tensor) -> Seen:
    """Some places of one dimension."""
    dim %= len(x.shape)
    if dim == 0 or isinstance(indices, Seen) or indices.dim() != 1:
        raise MissingError("with indices that are computed, or over the batch")
    planes, arrangement = b.in_place_order(x)
    axis = arrangement.axis(dim)
    if axis is None:
        planes, arrangement = b.with_channels(x, dim)
        axis = 0
    places = indices.to(torch.int64) % x.shape[dim]
    sizes = list(planes.shape)
    sizes[axis] = len(places)
    lists = {("channels", "rows", "columns")[axis]: places.to(torch.int32)}
    return arrangement.seen(b.emit("select", [planes], sizes, {}, lists), {dim: len(places)})


def index(b: Builder, x: Seen, indices: Sequence[Any]) -> Seen:
    given = [(d, i) for d, i in enumerate(indices) if i is not None]
    if len(given) != 1:
        raise MissingError("with several lists of indices")
    return selected(b, x, *given[0])


def flip(b: Builder, x: Seen, dims: Sequence[int]) -> Seen:
    for dim in dims:
        x = selected(b, x, dim, torch.arange(x.shape[dim]).flip(0))
    return x


def roll(b: Builder, x: Seen, shifts: Any, dims: Any) -> Seen:
    if not dims:
        raise MissingError("without dimensions")
    pairs = zip([shifts] if isinstance(shifts, int) else shifts, [dims] if isinstance(dims, int) else dims, strict=True)
    for shift, dim in pairs:
        x = selected(b, x, dim, torch.arange(x.shape[dim]).roll(shift))
    return x


def upsampled(operator: Any) -> Handler:
    """Interpolation of any separable kind: PyTorch tells the weight of each row and column on unit vectors."""

    def handler(b: Builder, x: Seen, *args: Any) -> Seen:
        h, w = x.shape[2:]
        shape = operator(torch.empty(x.shape, device="meta"), *args).shape[1:]
        rows = _weights(operator, torch.eye(h)[None, :, :, None].expand(1, h, h, w), args)[:, :, 0]
        columns = _weights(operator, torch.eye(w)[None, :, None, :].expand(1, w, h, w), args)[:, 0, :]
        lists, tensors = {}, {}
        for name, weights in (("row", rows), ("column", columns)):
            if torch.equal(weights, torch.eye(len(weights))):
                continue
            indices, factors = _sparse_rows(weights.t())
            lists[f"{name}s"] = indices
            tensors[f"{name}_weights"] = factors
        if not lists:
            return x
        source = b.planes(x)
        if all(f.shape[1] == 1 and bool((f == 1).all()) for f in tensors.values()):
            value = b.emit("select", [source], shape, {}, {k: v[:, 0] for k, v in lists.items()})
        else:
            value = b.emit("resample", [source], shape, {}, {**lists, **tensors})
        return fresh(value, (1, *shape))

    return handler


def _weights(operator: Any, units: Tensor, args: tuple[Any, ...]) -> Tensor:
    return operator(units.contiguous(), *args)[0]


def _sparse_rows(weights: Tensor) -> tuple[Tensor, Tensor]:
    """The indices and values of what is not zero in each row, filled up with zeros to the same number."""
    most = max(1, int((weights != 0).sum(1).max()))
    order = (weights == 0).int().sort(dim=1, stable=True).indices[:, :most]
    return order.to(torch.int32), weights.gather(1, order)


# -- the table ---------------------------------------------------------------------------------------------------------


def _same(b: Builder, x: Any, *_: Any) -> Any:
    return x


def _copied(b: Builder, x: Seen, *_: Any) -> Seen:
    return x.detached()


def _filled(b: Builder, x: Seen, y: Any, *_: Any) -> Seen:
    """What is written over x: y, spread over its shape."""
    return binary(b, "add", times(b, x, 0), y) if not isinstance(y, Seen) or y.shape != x.shape else y.detached()


def _cast(b: Builder, x: Seen, *args: Any) -> Seen:
    kind = next((a for a in args if isinstance(a, torch.dtype)), torch.float32)
    if kind != torch.float32:
        raise MissingError(f"to {kind}: programs compute in float32")
    return x


def _unary(function: str) -> Handler:
    return lambda b, x: activate(b, x, function)


def _binary(function: str) -> Handler:
    return lambda b, x, y: binary(b, function, x, y)


def _number(value: Any) -> Any:
    return float(value) if _is_number(value) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1 and value.dim() == 0)


aten = torch.ops.aten

TABLE: dict[str, Handler] = {
    **{name: _unary(function) for name, function in _PLAIN.items()},
    "relu6": lambda b, x: clamp(b, x, 0, 6),
    "hardtanh": clamp,
    "clamp": clamp,
    "clamp_min": lambda b, x, low: clamp(b, x, low, None),
    "clamp_max": lambda b, x, high: clamp(b, x, None, high),
    "leaky_relu": lambda b, x, slope: activate(b, x, "leaky_relu", slope=slope),
    "prelu": prelu,
    "gelu": gelu,
    "elu": elu,
    "selu": lambda b, x: elu(b, x, 1.6732632423543772, 1.0507009873554805, 1.0),
    "celu": lambda b, x, alpha: elu(b, x, alpha, 1.0, 1 / alpha),
    "softplus": lambda b, x, beta, threshold: activate(b, x, "softplus", beta=beta, threshold=threshold),
    "softmax.int": lambda b, x, dim, dtype: softmax(b, x, dim),
    "log_softmax.int": lambda b, x, dim, dtype: softmax(b, x, dim, log=True),
    "glu": glu,
    "add.Tensor": _scaled("add"),
    "sub.Tensor": _scaled("sub"),
    "rsub.Scalar": lambda b, x, y, alpha: binary(b, "sub", y, times(b, x, alpha) if alpha != 1 else x),
    "mul.Tensor": _binary("mul"),
    "mul.Scalar": _binary("mul"),
    "add.Scalar": _scaled("add"),
    "sub.Scalar": _scaled("sub"),
    "div.Tensor": div,
    "div.Scalar": div,
    "div.Tensor_mode": div,
    "maximum": _binary("maximum"),
    "minimum": _binary("minimum"),
    "max.other": _binary("maximum"),
    "min.other": _binary("minimum"),
    "pow.Tensor_Scalar": _binary("pow"),
    "pow.Tensor_Tensor": _binary("pow"),
    "lerp.Scalar": lerp,
    "lerp.Tensor": lerp,
    "conv1d": conv,
    "conv1d.padding": conv,
    "conv2d": conv,
    "conv2d.padding": conv,
    "conv_transpose1d": conv_transpose,
    "conv_transpose2d.input": conv_transpose,
    "gossamer.sparse_conv2d": sparse_conv2d,
    "linear": linear,
    "addmm": addmm,
    "matmul": matmul,
    "bmm": matmul,
    "scaled_dot_product_attention": attention,
    "max_pool2d": max_pool,
    "max_pool2d_with_indices": lambda *args: (max_pool(*args), None),
    "avg_pool2d": avg_pool,
    "adaptive_avg_pool2d": lambda b, x, size: adaptive_pool(b, x, size, "average"),
    "adaptive_max_pool2d": lambda b, x, size: (adaptive_pool(b, x, size, "max"), None),
    "mean.dim": lambda b, x, dims, keep, dtype: reduced(b, x, dims, keep, "mean"),
    "sum.dim_IntList": lambda b, x, dims, keep, dtype: reduced(b, x, dims, keep, "sum"),
    "amax": lambda b, x, dims, keep: reduced(b, x, dims, keep, "max"),
    "amin": lambda b, x, dims, keep: reduced(b, x, dims, keep, "min"),
    "max.dim": lambda b, x, dim, keep: (reduced(b, x, dim, keep, "max"), None),
    "min.dim": lambda b, x, dim, keep: (reduced(b, x, dim, keep, "min"), None),
    "var.correction": lambda b, x, dims, c, keep: variance(b, x, dims, 1 if c is None else c, keep),
    "var.dim": lambda b, x, dims, unbiased, keep: variance(b, x, dims, int(unbiased), keep),
    "std.correction": lambda b, x, dims, c, keep: activate(
        b, variance(b, x, dims, 1 if c is None else c, keep), "sqrt"
    ),
    "std.dim": lambda b, x, dims, unbiased, keep: activate(b, variance(b, x, dims, int(unbiased), keep), "sqrt"),
    "linalg_vector_norm": lambda b, x, order, dims, keep, dtype: vector_norm(b, x, order, dims, keep),
    "norm.ScalarOpt_dim": vector_norm,
    "batch_norm": lambda b, x, w, bias, mean, var, training, momentum, eps, cudnn: batch_norm(
        b, x, w, bias, mean, var, training, eps
    ),
    "instance_norm": lambda b, x, w, bias, mean, var, use, momentum, eps, cudnn: instance_norm(
        b, x, w, bias, mean, var, use, eps
    ),
    "group_norm": lambda b, x, groups, w, bias, eps, cudnn: group_norm(b, x, groups, w, bias, eps),
    "layer_norm": lambda b, x, shape, w, bias, eps, cudnn: layer_norm(b, x, shape, w, bias, eps),
    "rms_norm": rms_norm,
    "cat": concat,
    "concat": concat,
    "stack": stack,
    **{
        name: viewed(getattr(aten, name.split(".")[0]))
        for name in """permute transpose.int t squeeze squeeze.dim squeeze.dims unsqueeze select.int slice.Tensor narrow expand
        movedim.intlist movedim.int swapaxes chunk split.Tensor split_with_sizes split.sizes unbind.int tensor_split.sections
        diagonal unfold""".split()
    },
    "expand_as": lambda b, x, y: x.through(x.view.expand(y.shape)),
    "view": reshape,
    "reshape": reshape,
    "_unsafe_view": reshape,
    "flatten.using_ints": lambda b, x, start, end: reshape(
        b, x, torch.empty(x.shape, device="meta").flatten(start, end).shape
    ),
    "unflatten.int": lambda b, x, dim, sizes: reshape(
        b, x, torch.empty(x.shape, device="meta").unflatten(dim, sizes).shape
    ),
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle,
    "pad": pad,
    "constant_pad_nd": lambda b, x, sides, value: pad(b, x, sides, "constant", value),
    "reflection_pad2d": padded("reflect"),
    "replication_pad2d": padded("replicate"),
    "index_select": selected,
    "index.Tensor": index,
    "flip": flip,
    "roll": roll,
    **{
        name + (f".{overload}" if overload == "vec" else ""): upsampled(getattr(getattr(aten, name), overload))
        for name in """upsample_nearest2d _upsample_nearest_exact2d upsample_bilinear2d upsample_bicubic2d
        _upsample_bilinear2d_aa _upsample_bicubic2d_aa""".split()
        for overload in ("default", "vec")
    },
    **dict.fromkeys("dropout feature_dropout alpha_dropout detach alias lift_fresh".split(), _same),
    **dict.fromkeys("clone lift_fresh_copy".split(), _copied),
    **dict.fromkeys("copy fill.Scalar fill.Tensor".split(), _filled),
    "zero": lambda b, x: times(b, x, 0),
    "contiguous": _same,
    "to.dtype": _cast,
    "to.device": _cast,
    "to.dtype_layout": _cast,
    "_to_copy": _cast,
    "type_as": _same,
}
