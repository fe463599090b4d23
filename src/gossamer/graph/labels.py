"""Label tensors: which channel node every element of a tensor holds.

Labels are int64 of the tensor's own shape, expanded (stride 0) along every axis where they do not vary, so that they cost
next to nothing however large the plane.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def along(nodes: Tensor, axis: int, shape: Sequence[int]) -> Tensor:
    """Nodes laid along one axis of a tensor of this shape."""
    return nodes.reshape([-1 if a == axis else 1 for a in range(len(shape))]).expand(tuple(shape))


def constant_along(labels: Tensor, axis: int) -> bool:
    return labels.shape[axis] <= 1 or labels.stride(axis) == 0


def compact(labels: Tensor) -> Tensor:
    """The same labels, expanded (stride 0) along every axis where they do not vary."""
    core = labels
    for axis in (a for a in range(labels.dim()) if labels.stride(a) == 0):
        core = core.narrow(axis, 0, min(1, core.shape[axis]))
    for axis in reversed(range(labels.dim())):
        first = core.narrow(axis, 0, min(1, core.shape[axis]))
        if core.shape[axis] > 1 and torch.equal(core, first.expand(core.shape)):
            core = first
    return core.expand(labels.shape)


def concatenated(operands: list[Tensor], axis: int = 0) -> Tensor:
    """`torch.cat` that leaves axes along which nothing varies as they are."""
    still = [a for a in range(operands[0].dim()) if a != axis % operands[0].dim()]
    still = [a for a in still if all(constant_along(t, a) for t in operands)]
    cut = operands
    for a in still:
        cut = [t.narrow(a, 0, min(1, t.shape[a])) for t in cut]
    whole = torch.cat(cut, axis)
    return whole.expand([operands[0].shape[a] if a in still else n for a, n in enumerate(whole.shape)])


def core(operands: list[Tensor], always: Sequence[int] = ()) -> tuple[np.ndarray, list[int]]:
    """What remains of labels of one shape when the axes along which none varies are cut to one element.

    Returns the stacked remains [operands, ...] and the axes that were kept whole.
    """
    axes = [
        a for a in range(operands[0].dim()) if a in always or any(t.shape[a] > 1 and t.stride(a) != 0 for t in operands)
    ]
    cut = []
    for labels in operands:
        for a in range(labels.dim()):
            if a not in axes:
                labels = labels.narrow(a, 0, min(1, labels.shape[a]))
        cut.append(labels.numpy())
    return np.stack(cut), axes


def restore(core: Tensor, axes: list[int], shape: Sequence[int]) -> Tensor:
    """The inverse of `core`, for one tensor."""
    return core.reshape([n if a in axes else 1 for a, n in enumerate(shape)]).expand(tuple(shape))
