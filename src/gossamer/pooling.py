"""Max-pooling at the speed of the sparse convolutions around it: `nn.MaxPool2d` with a native kernel for NCHW on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.kernels import pool

__all__ = ["MaxPool2d", "exchange_pools"]


class MaxPool2d(nn.MaxPool2d):
    """`nn.MaxPool2d`, with the same arguments and results.

    PyTorch pools contiguous NCHW planes on the CPU one element at a time. Those (float32, square windows up to 15 x 15,
    no dilation, `ceil_mode` or `return_indices`) go to Gossamer's operator; everything else, `torch.compile` and export
    included, to PyTorch's.
    """

    def forward(self, input: Tensor) -> Tensor:
        window = self._native_window(input)
        return super().forward(input) if window is None else pool.max_pool2d(input, *window)

    def _native_window(self, input: Tensor) -> tuple[int, int, int] | None:
        """(kernel, stride, padding) where the native operator computes this call."""
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]
        if torch.compiler.is_compiling() or tracing or not _is_plain(input):
            return None
        if input.device.type != "cpu" or input.dtype != torch.float32 or input.dim() != 4 or not input.is_contiguous():
            return None
        if self.ceil_mode or self.return_indices or _one(self.dilation) != 1:
            return None
        kernel, stride, padding = (_one(value) for value in (self.kernel_size, self.stride, self.padding))
        if kernel is None or stride is None or padding is None:
            return None
        if not 1 <= kernel <= pool.LARGEST or stride < 1 or not 0 <= padding <= kernel // 2 or 0 in input.shape:
            return None  # what PyTorch has an error message for, among others
        return (kernel, stride, padding) if min(pool.output_size(input.shape, kernel, stride, padding)) > 0 else None


def _is_plain(input: Tensor) -> bool:
    """Not a subclass, nor inside a transformation of torch.func, nor with a forward-mode derivative."""
    if type(input) is not Tensor or torch._C._functorch.is_functorch_wrapped_tensor(input):
        return False
    return torch.autograd.forward_ad.unpack_dual(input).tangent is None


def _one(size: int | tuple[int, ...]) -> int | None:
    """The size in both directions, where it is one."""
    sizes = {size} if isinstance(size, int) else set(size)
    return sizes.pop() if len(sizes) == 1 else None


def exchange_pools(model: nn.Module) -> None:
    """Put a `MaxPool2d` in the place of every plain `nn.MaxPool2d` inside `model`."""
    made: dict[nn.Module, MaxPool2d] = {}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if type(child) is nn.MaxPool2d:
                parent._modules[name] = made.setdefault(child, _like(child))


def _like(pool: nn.MaxPool2d) -> MaxPool2d:
    return MaxPool2d(
        pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.return_indices, pool.ceil_mode
    ).train(pool.training)
