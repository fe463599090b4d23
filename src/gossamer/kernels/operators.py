"""The three bilinear operators of channel-sparse convolution, and who computes them.

`sparse_conv2d`, its input gradient and its weight gradient close under differentiation: each one's backward is made
of the other two, so autograd works twice over for every backend. PyTorch's dispatcher chooses the backend: `native`
(as `policy` says) for CPU tensors, `dense` for everything else. `reference` is the specification. `pool` and `norm` have
operators of their own.

Letters: input [n, c, h, w], weight [e, kh, kw] (one kernel for each connection), indptr [o + 1] and indices [e] (CSR
by output channel, int32), output [n, o, oh, ow]. Padding is symmetric and zero. `groups` only tells the dense backend
that the pattern is block-diagonal; `path` is "native", "dense", "auto" or what `use_path` asks for (`policy`).
Section 3.2 and Algorithm 2 of the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gossamer.kernels import checks, dense, policy
from gossamer.kernels.native import conv, norm, pool

__all__ = ["sparse_conv2d", "sparse_conv2d_input_grad", "sparse_conv2d_weight_grad", "transformed"]

_OPERATORS = ("sparse_conv2d", "sparse_conv2d_input_grad", "sparse_conv2d_weight_grad")

_library = torch.library.Library("gossamer", "DEF")
_PATTERN = "Tensor indptr, Tensor indices"
_GEOMETRY = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, int groups=1, str path='asked'"
_library.define(f"sparse_conv2d(Tensor input, Tensor weight, {_PATTERN}, {_GEOMETRY}) -> Tensor")
_library.define(
    f"sparse_conv2d_input_grad(Tensor grad_output, Tensor weight, {_PATTERN}, SymInt[4] input_shape, {_GEOMETRY}) -> Tensor"
)
_library.define(
    f"sparse_conv2d_weight_grad(Tensor grad_output, Tensor input, {_PATTERN}, SymInt[2] kernel_size, {_GEOMETRY}) -> Tensor"
)
for _name in _OPERATORS:
    _library.impl(_name, getattr(dense, _name), "CompositeExplicitAutograd")
conv.register(_library)
pool.register(_library)
norm.register(_library)

sparse_conv2d = torch.ops.gossamer.sparse_conv2d.default
sparse_conv2d_input_grad = torch.ops.gossamer.sparse_conv2d_input_grad.default
sparse_conv2d_weight_grad = torch.ops.gossamer.sparse_conv2d_weight_grad.default


def transformed(*tensors: Tensor) -> bool:
    """Whether torch.func or forward-mode differentiation follows one of them: PyTorch's own functions know how, ours do not."""
    if torch.compiler.is_compiling():
        return False
    unpack, wrapped = torch.autograd.forward_ad.unpack_dual, torch._C._functorch.is_functorch_wrapped_tensor
    return any(wrapped(t) or unpack(t).tangent is not None for t in tensors)


# -- shapes without data -----------------------------------------------------------------------------------------------


def _fake_forward(
    input: Tensor,
    weight: Tensor,
    indptr: Tensor,
    indices: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    path: str = policy.ASKED,
) -> Tensor:
    shape = checks.forward(input, weight, indptr, indices, stride, padding, dilation, groups)
    native = policy.takes("forward", input, weight, input.shape, weight.shape[1:], indptr, indices, groups, path)
    return _fake(input, shape, native)


def _fake_input_grad(
    grad_output: Tensor,
    weight: Tensor,
    indptr: Tensor,
    indices: Tensor,
    input_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    path: str = policy.ASKED,
) -> Tensor:
    checks.input_grad(grad_output, weight, indptr, indices, input_shape, stride, padding, dilation, groups)
    kernel = weight.shape[1:]
    native = policy.takes("input_grad", grad_output, weight, input_shape, kernel, indptr, indices, groups, path)
    return _fake(grad_output, input_shape, native)


def _fake_weight_grad(
    grad_output: Tensor,
    input: Tensor,
    indptr: Tensor,
    indices: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    path: str = policy.ASKED,
) -> Tensor:
    checks.weight_grad(grad_output, input, indptr, indices, kernel_size, stride, padding, dilation, groups)
    return grad_output.new_empty(indices.shape[0], *kernel_size)


def _fake(images: Tensor, shape: Sequence[int], native: bool) -> Tensor:
    """Native kernels return contiguous planes, the dense backend what it is given."""
    format = torch.contiguous_format if native else dense.layout(images)
    return torch.empty(tuple(shape), dtype=images.dtype, device=images.device, memory_format=format)


torch.library.register_fake("gossamer::sparse_conv2d", _fake_forward, lib=_library)
torch.library.register_fake("gossamer::sparse_conv2d_input_grad", _fake_input_grad, lib=_library)
torch.library.register_fake("gossamer::sparse_conv2d_weight_grad", _fake_weight_grad, lib=_library)


# -- autograd: (grad_output, input, weight) in three places -------------------------------------------------------------


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    first, second, indptr, indices, *rest = inputs
    ctx.save_for_backward(first, second, indptr, indices)
    *geometry, path = rest[-5:]
    ctx.geometry = (
        *geometry,
        policy.asked_path() if path == policy.ASKED else path,
    )  # also for a backward outside of `use_path`


def _backward_forward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, weight, *pattern = ctx.saved_tensors
    for_input = for_weight = None
    if ctx.needs_input_grad[0]:
        for_input = sparse_conv2d_input_grad(grad, weight, *pattern, input.shape, *ctx.geometry)
    if ctx.needs_input_grad[1]:
        for_weight = sparse_conv2d_weight_grad(grad, input, *pattern, weight.shape[1:], *ctx.geometry)
    return for_input, for_weight, *[None] * 7


def _backward_input_grad(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    grad_output, weight, *pattern = ctx.saved_tensors
    for_grad_output = for_weight = None
    if ctx.needs_input_grad[0]:
        for_grad_output = sparse_conv2d(grad, weight, *pattern, *ctx.geometry)
    if ctx.needs_input_grad[1]:
        for_weight = sparse_conv2d_weight_grad(grad_output, grad, *pattern, weight.shape[1:], *ctx.geometry)
    return for_grad_output, for_weight, *[None] * 8


def _backward_weight_grad(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    grad_output, input, *pattern = ctx.saved_tensors
    for_grad_output = for_input = None
    if ctx.needs_input_grad[0]:
        for_grad_output = sparse_conv2d(input, grad, *pattern, *ctx.geometry)
    if ctx.needs_input_grad[1]:
        for_input = sparse_conv2d_input_grad(grad_output, grad, *pattern, input.shape, *ctx.geometry)
    return for_grad_output, for_input, *[None] * 8


for _name, _formula in (
    ("sparse_conv2d", _backward_forward),
    ("sparse_conv2d_input_grad", _backward_input_grad),
    ("sparse_conv2d_weight_grad", _backward_weight_grad),
):
    torch.library.register_autograd(f"gossamer::{_name}", _formula, setup_context=_setup, lib=_library)


# -- autocast and FLOPs ------------------------------------------------------------------------------------------------


def _autocast(operator: Callable[..., Tensor], device: str) -> Callable[..., Tensor]:
    """Cast to the precision of autocast; on the CPU as `_cpu_precision` says."""

    def run(first: Tensor, second: Tensor, *rest: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device)
        if device == "cpu":
            dtype = _cpu_precision(operator, first, second, *rest)
        with torch.autocast(device, enabled=False):
            return operator(*(t if t.dtype == torch.float64 else t.to(dtype) for t in (first, second)), *rest)

    return run


def _cpu_precision(operator: Callable[..., Tensor], first: Tensor, second: Tensor, *rest: Any) -> torch.dtype:
    """float32 where the native kernels compute, which know no other; autocast's on the dense path. Gradients follow."""
    if operator is not sparse_conv2d:
        return torch.promote_types(first.dtype, second.dtype)
    indptr, indices, _, *others = rest
    if (
        first.dim() != 4
        or second.dim() != 3
        or not (first.numel() and indptr.dim() == indices.dim() == 1 < indptr.numel())
    ):
        return torch.float32  # what is wrong is said where it is computed
    groups = others[2] if len(others) > 2 else 1
    asked = others[3] if len(others) > 3 else policy.ASKED
    connections, outputs = indices.shape[0], indptr.shape[0] - 1
    path, _ = policy.choose_path("forward", first.shape, second.shape[1:], connections, outputs, groups, asked)
    return torch.float32 if path == "native" else torch.get_autocast_dtype("cpu")


for _device, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
    for _operator in (sparse_conv2d, sparse_conv2d_input_grad, sparse_conv2d_weight_grad):
        _library.impl(_operator._schema.name.split("::")[1], _autocast(_operator, _device), _key)


@register_flop_formula(torch.ops.gossamer.sparse_conv2d)
def _flops_forward(input: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return _flops(weight, out_shape)


@register_flop_formula(torch.ops.gossamer.sparse_conv2d_input_grad)
def _flops_input_grad(grad_output: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return _flops(weight, grad_output)


@register_flop_formula(torch.ops.gossamer.sparse_conv2d_weight_grad)
def _flops_weight_grad(grad_output: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return _flops(out_shape, grad_output)


def _flops(weight: Sequence[int], output: Sequence[int]) -> int:
    """Two for each multiply-add: every kernel element meets every output position of every image once."""
    connections, kh, kw = weight
    n, _, oh, ow = output
    return 2 * connections * kh * kw * n * oh * ow
