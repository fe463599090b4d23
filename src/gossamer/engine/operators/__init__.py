"""What each PyTorch operator is in a program: a table from its name to a function that writes operations down.

A function takes the builder and the operator's arguments by name, and returns what the operator returns. Arguments
that are tensors are `Seen`, or plain tensors where they are constants (what has only constant arguments is computed at once,
elsewhere). Whoever cannot do something raises `MissingError` with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gossamer.engine.operators.elementwise import (
    activate,
    binary,
    clamp,
    div,
    elu,
    gelu,
    glu,
    lerp,
    prelu,
    scaled,
    softmax,
    times,
)
from gossamer.engine.operators.moving import (
    channel_shuffle,
    concat,
    flip,
    index,
    pad,
    padded,
    pixel_shuffle,
    pixel_unshuffle,
    reshape,
    roll,
    selected,
    stack,
    upsampled,
    viewed,
)
from gossamer.engine.operators.norms import batch_norm, group_norm, instance_norm, layer_norm, rms_norm
from gossamer.engine.operators.pooling import adaptive_pool, avg_pool, max_pool, reduced, variance, vector_norm
from gossamer.engine.operators.products import addmm, attention, conv, conv_transpose, linear, matmul, sparse_conv2d
from gossamer.engine.views import Builder, MissingError, Seen

Handler = Callable[..., Any]


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


aten = torch.ops.aten

_PLAIN = {
    name: name
    for name in """relu silu hardswish hardsigmoid sigmoid tanh mish exp log sqrt rsqrt abs neg square reciprocal erf sin cos
    floor""".split()
} | {"log_sigmoid": "logsigmoid"}

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
    "add.Tensor": scaled("add"),
    "sub.Tensor": scaled("sub"),
    "rsub.Scalar": lambda b, x, y, alpha: binary(b, "sub", y, times(b, x, alpha) if alpha != 1 else x),
    "mul.Tensor": _binary("mul"),
    "mul.Scalar": _binary("mul"),
    "add.Scalar": scaled("add"),
    "sub.Scalar": scaled("sub"),
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
