"""A model given other sizes and patterns in place, so that it can hold what a file holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from gossamer.connectivity import Connectivity
from gossamer.layers import SparseConv2d, exchange_layers
from gossamer.surgery.transplant import forget_graphs


@torch.no_grad()
def reshape(
    model: nn.Module,
    patterns: Mapping[nn.Module, Connectivity],
    sizes: Mapping[str, Sequence[int]],
    groups: Mapping[nn.Module, int],
) -> nn.Module:
    """The model with sparse layers of these `patterns`, and with parameters and buffers of these `sizes`.

    Values are left to be filled in. Sparse layers stay the objects they are, wherever they stand; a dense convolution is
    replaced, and the pooling and normalisation around it become Gossamer's. `sizes` holds the names of what changes;
    what a layer says of its own channels follows, with `groups` for convolutions. What is on the meta device moves to
    the CPU. Returns the model: another one only if it is itself a convolution that becomes sparse.
    """
    _materialise(model)
    for name, size in sizes.items():
        owner_name, _, own = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        tensor: torch.Tensor = getattr(owner, own)
        _resize(tensor, tuple(size))
        _follow(owner, tensor, groups)
    made: dict[nn.Module, nn.Module] = {}
    for layer, c in patterns.items():
        if isinstance(layer, SparseConv2d):
            _take_pattern(layer, c)
        else:
            assert isinstance(layer, nn.Conv2d)
            layer.in_channels, layer.out_channels, layer.groups = c.in_channels, c.out_channels, c.groups
            shape = (c.out_channels, c.in_channels // c.groups, *layer.kernel_size)
            _resize(layer.weight, shape)
            if layer.bias is not None:
                _resize(layer.bias, shape[:1])
            made[layer] = SparseConv2d.from_dense(layer, c)
    if model in made:
        return made[model]
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in made:
                parent._modules[name] = made[child]
    if made:
        exchange_layers(model)
    return model


def _take_pattern(layer: SparseConv2d, c: Connectivity) -> None:
    layer.in_channels, layer.out_channels, layer.groups = c.in_channels, c.out_channels, c.groups
    if layer.bias is not None:
        _resize(layer.bias, (c.out_channels,))
    _resize(layer.weight, (c.connections, *layer.kernel_size))
    layer.replace_connectivity(c, layer.weight)


def _resize(tensor: torch.Tensor, size: tuple[int, ...]) -> None:
    if tensor.shape != size:
        tensor.data = tensor.new_empty(size)
        if isinstance(tensor, nn.Parameter):
            forget_graphs(tensor)


def _follow(layer: nn.Module, tensor: torch.Tensor, groups: Mapping[nn.Module, int]) -> None:
    """Let a layer say of its channels what its `tensor` now has."""
    if isinstance(layer, _ConvNd):
        layer.groups = groups[layer]
        if tensor is layer.weight:
            first, second = tensor.shape[0], tensor.shape[1] * layer.groups
            layer.in_channels, layer.out_channels = (first, second) if layer.transposed else (second, first)
    elif isinstance(layer, nn.Linear):
        if tensor is layer.weight:
            layer.out_features, layer.in_features = tensor.shape
    else:
        for attribute in ("num_features", "num_channels"):
            if isinstance(getattr(layer, attribute, None), int):
                setattr(layer, attribute, tensor.shape[0])
        if isinstance(getattr(layer, "normalized_shape", None), tuple):
            setattr(layer, "normalized_shape", tuple(tensor.shape))  # noqa: B010 - nn.Module types it as a tensor


def _materialise(model: nn.Module) -> None:
    """Give parameters and buffers of the meta device memory on the CPU; what is tied stays so."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_meta:
                    if id(tensor) not in made:
                        fresh = torch.empty_like(tensor, device="cpu")
                        kind = type(tensor) is nn.Parameter
                        made[id(tensor)] = nn.Parameter(fresh, tensor.requires_grad) if kind else fresh
                    tensors[name] = made[id(tensor)]  # type: ignore[assignment]
