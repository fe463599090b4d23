"""Another pattern for a layer that is being trained: kernels and optimizer state move with the connections that stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Adagrad, Optimizer, Rprop

from gossamer.connectivity import Connectivity
from gossamer.connectivity.hashing import derive
from gossamer.layers import SparseConv2d

Init = Literal["zero", "random"]


def transplant(layer: SparseConv2d, new: Connectivity, optimizer: Optimizer | None = None, init: Init = "zero") -> None:
    """Give the layer the connections of `new`, in place; the parameter object stays the same.

    Connections of both patterns keep their kernels, and `optimizer` its state for them. The others start at `init`:
    "zero", or "random" within 1 / sqrt(fan-in) as a new layer does (drawn from the pattern's own seed, so alike in every
    process), with fresh optimizer state.
    """
    old = layer.connectivity
    _, before, after = np.intersect1d(old.positions, new.positions, assume_unique=True, return_indices=True)
    source, target = (torch.from_numpy(rows).to(layer.weight.device) for rows in (before, after))

    def move(values: Tensor, rest: Tensor) -> Tensor:
        return rest.index_copy(0, target, values[source])

    weight = layer.weight.detach()
    fresh = weight.new_zeros(new.connections, *layer.kernel_size)
    state_size = weight.shape[0]
    layer.replace_connectivity(new, move(weight, _random_kernels(fresh, new) if init == "random" else fresh))
    forget_graphs(layer.weight)
    if optimizer is not None:
        _move_state(optimizer, layer.weight, state_size, move)


def check_optimizer(optimizer: Optimizer | None) -> None:
    """Raise for an optimizer whose state cannot be told apart by weight."""
    if isinstance(optimizer, LBFGS):
        raise ValueError("LBFGS keeps one history for all parameters together, which cannot follow single connections")


def _random_kernels(like: Tensor, c: Connectivity) -> Tensor:
    generator = torch.Generator().manual_seed(derive(c.seed, f"kernels {c.connections}"))
    bound = torch.from_numpy((c.fan_in[c.rows] * like[0].numel()) ** -0.5)[:, None, None]
    return ((torch.rand(like.shape, generator=generator) * 2 - 1) * bound).to(like)


def _move_state(
    optimizer: Optimizer, parameter: nn.Parameter, size: int, move: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Every tensor of the state that has a row for each of the `size` old connections gets one for each new one."""
    state: dict[str, Any] = optimizer.state.get(parameter, {})
    for key, value in state.items():
        if isinstance(value, Tensor) and value.ndim == parameter.ndim and value.shape[0] == size:
            start = _start(optimizer, parameter, key)
            state[key] = move(value, value.new_full((parameter.shape[0], *value.shape[1:]), start))


def _start(optimizer: Optimizer, parameter: nn.Parameter, key: str) -> float:
    """What PyTorch's optimizers start a tensor of their state from: zero, with two exceptions."""
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    if isinstance(optimizer, Rprop) and key == "step_size":
        return float(group["lr"])
    if isinstance(optimizer, Adagrad) and key == "sum":
        return float(group["initial_accumulator_value"])
    return 0.0


def forget_graphs(parameter: nn.Parameter) -> None:
    """Cut the parameter from graphs that are still alive (the last loss, a DDP wrapper), which expect its old shape.

    Autograd keeps one gradient accumulator for a parameter as long as any graph holds it, and renews it only when the
    type of the data changes: hence the detour over another type.
    """
    parameter.grad = None
    data = parameter.data
    parameter.data = data.to(torch.float16 if data.dtype != torch.float16 else torch.float32)
    parameter.data = data
