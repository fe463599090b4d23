"""The paper's networks (section 5.1) and any other by name: plain dense PyTorch modules that know nothing of sparsity."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from gossamer.models.inception import InceptionV3
from gossamer.models.small import CIFARNet, MNISTNet
from gossamer.models.vgg import VGG11, VGG16, VGG16n

__all__ = ["VGG11", "VGG16", "CIFARNet", "InceptionV3", "MNISTNet", "VGG16n", "create", "names"]

_OURS: dict[str, Callable[..., nn.Module]] = {
    "mnist": MNISTNet,
    "cifar": CIFARNet,
    "vgg11": VGG11,
    "vgg16": VGG16,
    "vgg16n": VGG16n,
    "inception_v3": InceptionV3,
}
_FORMS = "torchvision:NAME, timm:NAME or package.module:factory"


def names() -> list[str]:
    """The networks that come with Gossamer."""
    return list(_OURS)


def is_factory(model: str) -> bool:
    """Whether `create` would import a module of somebody else's and call a function in it."""
    source, colon, _ = model.partition(":")
    return bool(colon) and source not in _MAKERS


def create(
    model: str, *, num_classes: int | None = None, in_channels: int | None = None, image_size: int | None = None
) -> nn.Module:
    """A freshly initialised dense network, by name.

    `model` is one of `names()`, `torchvision:NAME`, `timm:NAME`, or `package.module:factory`, a function that takes the
    keyword arguments given here (those left None keep the network's own default). What is returned has the attribute
    `input_shape`, the (channels, height, width) of one image. Raises ValueError for a name that does not exist.
    """
    wanted = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    given = {name: value for name, value in wanted.items() if value is not None}
    source, colon, name = model.partition(":")
    if not colon:
        if model not in _OURS:
            raise ValueError(f"no model named {model!r}: choose {', '.join(_OURS)}, or give {_FORMS}")
        return _OURS[model](**given)
    maker = _MAKERS.get(source)
    return maker(name, **given) if maker else _from_factory(source, name, given)


def _from_torchvision(
    name: str, num_classes: int = 1000, in_channels: int = 3, image_size: int | None = None
) -> nn.Module:
    from gossamer._torchvision import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ValueError(f"torchvision has no classification model named {name!r}")
    if in_channels != 3:
        raise ValueError(f"torchvision's models take 3 input channels, got {in_channels}")
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    network = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    size = image_size or (299 if name == "inception_v3" else 224)
    network.input_shape = (3, size, size)
    return network


def _from_timm(
    name: str, num_classes: int | None = None, in_channels: int = 3, image_size: int | None = None
) -> nn.Module:
    from gossamer._torchvision import import_timm

    timm = import_timm()
    if not timm.is_model(name):
        raise ValueError(f"timm has no model named {name!r}")
    options = {} if num_classes is None else {"num_classes": num_classes}
    network = timm.create_model(name, pretrained=False, in_chans=in_channels, **options)
    size = network.pretrained_cfg.get("input_size", (3, 224, 224))[1:]
    network.input_shape = (in_channels, *((image_size, image_size) if image_size else size))
    return network


_MAKERS: dict[str, Callable[..., nn.Module]] = {"torchvision": _from_torchvision, "timm": _from_timm}


def _from_factory(module: str, name: str, given: dict[str, Any]) -> nn.Module:
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot find the model factory {module}:{name}: {error}") from error
    network = factory(**given)
    if not isinstance(network, nn.Module):
        raise TypeError(f"{module}:{name} must return an nn.Module, got {type(network).__name__}")
    if "image_size" in given and not hasattr(network, "input_shape"):
        size = given["image_size"]
        network.input_shape = (given.get("in_channels", 3), size, size)  # type: ignore[assignment]
    return network
