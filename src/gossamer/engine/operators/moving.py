"""Concatenation, reshaping, padding, selection and interpolation: what only moves numbers, or mixes neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.engine.views import Arrangement, Builder, MissingError, Seen, canonical, fresh


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


def viewed(operator: Any) -> Callable[..., Any]:
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


def padded(mode: str) -> Callable[..., Any]:
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


def upsampled(operator: Any) -> Callable[..., Any]:
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
