"""Surgery is a function from model to model, on any network."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import gossamer as gs
import nets

FAMILIES = """torchvision:vgg11_bn torchvision:resnet18 torchvision:wide_resnet50_2 torchvision:resnext50_32x4d
torchvision:inception_v3 torchvision:googlenet torchvision:densenet121 torchvision:squeezenet1_1 torchvision:mobilenet_v2
torchvision:mobilenet_v3_small torchvision:shufflenet_v2_x0_5 torchvision:efficientnet_b0 torchvision:regnet_y_400mf
torchvision:convnext_tiny torchvision:mnasnet0_5 timm:vgg11_bn timm:resnet18 timm:wide_resnet50_2 timm:resnext50_32x4d
timm:inception_v3 timm:densenet121 timm:mobilenetv2_050 timm:mobilenetv3_small_050 timm:efficientnet_b0 timm:regnety_002
timm:convnext_atto timm:mnasnet_small timm:seresnet50 timm:ghostnet_050""".split()


def _kinds(model: nn.Module, kind: type[nn.Module]) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if isinstance(m, kind)}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_thinned_sparsified_and_runs(family: str) -> None:
    model = gs.models.create(family, num_classes=7)
    size = 96 if "inception" in family or "googlenet" in family else 64
    image = torch.randn(2, 3, size, size)
    thin = gs.thin(model, 0.5, image)
    sparse = gs.sparsify(thin, 0.1).eval()
    with torch.no_grad():
        assert sparse(image).shape == (2, 7)
    assert not _kinds(thin, gs.SparseConv2d)
    dense = [n for n, m in _kinds(sparse, nn.Conv2d).items() if m.groups != m.in_channels or m.groups == 1]
    assert dense == []
    full, half = gs.count(model, image), gs.count(thin, image)
    assert half.madds < 0.45 * full.madds
    assert gs.count(sparse, image).params < 0.5 * half.params
    assert gs.dead_channels(sparse, image) == gs.dead_channels(model, image)


@pytest.mark.parametrize("network", [*nets.FOLLOWED])
@pytest.mark.parametrize("multiplier", [0.25, 0.3, 0.5, 0.75, 1.0])
def test_thin_shrinks_what_belongs_together(network: type[nn.Module], multiplier: float) -> None:
    model = network()
    small = gs.thin(model, multiplier, nets.IMAGE)
    image = torch.randn(2, *nets.IMAGE)
    assert small.eval()(image).shape == (2, 5)
    if multiplier == 1:
        torch.testing.assert_close(small(image), model.eval()(image))
    small.train()(image).sum().backward()


def test_thin_sizes() -> None:
    small = gs.thin(nets.Residual(), 0.3, nets.IMAGE)
    assert (small.stem.out_channels, small.norm.num_features, small.shared.in_channels) == (4, 4, 4)  # ceil(0.3 * 12)
    assert (small.down.out_channels, small.classifier.in_features, small.classifier.out_features) == (6, 6, 5)
    small = gs.thin(nets.Concatenating(), 0.25, nets.IMAGE)
    assert (small.left.out_channels, small.right.out_channels, small.both.out_channels) == (2, 3, 5)
    assert (small.hidden.in_features, small.hidden.out_features) == (5 * 16, 24)  # heads keep their width
    small = gs.thin(nets.Gated(), 0.5, nets.IMAGE)
    assert (small.squeeze.out_features, small.expand.out_features, small.scale.shape) == (2, 16, (8, 1, 1))
    assert small.norm.normalized_shape == (8,)
    small = gs.thin(nets.Shuffling(), 0.5, nets.IMAGE)
    assert (small.depthwise.groups, small.grouped.groups, small.grouped.in_channels) == (4, 2, 8)
    assert gs.thin(nets.Residual(), 0.01, nets.IMAGE).down.out_channels == 1
    assert gs.thin(nets.Residual(), 0.01, nets.IMAGE, divisor=8).down.out_channels == 8
    assert gs.thin(nets.Residual(), 0.9, nets.IMAGE, divisor=8).down.out_channels == 16


def test_thin_takes_the_models_own_weights_scaled_to_the_fan_in() -> None:
    model = nets.Residual()
    small = gs.thin(model, 0.5, nets.IMAGE)
    torch.testing.assert_close(small.stem.weight, model.stem.weight[:6])  # the image keeps its channels
    torch.testing.assert_close(small.down.weight, model.down.weight[:10, :6] * math.sqrt(2))


def test_thin_refuses_what_it_cannot_follow() -> None:
    with pytest.raises(ValueError, match=r"cannot thin this model by 0\.5: .*partial"):
        gs.thin(nets.Slicing(), 0.5, nets.IMAGE)
    with pytest.raises(ValueError, match="cannot follow the channels through"):
        gs.thin(nets.Attending(), 0.5, nets.IMAGE)
    with pytest.raises(ValueError, match=r"multiplier must be in \(0, 1\], got 2"):
        gs.thin(nets.Residual(), 2, nets.IMAGE)
    with pytest.raises(ValueError, match="divisor must be a positive integer"):
        gs.thin(nets.Residual(), 0.5, nets.IMAGE, divisor=0)
    with pytest.raises(ValueError, match="thin needs example inputs"):
        gs.thin(nets.Residual(), 0.5)


def test_thin_after_sparsify_draws_anew() -> None:
    sparse = gs.sparsify(nets.Residual(), 0.25)
    small = gs.thin(sparse, 0.5, nets.IMAGE)
    assert small.shared.weight.shape[0] == max(round(0.25 * 36), 6)
    assert small(torch.randn(1, *nets.IMAGE)).shape == (1, 5)


# -- sparsify ----------------------------------------------------------------------------------------------------------


def test_sparsify_copies_by_default() -> None:
    model = nets.Residual()
    sparse = gs.sparsify(model, 0.5)
    assert not _kinds(model, gs.SparseConv2d)
    assert len(_kinds(sparse, gs.SparseConv2d)) == 4
    assert isinstance(sparse.classifier, nn.Linear)
    assert gs.sparsify(model, 0.5, inplace=True) is model
    assert _kinds(model, gs.SparseConv2d)


def test_the_same_seed_gives_the_same_network_whatever_the_order_of_layers() -> None:
    one, two = gs.sparsify(nets.Residual(), 0.5, seed=1), gs.sparsify(nets.Residual(), 0.5, seed=1)
    other = gs.sparsify(nets.Residual(), 0.5, seed=2)
    assert one.shared.connectivity == two.shared.connectivity
    assert one.shared.connectivity != other.shared.connectivity
    assert one.shared.connectivity.mask().tolist() != one.stem.connectivity.mask().tolist()


def test_keep_weights_keeps_the_kernels() -> None:
    model = nets.Concatenating()
    sparse = gs.sparsify(model, 0.5, keep_weights=True)
    mask = torch.from_numpy(sparse.both.connectivity.mask())
    assert torch.equal(sparse.both.weight, model.both.weight[mask])
    fresh = gs.sparsify(model, 0.5)
    gain = np.sqrt(16 / sparse.both.connectivity.fan_in)[sparse.both.connectivity.rows]
    torch.testing.assert_close(
        fresh.both.weight, sparse.both.weight * torch.tensor(gain, dtype=torch.float32)[:, None, None]
    )


def test_a_shared_layer_stays_shared() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.ReLU(), shared)
    sparse = gs.sparsify(model, 0.5)
    assert sparse[1] is sparse[3]
    assert isinstance(sparse[1], gs.SparseConv2d)


def test_a_bare_convolution() -> None:
    assert isinstance(gs.sparsify(nn.Conv2d(4, 4, 3), 0.5), gs.SparseConv2d)


def test_exclude() -> None:
    model = nets.Residual()
    assert set(_kinds(gs.sparsify(model, 0.5, exclude=["stem", "sh.*"]), nn.Conv2d)) == {"stem", "shared", "shortcut"}
    with pytest.raises(ValueError, match="exclude='steam' names no layer"):
        gs.sparsify(model, 0.5, exclude=["steam"])
    with pytest.raises(ValueError, match="no dense convolution left"):
        gs.sparsify(model, 0.5, exclude=[nn.Conv2d])


def test_depthwise_convolutions_stay_whole_and_groups_are_kept() -> None:
    sparse = gs.sparsify(nets.Shuffling(), 0.5)
    assert isinstance(sparse.depthwise, nn.Conv2d)
    mask = sparse.grouped.connectivity.mask()
    assert not mask[:12, 8:].any()
    assert not mask[12:, :8].any()
    assert sparse.grouped.connectivity.density == 0.5


@pytest.mark.parametrize("density", [0.3, 0.6])
def test_erdos_renyi_meets_the_total(density: float) -> None:
    model = gs.models.create("vgg16n", image_size=32)
    sparse = gs.sparsify(model, density, allocation="erdos-renyi")
    dense = sum(m.weight.numel() for m in _kinds(model, nn.Conv2d).values())
    kept = sum(m.weight.numel() for m in _kinds(sparse, gs.SparseConv2d).values())
    assert kept == pytest.approx(density * dense, rel=1e-3)
    densities = [m.connectivity.density for m in _kinds(sparse, gs.SparseConv2d).values()]
    assert densities[0] == 1  # three channels
    assert densities[1] > densities[-1]


def test_allocation_by_name() -> None:
    sparse = gs.sparsify(nets.Residual(), 0.5, allocation={"s.*": 1.0, "shared": 0.25})
    assert sparse.stem.connectivity.density == 1
    assert sparse.shared.connectivity.density == 0.25
    assert sparse.down.connectivity.density == 0.5
    with pytest.raises(ValueError, match="allocation names 'foo', which matches none"):
        gs.sparsify(nets.Residual(), 0.5, allocation={"foo": 0.5})
    with pytest.raises(ValueError, match='allocation must be "uniform", "erdos-renyi" or a mapping'):
        gs.sparsify(nets.Residual(), 0.5, allocation="magnitude")


def test_an_impossible_total_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"the nearest it can is 0\.\d+") as caught:
        gs.sparsify(nets.Residual(), 0.01, allocation="erdos-renyi")
    nearest = float(str(caught.value).rsplit(" ", 1)[1])
    gs.sparsify(nets.Residual(), nearest + 0.01, allocation="erdos-renyi")


def test_the_result_says_what_the_repair_cost() -> None:
    sparse = gs.sparsify(nets.Residual(), 0.001)
    report, patterns = sparse.sparsified, [m.connectivity for m in _kinds(sparse, gs.SparseConv2d).values()]
    assert report.repaired == report.connections - sum(round(0.001 * c.possible) for c in patterns)
    assert report.layers == tuple(_kinds(sparse, gs.SparseConv2d))
    assert report.repaired > 0
    assert "keep a channel alive" in str(report)
    assert gs.sparsify(nets.Residual(), 0.9).sparsified.repaired == 0


def test_layers_that_cannot_be_made_sparse_are_named() -> None:
    class Own(nn.Conv2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    with pytest.raises(ValueError, match="cannot make '0' sparse: Own computes its weight or output its own way"):
        gs.sparsify(nn.Sequential(Own(3, 3, 1)), 0.5)
    tied = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="cannot make '1' sparse: it shares its weight with '0'"):
        gs.sparsify(tied, 0.5)
    for density in (0, 1.1, -1):
        with pytest.raises(ValueError, match=r"density must be in \(0, 1\]"):
            gs.sparsify(nets.Residual(), density)
    with pytest.raises(ValueError, match="no dense convolution left"):
        gs.sparsify(nn.Linear(3, 3), 0.5)


def test_a_sparse_model_survives_deepcopy_and_trains() -> None:
    model = copy.deepcopy(gs.sparsify(nets.Residual(), 0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    image, target = torch.randn(8, *nets.IMAGE), torch.randint(5, (8,))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(image), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
