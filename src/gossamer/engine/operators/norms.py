"""Normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gossamer.engine.operators.elementwise import binary
from gossamer.engine.views import Arrangement, Builder, MissingError, Seen, fresh


def batch_norm(
    b: Builder, x: Seen, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, eps: float
) -> Seen:
    if training or mean is None or variance is None:
        raise MissingError("with the statistics of the batch")
    scale = (variance.double() + eps).rsqrt() * (1 if weight is None else weight.double())
    shift = (0 if bias is None else bias.double()) - mean.double() * scale
    planes, arrangement = b.with_channels(x, 1)
    if arrangement.planes.c != len(scale):
        raise MissingError(f"on a tensor of shape {list(x.shape)}")
    tensors = {"scale": scale.float(), "shift": shift.float()}
    return arrangement.seen(b.emit("affine", [planes], planes.shape, {}, tensors))


def instance_norm(
    b: Builder, x: Seen, weight: Any, bias: Any, mean: Any, variance: Any, use_input_stats: bool, eps: float
) -> Seen:
    if not use_input_stats:
        return batch_norm(b, x, weight, bias, mean, variance, False, eps)
    return group_norm(b, x, x.shape[1], weight, bias, eps)


def group_norm(b: Builder, x: Seen, groups: int, weight: Any, bias: Any, eps: float) -> Seen:
    planes, arrangement = b.with_channels(x, 1)
    attributes = {"over": "group", "groups": groups, "epsilon": eps}
    return arrangement.seen(b.emit("norm", [planes], planes.shape, attributes, {"scale": weight, "shift": bias}))


def layer_norm(
    b: Builder, x: Seen, shape: Sequence[int], weight: Any, bias: Any, eps: float, center: bool = True
) -> Seen:
    more = {} if center else {"center": False}
    tensors = {"scale": weight, "shift": bias}
    if len(shape) == 1:
        channels = Arrangement((len(x.shape) - 1, *range(1, len(x.shape) - 1)), x.shape)
        planes = b.direct(x.through(x.view.permute(0, *channels.order)), channels.planes)
        if planes is not None:
            attributes = {"over": "channel", "epsilon": eps, **more}
            return channels.seen(b.emit("norm", [planes], planes.shape, attributes, tensors))
        rows = b.planes(x, (1, 1, shape[0]) if len(x.shape) == 2 else None)
        return fresh(b.emit("norm", [rows], rows.shape, {"over": "width", "epsilon": eps, **more}, tensors), x.shape)
    if len(shape) != len(x.shape) - 1:
        raise MissingError(f"over {list(shape)} of a tensor of shape {list(x.shape)}")
    planes = b.planes(x)
    attributes = {"over": "group", "groups": 1, "epsilon": eps, **more}
    output = fresh(b.emit("norm", [planes], planes.shape, attributes), x.shape)
    output = output if weight is None else binary(b, "mul", output, weight)
    return output if bias is None else binary(b, "add", output, bias)


def rms_norm(b: Builder, x: Seen, shape: Sequence[int], weight: Any, eps: float | None) -> Seen:
    return layer_norm(b, x, shape, weight, None, torch.finfo(torch.float32).eps if eps is None else eps, center=False)
