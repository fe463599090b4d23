"""SparseConv2d: `nn.Conv2d` that stores one kernel for each connection and nothing for the others."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer import kernels
from gossamer.connectivity import PATTERNS, Connectivity

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class SparseConv2d(nn.Module):
    """Channel-sparse convolution, "The Power of Sparsity in Convolutional Neural Networks", section 3.2, Algorithm 2.

        out[n, o] = bias[o] + sum over the connections e of o:  in[n, indices[e]] * weight[e]

    The arguments are those of `nn.Conv2d`; the pattern is `connectivity`, or drawn at `density` (1: full) with
    `pattern` and `seed`. `groups` restricts it to block-diagonal connections.

    Shapes: input [n, in_channels, h, w] or [in_channels, h, w]; `weight` [e, kh, kw], one kernel for each connection
    in the order of the pattern; `bias` [out_channels]; buffers `indptr` [out_channels + 1] and `indices` [e], int32,
    are the pattern and travel in the state dict: loading one takes over its pattern, whatever the layer had.

    Raises ValueError or TypeError for arguments and inputs that do not fit.
    """

    indptr: Tensor
    indices: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        density: float = 1.0,
        pattern: str = "balanced",
        seed: int = 0,
        connectivity: Connectivity | None = None,
    ) -> None:
        super().__init__()
        if connectivity is None:
            connectivity = Connectivity.random(
                in_channels, out_channels, density, pattern=pattern, seed=seed, groups=groups
            )
        _check_fits(connectivity, in_channels, out_channels, groups)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = _pair("kernel_size", kernel_size, 1)
        self.stride = _pair("stride", stride, 1)
        self.dilation = _pair("dilation", dilation, 1)
        if padding_mode not in _PADDING_MODES:
            raise ValueError(f"padding_mode must be one of {', '.join(_PADDING_MODES)}, got {padding_mode!r}")
        self.padding = padding if isinstance(padding, str) else _pair("padding", padding, 0)
        self.padding_mode = padding_mode
        self.own_padding, self._before = _split_padding(
            self.padding, padding_mode, self.kernel_size, self.stride, self.dilation
        )
        self._reach = tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True))
        kernels_shape = (connectivity.connections, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(kernels_shape, device=device, dtype=dtype))
        free = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", free)
        self.register_buffer("indptr", torch.tensor(connectivity.indptr, device=device))
        self.register_buffer("indices", torch.tensor(connectivity.indices, device=device))
        self._drawn = (connectivity.pattern, connectivity.seed, connectivity.repaired)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights as `nn.Conv2d` does (uniform, bounded by 1 / sqrt(fan-in)), with each output's own fan-in."""
        fan_in = (self.indptr[1:] - self.indptr[:-1]).clamp(min=1) * math.prod(self.kernel_size)
        bound = fan_in.to(self.weight.dtype).rsqrt()
        with torch.no_grad():
            rows = torch.repeat_interleave(bound, self.indptr.diff(), output_size=self.weight.shape[0])
            self.weight.uniform_(-1, 1).mul_(rows[:, None, None])
            if self.bias is not None:
                self.bias.uniform_(-1, 1).mul_(bound)

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() not in (3, 4) or input.shape[-3] != self.in_channels:
            raise ValueError(
                f"SparseConv2d expects [n, {self.in_channels}, h, w] or [{self.in_channels}, h, w], "
                f"got {list(input.shape)}"
            )
        x = input if input.dim() == 4 else input[None]
        if self._before is not None:
            x = F.pad(x, self._before, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)
        for size, pad, reach in zip(x.shape[2:], self.own_padding, self._reach, strict=True):
            if size + 2 * pad < reach:
                raise ValueError(
                    f"the kernel reaches over {self._reach} pixels, more than the padded input {list(x.shape)}"
                )
        channels_last = input.stride(-3) == 1
        full = self.weight.shape[0] == self.out_channels * self.in_channels // self.groups
        dense = full and (self.in_channels > 1 or channels_last)  # on planes of one channel the native kernel is faster
        out = self._as_conv2d(x, channels_last) if dense else self._sparse(x)
        return out if input.dim() == 4 else out[0]

    def _as_conv2d(self, x: Tensor, channels_last: bool) -> Tensor:
        """What `nn.Conv2d` computes, as it does: with all connections, the kernels lie in memory as its weight does."""
        weight: Tensor = self.weight
        if x.is_cpu and torch.is_autocast_enabled("cpu") and weight.dtype == torch.float32:
            weight = weight.to(torch.get_autocast_dtype("cpu"))  # now, so that less is moved below
        weight = weight.view(self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        if channels_last:  # once here is cheaper than in every pass of the convolution
            weight = weight.contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, weight, self.bias, self.stride, self.own_padding, self.dilation, self.groups)

    def _sparse(self, x: Tensor) -> Tensor:
        compute = kernels.dense.sparse_conv2d if kernels.transformed(x, self.weight) else kernels.sparse_conv2d
        out = compute(
            x, self.weight, self.indptr, self.indices, self.stride, self.own_padding, self.dilation, self.groups
        )
        return out if self.bias is None else out + self.bias.to(out.dtype)[:, None, None]

    # -- pattern and weights --------------------------------------------------------------------------------------------

    @property
    def connectivity(self) -> Connectivity:
        """The pattern, as a value (a copy of the buffers)."""
        pattern, seed, repaired = self._drawn
        return Connectivity(
            self.in_channels,
            self.out_channels,
            self.indptr.numpy(force=True),
            self.indices.numpy(force=True),
            self.groups,
            pattern,
            seed,
            repaired,
        )

    @torch.no_grad()
    def replace_connectivity(self, connectivity: Connectivity, weight: Tensor) -> None:
        """Take another pattern with its kernels [e, kh, kw], in place: the parameter object stays the same."""
        _check_fits(connectivity, self.in_channels, self.out_channels, self.groups)
        if weight.shape != (connectivity.connections, *self.kernel_size):
            raise ValueError(
                f"weight must be {[connectivity.connections, *self.kernel_size]}, one kernel for each connection, "
                f"got {list(weight.shape)}"
            )
        self.weight.data = weight.to(self.weight).contiguous()
        self.indptr = torch.tensor(connectivity.indptr, device=self.indptr.device)
        self.indices = torch.tensor(connectivity.indices, device=self.indices.device)
        self._drawn = (connectivity.pattern, connectivity.seed, connectivity.repaired)

    @classmethod
    def from_dense(cls, conv: nn.Conv2d, connectivity: Connectivity) -> SparseConv2d:
        """The convolution with only these connections, whose kernels are the dense one's own."""
        if type(conv.weight) is not nn.Parameter or conv.weight.dim() != 4:
            raise TypeError(f"from_dense takes an nn.Conv2d with a plain weight, got {type(conv).__name__}")
        sparse = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            conv.weight.device,
            conv.weight.dtype,
            connectivity=connectivity,
        )
        with torch.no_grad():
            at = torch.from_numpy(sparse._dense_positions()).to(conv.weight.device)
            sparse.weight.copy_(conv.weight.flatten(0, 1)[at])
            if sparse.bias is not None and conv.bias is not None:
                sparse.bias.copy_(conv.bias)
        sparse.weight.requires_grad_(conv.weight.requires_grad)
        return sparse.train(conv.training)

    def to_dense(self) -> nn.Conv2d:
        """The `nn.Conv2d` that computes the same: zeros where no connection is."""
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.bias is not None,
            self.padding_mode,  # type: ignore[arg-type]
            self.weight.device,
            self.weight.dtype,
        )
        with torch.no_grad():
            at = torch.from_numpy(self._dense_positions()).to(self.weight.device)
            conv.weight.zero_().flatten(0, 1)[at] = self.weight
            if conv.bias is not None and self.bias is not None:
                conv.bias.copy_(self.bias)
        conv.weight.requires_grad_(self.weight.requires_grad)
        return conv.train(self.training)

    def _dense_positions(self) -> np.ndarray:
        """Where each connection lies in `nn.Conv2d`'s weight flattened to [out * in / groups, kh, kw]."""
        c = self.connectivity
        width = self.in_channels // self.groups
        return c.rows * width + c.indices % width

    # -- state ----------------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> Tensor:
        """How the pattern was drawn: (pattern, seed, repaired), int64, so that growth goes on the same way."""
        pattern, seed, repaired = self._drawn
        return torch.tensor([PATTERNS.index(pattern), seed, repaired])

    def set_extra_state(self, state: Tensor) -> None:
        if not isinstance(state, Tensor) or state.shape != (3,) or state.dtype != torch.int64:
            raise ValueError(f"the extra state of a SparseConv2d is three int64 numbers, got {state!r:.100}")
        pattern, seed, repaired = state.tolist()
        if not 0 <= pattern < len(PATTERNS) or repaired < 0:
            raise ValueError(
                f"the extra state of a SparseConv2d names pattern {pattern} and {repaired} repaired connections"
            )
        self._drawn = (PATTERNS[pattern], seed, repaired)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take over the pattern in the state dict before PyTorch compares shapes."""
        indptr, indices, weight = (state.get(prefix + name) for name in ("indptr", "indices", "weight"))
        if isinstance(indptr, Tensor) and isinstance(indices, Tensor) and isinstance(weight, Tensor):
            try:
                pattern = Connectivity(
                    self.in_channels,
                    self.out_channels,
                    indptr.numpy(force=True),
                    indices.numpy(force=True),
                    self.groups,
                )
                if (pattern.connections, *self.kernel_size) == tuple(weight.shape) and pattern != self.connectivity:
                    self.replace_connectivity(pattern, torch.empty_like(weight, device=self.weight.device))
            except ValueError as error:
                errors: list[str] = rest[-1]
                errors.append(f"the pattern stored for {prefix[:-1] or 'this layer'} does not fit: {error}")
                return
        super()._load_from_state_dict(state, prefix, *rest)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        for name, plain in (
            ("padding", (0, 0)),
            ("dilation", (1, 1)),
            ("groups", 1),
            ("padding_mode", "zeros"),
        ):
            if getattr(self, name) != plain:
                text += f", {name}={getattr(self, name)}"
        if self.bias is None:
            text += ", bias=False"
        possible = self.in_channels * self.out_channels // self.groups
        return f"{text}, connections={self.weight.shape[0]}, density={self.weight.shape[0] / possible:.4g}"


def _check_fits(connectivity: Connectivity, in_channels: int, out_channels: int, groups: int) -> None:
    if not isinstance(connectivity, Connectivity):
        raise TypeError(f"connectivity must be a gossamer.Connectivity, got {type(connectivity).__name__}")
    if (connectivity.in_channels, connectivity.out_channels) != (in_channels, out_channels):
        raise ValueError(f"{connectivity!r} does not fit a convolution {in_channels} -> {out_channels}")
    width, height = in_channels // groups, out_channels // groups
    if groups > 1 and (connectivity.indices // width != connectivity.rows // height).any():
        raise ValueError(f"{connectivity!r} has connections across the convolution's {groups} groups")


def _pair(name: str, value: Any, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(v, int) for v in pair):
        raise TypeError(f"{name} must be an int or two ints, got {value!r}")
    if min(pair) < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return pair


def _split_padding(
    padding: str | tuple[int, int],
    mode: str,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[tuple[int, int], list[int] | None]:
    """(what the operator pads itself, what `F.pad` must pad before it or None).

    The operator pads with zeros, the same on both sides; reflected or circular padding, and the uneven "same" padding of
    even kernels, come first.
    """
    if padding == "valid":
        return (0, 0), None
    if padding == "same":
        if stride != (1, 1):
            raise ValueError(f'padding="same" needs stride 1, got stride={stride}')
        total = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
    elif isinstance(padding, str):
        raise ValueError(f'padding must be "same", "valid", an int or two ints, got {padding!r}')
    else:
        total = [2 * p for p in padding]
    if mode == "zeros" and not any(t % 2 for t in total):
        return (total[0] // 2, total[1] // 2), None
    (top, bottom), (left, right) = ((t // 2, t - t // 2) for t in total)
    return (0, 0), [left, right, top, bottom] if any(total) else None
