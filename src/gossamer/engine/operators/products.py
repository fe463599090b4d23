"""Convolutions, linear layers and products of matrices."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gossamer.engine.ir import Shape
from gossamer.engine.operators.elementwise import binary, softmax, times
from gossamer.engine.views import Arrangement, Builder, MissingError, Seen, fresh, new_storage, pair


def conv(b: Builder, x: Seen, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Seen:
    """nn.Conv1d and nn.Conv2d, `padding` a number, numbers, or a name."""
    source, dims = _image(b, x, weight.dim() - 2)
    kernel = [1] * (2 - dims) + list(weight.shape[2:])
    stride, dilation = pair(stride, dims, 1), pair(dilation, dims, 1)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        before = [t // 2 for t in total]
        sides = [*before, *(t - p for t, p in zip(total, before, strict=True))]
    else:
        sides = pair(0 if padding == "valid" else padding, dims, 0) * 2
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
    stride, dilation = pair(stride, dims, 1), pair(dilation, dims, 1)
    padding, extra = pair(padding, dims, 0), pair(output_padding, dims, 0)
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
