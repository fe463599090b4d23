"""The networks of the paper, and others by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gossamer as gs


@pytest.mark.parametrize(
    ("name", "size"), [("mnist", 28), ("mnist", 8), ("cifar", 32), ("vgg11", 32), ("vgg16n", 32), ("inception_v3", 80)]
)
def test_ours_run_and_train(name: str, size: int) -> None:
    model = gs.models.create(name, num_classes=5, image_size=size)
    image = torch.randn(2, *model.input_shape)
    assert model.input_shape[1:] == (size, size)
    assert model(image).shape == (2, 5)
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert not any(isinstance(m, gs.SparseConv2d) for m in model.modules())


@pytest.mark.parametrize(
    ("size", "pooled_to", "padding", "madds"),
    [
        (224, 3, 0, 15_346_630_656 + 512 * 1024 * 9),  # the paper's: VGG-16's convolutions and one position of the last
        (192, 3, 0, None),
        (160, 2, 1, None),
        (64, 1, 1, None),
        (32, 1, 1, None),
    ],
)
def test_vgg16n_keeps_its_weights_at_every_size(size: int, pooled_to: int, padding: int, madds: int | None) -> None:
    with torch.device("meta"):
        model = gs.models.create("vgg16n", image_size=size).eval()
        maps = model.head[0](model.features(torch.empty(1, *model.input_shape)))
        last = model.head(model.features(torch.empty(1, *model.input_shape)))
    assert maps.shape == (1, 512, pooled_to, pooled_to)
    assert model.head[1][0].padding == (padding, padding)
    assert last.shape[2] == pooled_to + 2 * padding - 2
    cost = gs.count(model, model.input_shape)
    assert cost.params == 19_429_056
    assert madds is None or cost.madds == madds


def test_the_auxiliary_head_is_optional_and_off() -> None:
    assert gs.models.create("inception_v3", image_size=139).auxiliary is None
    model = gs.models.InceptionV3(num_classes=3, image_size=139, auxiliary=True)
    logits, auxiliary = model.train()(torch.randn(2, 3, 139, 139))
    assert logits.shape == auxiliary.shape == (2, 3)
    assert model.eval()(torch.randn(1, 3, 139, 139)).shape == (1, 3)


def make(num_classes: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, num_classes, 1), nn.Flatten())


def test_other_sources() -> None:
    assert gs.models.create("torchvision:resnet18", num_classes=3).fc.out_features == 3
    assert gs.models.create("timm:resnet18", in_channels=1, image_size=64).input_shape == (1, 64, 64)
    assert gs.models.create(f"{__name__}:make", num_classes=6)[0].out_channels == 6


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lenet", "no model named 'lenet': choose mnist, cifar"),
        ("torchvision:nonesuch", "torchvision has no classification model named 'nonesuch'"),
        ("timm:nonesuch", "timm has no model named 'nonesuch'"),
        ("no.such.package:make", "cannot find the model factory"),
        ("collections:OrderedDict", "must return an nn.Module"),
    ],
)
def test_unknown_names(spec: str, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        gs.models.create(spec)


@pytest.mark.parametrize(("name", "size"), [("mnist", 30), ("cifar", 3), ("vgg16n", 16), ("inception_v3", 32)])
def test_images_too_small(name: str, size: int) -> None:
    with pytest.raises(ValueError, match=f"got {size}"):
        gs.models.create(name, image_size=size)
