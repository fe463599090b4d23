"""From a configuration to the network it names, thinned and sparsified, and to the optimizer of its weights."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from gossamer import data, models
from gossamer.layers import SparseConv2d
from gossamer.surgery import sparsify, thin
from gossamer.surgery.first_layer import drop_filters
from gossamer.surgery.schedule import Doubling, Growth, Ramp, Schedule, Scheduled
from gossamer.surgery.widen import Widening, narrow
from gossamer.training.config import TrainConfig


def load_data(config: TrainConfig) -> data.DataSet:
    """The data set; the pictures of an image folder take the size that the network was made for."""
    size = config.image_size
    if size is None and data.is_image_folder(config.data):
        with torch.device("meta"):
            size = models.create(config.model).input_shape[1]  # type: ignore[index,assignment]
    return data.load(config.data, config.data_root, image_size=size, augment=config.augment, workers=config.workers)


def build_model(config: TrainConfig, description: data.Description, *, grown: bool = False) -> nn.Module:
    """The network for this data set, with initial weights from the seed; at the density that it grows to when `grown`.

    Raises ValueError when the network, the width or the density is impossible.
    """
    torch.manual_seed(config.seed)
    channels, size = description.image_shape[:2]
    model = models.create(config.model, num_classes=description.num_classes, in_channels=channels, image_size=size)
    if config.width < 1:
        model = thin(model, config.width, description.image_shape, divisor=config.divisor)
    density = config.density if config.grow_from is None or grown else config.grow_from
    if config.grow_from is not None and config.grow_by == "channels":
        return narrow(model, density, description.image_shape)
    if density < 1:
        whole = [_first_convolution(model)] if config.first_layer == "whole" else []
        model = sparsify(
            model,
            density,
            seed=config.seed,
            pattern=config.pattern,
            block=config.block,
            allocation=config.allocation,
            exclude=whole,
        )
        if config.first_layer == "sqrt":
            drop_filters(model, density, description.image_shape, config.seed)
    return model


def _first_convolution(model: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))


def make_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum or AdamW. Weights of convolutions and linear layers decay, vectors do not."""
    weights = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)


def make_growth(
    config: TrainConfig, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, description: data.Description
) -> Scheduled | None:
    """What makes the network denser in a run of so many steps; None when it keeps its density."""
    if config.grow_from is None:
        return None
    schedule: Schedule
    if config.grow_schedule == "factor":
        schedule = Doubling(config.grow_from, config.grow_every, config.grow_factor, config.density)
    else:
        steps = max(1, round(config.grow_until * steps))
        schedule = Ramp(config.grow_from, steps, config.grow_every, config.density, config.grow_schedule)
    if config.grow_by == "channels":
        full = build_model(replace(config, density=1.0), description, grown=True)
        return Widening(model, optimizer, schedule, full, description.image_shape)
    return Growth(model, optimizer, schedule, init=config.grow_init, by=config.grow_by)


def density(model: nn.Module) -> float:
    """Connections over possible connections, over all sparse layers; 1 for a dense network."""
    layers = [layer for layer in model.modules() if isinstance(layer, SparseConv2d)]
    possible = sum(layer.in_channels * layer.out_channels // layer.groups for layer in layers)
    return sum(len(layer.indices) for layer in layers) / possible if layers else 1.0
