"""Whole networks of every family, sparse, thin and dense, as native programs that agree with PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from zoo import Of

import gossamer as gs

SPARSE = """torchvision:resnet18 torchvision:squeezenet1_1 torchvision:shufflenet_v2_x0_5 timm:mobilenetv3_small_050
timm:regnety_002 timm:convnext_atto timm:ghostnet_050""".split()


@torch.no_grad()
def agrees(model: nn.Module, *images: Tensor) -> gs.Program:
    """The model's program, after it gave what the model gives, on one thread and on two."""
    for module in model.modules():  # statistics that are no identity
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.7, 1.4)  # type: ignore[union-attr]
    want = model.eval()(*images)
    program = gs.compile(model, images)
    for program.threads in (1, 2):
        got = program(*images)
        assert type(got) is type(want)
        for one, other in zip(_tensors(got), _tensors(want), strict=True):
            assert (one - other).abs().max() <= 1e-4 * other.abs().max()
    return program


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("family", SPARSE)
def test_sparse_families(family: str) -> None:
    model = gs.sparsify(gs.models.create(family, num_classes=7), 0.1)
    program = agrees(model, torch.randn(2, 3, 64, 64))
    assert not [layer for layer in program.layers if layer.kind == "concat"]


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v2", "timm:mnasnet_small"])
def test_thin_families(name: str) -> None:
    image = torch.randn(1, 3, 64, 64)
    agrees(gs.thin(gs.models.create(name, num_classes=7), 0.25, image), image)


@pytest.mark.parametrize(
    ("name", "size"), [("mnist", 28), ("cifar", 32), ("vgg16", 32), ("vgg16n", 32), ("inception_v3", 75)]
)
@pytest.mark.parametrize("density", [1.0, 0.1])
def test_ours(name: str, size: int, density: float) -> None:
    model = gs.models.create(name, num_classes=5, image_size=size)
    agrees(gs.sparsify(model, density) if density < 1 else model, torch.randn(1, *model.input_shape))


def test_what_the_model_returns_comes_back_and_survives_a_file(tmp_path: Path) -> None:
    model = Of(lambda x, y: {"sum": x + y, "all": [x.mean((2, 3)), None, (y.relu(),)]})
    program = agrees(model, torch.randn(3, 2, 5, 5), torch.randn(3, 2, 5, 5))
    program.save(tmp_path / "net.gossamer")
    again = gs.Program.load(tmp_path / "net.gossamer")
    x, y = torch.randn(2, 2, 5, 5), torch.randn(2, 2, 5, 5)
    got, want = again(x, y), model(x, y)
    assert got["all"][1] is None
    torch.testing.assert_close(got["all"][2][0], want["all"][2][0])
    torch.testing.assert_close(torch.from_numpy(again(x.numpy(), inputs_1=y.numpy())["sum"]), want["sum"])
