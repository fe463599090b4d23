"""Functions of one number and of two, on every element."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gossamer.engine.ir import Activation
from gossamer.engine.views import Arrangement, Builder, MissingError, Seen, fresh, new_storage

# -- functions of one number -------------------------------------------------------------------------------------------


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
    if any(isinstance(v, (Seen, Tensor)) and not is_number(v) for v in bounds.values()):
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


def scaled(function: str) -> Callable[..., Any]:
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


def _number(value: Any) -> Any:
    return float(value) if is_number(value) else value


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1 and value.dim() == 0)
