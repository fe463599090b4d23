"""Batch normalisation of contiguous NCHW planes on the CPU, whose moments PyTorch sums one element at a time.

`gossamer::batch_norm(input, weight, bias, eps)` gives the output and each channel's own mean and variance (divided by the
count, not by one less), as training wants them. `gossamer::normalise_` takes the moments that evaluation has and works in
place, without a gradient. float32; results are `torch.nn.functional.batch_norm`'s, up to rounding. With `relu` they are
max(0, result), for which nothing more is read or written.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gossamer.kernels.native.library import LIBRARY

__all__ = ["batch_norm", "normalise_"]


class _Norm(ctypes.Structure):
    """``gossamer_norm`` of csrc/gossamer.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "channels", "area")]


_NORM = ctypes.POINTER(_Norm)
_TENSORS = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
_REST = (ctypes.c_int64, ctypes.c_int64, ctypes.c_int)  # two counts and the threads
LIBRARY.gossamer_batch_norm.argtypes = [_NORM, *_TENSORS, ctypes.c_float, ctypes.c_int, *_TENSORS, *_REST]
LIBRARY.gossamer_batch_norm_grad.argtypes = [
    *(_NORM, *_TENSORS, *_TENSORS),
    *(ctypes.c_float, ctypes.c_int, *_TENSORS, *_REST),
]
LIBRARY.gossamer_normalise.argtypes = [
    *(_NORM, ctypes.c_void_p, *_TENSORS),
    *(ctypes.c_float, ctypes.c_int, ctypes.c_void_p, *_REST),
]


def _call(function: Callable[..., int], input: Tensor, *arguments: Any) -> None:
    norm = _Norm(*input.shape[:2], input.shape[2] * input.shape[3])
    addresses = (a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
    status = function(norm, *addresses, input.numel(), input.shape[1], torch.get_num_threads())
    if status:
        raise RuntimeError(f"gossamer: {LIBRARY.gossamer_status_text(status).decode()}; the input was {[*input.shape]}")


def _ready(input: Tensor, *vectors: Tensor | None) -> list[Tensor | None]:
    """All of them contiguous, checked."""
    _check(input, *vectors)
    return [None if t is None else t.contiguous() for t in (input, *vectors)]


def _check(input: Tensor, *vectors: Tensor | None) -> None:
    """Raises TypeError for other numbers than float32, RuntimeError for other shapes and several devices."""
    tensors = [t for t in (input, *vectors) if t is not None]
    if input.dim() != 4 or any(t.dtype != torch.float32 or t.layout != torch.strided for t in tensors):
        kinds = [
            None if t is None else str(t.dtype if t.layout == torch.strided else t.layout) for t in (input, *vectors)
        ]
        raise TypeError(f"batch_norm needs float32 [n, c, h, w] and float32 [c], got {[*input.shape]} and {kinds}")
    if any(t is not None and t.shape != input.shape[1:2] for t in vectors):
        shapes = [None if t is None else [*t.shape] for t in vectors]
        raise RuntimeError(f"batch_norm of {input.shape[1]} channels needs one number for each, got {shapes}")
    if any(t.device != input.device for t in tensors):
        raise RuntimeError(f"batch_norm needs all tensors on one device, got {[str(t.device) for t in tensors]}")


def _forward(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    x, *affine = _ready(input, weight, bias)
    output, mean, variance = _empty(input)
    _call(LIBRARY.gossamer_batch_norm, input, x, *affine, eps, relu, mean, variance, output)
    return output, mean, variance


def _grad(
    grad: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    relu: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _fake_grad(grad, input, weight, bias, mean, variance)
    x, *vectors = _ready(input, weight, bias, mean, variance)
    _call(LIBRARY.gossamer_batch_norm_grad, input, grad.contiguous(), x, *vectors, eps, relu, *grads)
    return grads


def _normalise(
    values: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    relu: bool = False,
) -> None:
    ready, *vectors = _ready(values, mean, variance, weight, bias)
    if ready is not values:
        raise RuntimeError(f"normalise_ works in place, on contiguous planes; the strides were {values.stride()}")
    if values.numel():
        _call(LIBRARY.gossamer_normalise, values, *vectors, eps, relu, values)


# -- shapes without data -----------------------------------------------------------------------------------------------


def _empty(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    channels = input.shape[1]
    return input.new_empty(input.shape), input.new_empty(channels), input.new_empty(channels)


def _fake_forward(input: Tensor, weight: Tensor | None, bias: Tensor | None, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    _check(input, weight, bias)
    return _empty(input)


def _fake_grad(grad: Tensor, input: Tensor, *vectors: Any) -> tuple[Tensor, Tensor, Tensor]:
    _check(input, *vectors[:4])
    if (
        grad.shape != input.shape
        or grad.dtype != torch.float32
        or grad.device != input.device
        or grad.layout != input.layout
    ):
        raise RuntimeError(
            f"batch_norm_grad of an input {[*input.shape]} takes a gradient like it, got {grad.dtype} {[*grad.shape]} "
            f"on {grad.device}"
        )
    return _empty(input)


def _fake_normalise(values: Tensor, *vectors: Any) -> None:
    _check(values, *vectors[:4])


# -- autograd ----------------------------------------------------------------------------------------------------------


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, weight, bias, ctx.eps, ctx.relu = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(input, weight, bias if ctx.relu else None, *output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> Sequence[Tensor | None]:
    input, weight, bias, mean, variance = ctx.saved_tensors
    if torch.is_grad_enabled():  # to be differentiated again, for which PyTorch has the formula
        if ctx.relu:
            with torch.no_grad():
                output = batch_norm(input, weight, bias, ctx.eps, relu=True)[0]
            grad = torch.ops.aten.threshold_backward(grad, output, 0)
        deviation = (variance + ctx.eps).rsqrt()
        wanted = [bool(needed) for needed in ctx.needs_input_grad[:3]]
        grads = torch.ops.aten.native_batch_norm_backward(
            grad, input, weight, None, None, mean, deviation, True, ctx.eps, wanted
        )
    else:
        grads = torch.ops.gossamer.batch_norm_grad(grad, input, weight, bias, mean, variance, ctx.eps, ctx.relu)
    return *(g if needed else None for g, needed in zip(grads, ctx.needs_input_grad, strict=False)), None, None


def register(library: torch.library.Library) -> None:
    """Defines the operators and makes the native kernels their CPU backend."""
    tensors, rest = "Tensor input, Tensor? weight, Tensor? bias", "float eps, bool relu=False"
    library.define(f"batch_norm({tensors}, {rest}) -> (Tensor, Tensor, Tensor)")
    library.define(
        f"batch_norm_grad(Tensor grad, {tensors}, Tensor mean, Tensor variance, {rest}) -> (Tensor, Tensor, Tensor)"
    )
    library.define(
        f"normalise_(Tensor(a!) values, Tensor mean, Tensor variance, Tensor? weight, Tensor? bias, {rest}) -> ()"
    )
    for name, native, fake in (
        ("batch_norm", _forward, _fake_forward),
        ("batch_norm_grad", _grad, _fake_grad),
        ("normalise_", _normalise, _fake_normalise),
    ):
        library.impl(name, native, "CPU")
        torch.library.register_fake(f"gossamer::{name}", fake, lib=library)
    torch.library.register_autograd("gossamer::batch_norm", _backward, setup_context=_setup, lib=library)


def batch_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """(output, mean [c], variance [c]) of float32 [n, c, h, w] on the CPU; the output is differentiable."""
    return torch.ops.gossamer.batch_norm(input, weight, bias, eps, relu)


def normalise_(
    values: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    relu: bool = False,
) -> Tensor:
    """`values`, contiguous float32 [n, c, h, w] on the CPU, normalised in place with the moments [c]; not differentiable."""
    torch.ops.gossamer.normalise_(values, mean, variance, weight, bias, eps, relu)
    return values
