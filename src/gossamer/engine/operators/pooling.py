"""Pooling, sums, extremes and moments."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.engine.operators.elementwise import activate, binary, times
from gossamer.engine.views import Builder, MissingError, Seen, fresh, pair


def max_pool(b: Builder, x: Seen, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Seen:
    shape = F.max_pool2d(_meta(x), kernel, stride or kernel, padding, dilation, ceil_mode).shape[1:]
    return _pooled(b, x, "max", shape, kernel, stride, padding, dilation, {})


def avg_pool(
    b: Builder, x: Seen, kernel: Any, stride: Any, padding: Any, ceil_mode: bool, count: bool, divisor: int | None
) -> Seen:
    shape = F.avg_pool2d(_meta(x), kernel, stride or None, padding, ceil_mode, count, divisor).shape[1:]
    more: dict[str, Any] = {"count_padding": True} if count and (any(pair(padding, 2, 0)) or ceil_mode) else {}
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
    kernel = pair(kernel, 2, 1)
    attributes = {
        "function": function,
        "kernel": kernel,
        "stride": pair(stride, 2, 1) if stride else kernel,
        "padding": pair(padding, 2, 0) * 2,
        "dilation": pair(dilation, 2, 1),
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
