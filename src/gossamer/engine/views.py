"""Tensors of the captured model as views of planes: moving, cutting and reshaping cost nothing until somebody needs planes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.engine.ir import Activation, Operation, Shape, Value

_storages = count()


def new_storage() -> int:
    """A number that no other storage has."""
    return next(_storages)


class MissingError(Exception):
    """What a program cannot do, in words that follow the operator's name."""


@dataclass(frozen=True)
class Seen:
    """A tensor of the model, [1, ...]: `view` (on the meta device) says by its sizes, strides and offset which element of
    `value`, in row-major order, each of its elements is. Tensors of one `storage` change together when one is written in place.
    """

    value: Value
    view: Tensor
    storage: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.view.shape)

    def through(self, view: Tensor) -> Seen:
        """Another view of the same storage."""
        return Seen(self.value, view, self.storage)

    def detached(self) -> Seen:
        """The same numbers in a storage of their own."""
        return Seen(self.value, self.view, new_storage())

    @property
    def packed(self) -> bool:
        """Whether the view is a stretch of the value, in order."""
        return self.view.is_contiguous()

    @property
    def whole(self) -> bool:
        """Whether every element of the value is seen once, in whatever order."""
        return self.view.numel() == self.value.shape.size and _in_order(self.view).is_contiguous()


def fresh(value: Value, shape: Sequence[int]) -> Seen:
    """A tensor of this shape, whose elements are those of `value` in order."""
    return Seen(value, torch.empty(tuple(shape), device="meta"), new_storage())


class Builder:
    """Writes operations down, and finds the planes that a tensor is."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.constants: dict[Value, np.ndarray] = {}
        self.layer = ""
        self._names = count()

    def name(self, shape: Sequence[int]) -> Value:
        """A new value."""
        return Value(f"v{next(self._names)}", Shape(*shape))

    def emit(
        self,
        kind: str,
        inputs: Sequence[Value],
        shape: Sequence[int],
        attributes: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Tensor | None] | None = None,
        activation: Activation | None = None,
    ) -> Value:
        """A new value, made by a new operation."""
        output = self.name(shape)
        arrays = {role: array(t) for role, t in (tensors or {}).items() if t is not None}
        self.operations.append(Operation(kind, tuple(inputs), output, attributes or {}, arrays, activation, self.layer))
        return output

    def constant(self, tensor: Tensor, shape: Sequence[int]) -> Value:
        """A value that holds a constant."""
        value = self.name(shape)
        self.constants[value] = array(tensor).reshape(value.shape)
        return value

    # -- planes that a tensor is ------------------------------------------------------------------------------------------

    def direct(self, seen: Seen, shape: Sequence[int]) -> Value | None:
        """The tensor's elements in order, as planes of this shape, where they lie so already."""
        value, shape = seen.value, Shape(*shape)
        if not seen.packed:
            return None
        if shape == value.shape:
            return value
        first, rest = divmod(int(seen.view.storage_offset()), shape.h * shape.w)
        if shape[1:] == value.shape[1:] and rest == 0:
            return self.emit("slice", [value], shape, {"first": first})
        return None

    def planes(self, seen: Seen | Tensor, shape: Sequence[int] | None = None) -> Value:
        """The tensor's elements in order, as planes of this shape; copied if need be."""
        shape = Shape(*canonical(seen.shape) if shape is None else shape)
        if isinstance(seen, Tensor):
            return self.constant(seen, shape)
        found = self.direct(seen, shape)
        if found is not None:
            return found
        sizes, strides = _merged(seen.view)
        start = int(seen.view.storage_offset())
        return self.emit("copy", [seen.value], shape, {"sizes": sizes, "strides": strides, "start": start})

    def with_channels(self, seen: Seen, dim: int) -> tuple[Value, Arrangement]:
        """Planes whose channels are dimension `dim` of the tensor; the others, but for the batch, are rows and columns."""
        rank = seen.view.dim()
        order = [dim % rank, *(d for d in range(1, rank) if d != dim % rank)]
        return self._arranged(seen, order)

    def in_place_order(self, seen: Seen) -> tuple[Value, Arrangement]:
        """Planes in whatever order of the dimensions needs no copy; in the tensor's own where each does."""
        for order in _orders(seen.view):
            arrangement = Arrangement(tuple(order), seen.shape)
            found = self.direct(seen.through(seen.view.permute(0, *order)), arrangement.planes)
            if found is not None:
                return found, arrangement
        return self._arranged(seen, list(range(1, seen.view.dim())))

    def _arranged(self, seen: Seen, order: list[int]) -> tuple[Value, Arrangement]:
        arrangement = Arrangement(tuple(order), seen.shape)
        return self.planes(seen.through(seen.view.permute(0, *order)), arrangement.planes), arrangement


@dataclass(frozen=True)
class Arrangement:
    """How a tensor of `shape` lies in planes: its dimensions `order` (the batch apart), most significant first."""

    order: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def planes(self) -> Shape:
        """The planes: channels are the first dimension, or those before the last two."""
        sizes = [self.shape[d] for d in self.order]
        if len(sizes) < 3:
            c, w = (*sizes, 1, 1)[:2]
            return Shape(c, 1, w) if len(sizes) == 2 else Shape(c, 1, 1)
        return Shape(math.prod(sizes[:-2]), *sizes[-2:])

    def axis(self, dim: int) -> int | None:
        """Which axis of the planes (0, 1, 2) a dimension is; none where several lie in one."""
        at = self.order.index(dim % len(self.shape))
        if len(self.order) < 3:
            return 2 * at
        outer = len(self.order) - 2
        return at - outer + 1 if at >= outer else 0 if outer == 1 else None

    def seen(self, value: Value, changed: Mapping[int, int] | None = None) -> Seen:
        """Planes with this arrangement as the tensor they are, where `changed` dimensions have other sizes."""
        sizes = [(changed or {}).get(d, n) for d, n in enumerate(self.shape)]
        view = torch.empty([sizes[0], *(sizes[d] for d in self.order)], device="meta")
        back = [0] * len(sizes)
        for at, dim in enumerate(self.order):
            back[dim] = at + 1
        return Seen(value, view.permute(back), new_storage())


def canonical(shape: Sequence[int]) -> Shape:
    """The planes a tensor [1, ...] lies in when nothing is said."""
    sizes = list(shape[1:])
    if len(sizes) == 2:
        return Shape(1, *sizes)
    return Arrangement(tuple(range(1, len(shape))), tuple(shape)).planes if sizes else Shape(1, 1, 1)


def pair(size: Any, dims: int, missing: int) -> list[int]:
    """One number or one for each dimension, as two for rows and columns."""
    sizes = [int(size)] if isinstance(size, int) else [int(s) for s in size]
    sizes = sizes * dims if len(sizes) == 1 else sizes
    return [missing] * (2 - dims) + sizes


def array(tensor: Tensor) -> np.ndarray:
    """What a program stores of a constant."""
    kind = torch.float32 if tensor.is_floating_point() or tensor.dtype == torch.bool else torch.int32
    return np.ascontiguousarray(tensor.detach().to("cpu", kind).numpy())


def _orders(view: Tensor) -> list[list[int]]:
    """Orders of the dimensions in which the view may lie packed: its own, by its strides, channels-last."""
    own = list(range(1, view.dim()))
    by_stride = sorted(own, key=lambda d: (-view.stride()[d], d))
    return [own, by_stride, *([[3, 1, 2]] if view.dim() == 4 else [])]


def _in_order(view: Tensor) -> Tensor:
    return view.permute(sorted(range(view.dim()), key=lambda d: (view.shape[d] > 1, -view.stride()[d], d)))


def _merged(view: Tensor) -> tuple[list[int], list[int]]:
    """Sizes and strides of a view, neighbours that lie as one made one."""
    sizes, strides = [1], [1]
    for size, stride in zip(view.shape, view.stride(), strict=True):
        if size == 1:
            continue
        if sizes[-1] > 1 and strides[-1] == size * stride:
            sizes[-1] *= size
            strides[-1] = stride
        elif sizes == [1]:
            sizes, strides = [size], [stride]
        else:
            sizes.append(size)
            strides.append(stride)
    return sizes, [int(s) for s in strides]
