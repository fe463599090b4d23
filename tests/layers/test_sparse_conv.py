"""SparseConv2d is `nn.Conv2d` with fewer connections: the same outputs, gradients, errors and life cycle."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gossamer as gs

GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 1},
    {"kernel_size": (3, 5), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    {"kernel_size": 4, "padding": "same"},
    {"kernel_size": (2, 3), "padding": "same", "dilation": (3, 1)},
    {"kernel_size": 3, "padding": "valid", "bias": False},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": (2, 1), "padding_mode": "circular"},
    {"kernel_size": 4, "padding": "same", "padding_mode": "replicate"},
    {"kernel_size": 3, "padding": 1, "groups": 2},
]

SYMMETRIC = [g for g in GEOMETRIES if g.get("padding") != "same"]
"""Even kernels padded to the same size round differently: nn.Conv2d pads one side of the image, and the operator the rest."""


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_full_connectivity_is_conv2d(geometry: dict[str, Any]) -> None:
    conv = nn.Conv2d(4, 6, **geometry).double()
    sparse = gs.SparseConv2d(4, 6, **geometry).double()
    with torch.no_grad():
        sparse.weight.copy_(conv.weight.flatten(0, 1))
        if conv.bias is not None:
            sparse.bias.copy_(conv.bias)
    inputs = [torch.randn(2, 4, 11, 9, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    with torch.no_grad():
        inputs[1].copy_(inputs[0])
    expected, found = conv(inputs[0]), sparse(inputs[1])
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(expected)
    expected.backward(grad)
    found.backward(grad)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    torch.testing.assert_close(sparse.weight.grad, conv.weight.grad.flatten(0, 1))
    if conv.bias is not None:
        torch.testing.assert_close(sparse.bias.grad, conv.bias.grad)
    torch.testing.assert_close(sparse(inputs[1][0]), conv(inputs[0][0]))  # one image without a batch


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planes", "channels_last"])
@pytest.mark.parametrize("amp", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("geometry", [*SYMMETRIC, {"kernel_size": 3, "groups": 4}, {"kernel_size": 7}], ids=str)
def test_a_full_layer_is_conv2d_bit_by_bit(geometry: dict[str, Any], amp: bool, layout: torch.memory_format) -> None:
    conv = nn.Conv2d(4, 8, **geometry).to(memory_format=layout)
    sparse = gs.SparseConv2d.from_dense(conv, gs.Connectivity.grouped(4, 8, conv.groups))
    images = torch.randn(2, 4, 11, 9).to(memory_format=layout)
    results = []
    for layer in (conv, sparse):
        x = images.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            out = layer(x)
        assert out.dtype == (torch.bfloat16 if amp else torch.float32)
        out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape).to(out))
        results.append([out, x.grad, layer.weight.grad.reshape(-1, *layer.kernel_size)])
        results[-1].extend([] if layer.bias is None else [layer.bias.grad])
    for expected, found in zip(*results, strict=True):
        assert torch.equal(found, expected)
    assert results[0][0].stride() == results[1][0].stride()


def test_a_full_layer_of_one_input_channel_keeps_the_layout_of_its_images() -> None:
    """In planes the native kernel computes it; laid out channels-last it is `nn.Conv2d`."""
    conv = nn.Conv2d(1, 8, 5, padding=2)
    sparse = gs.SparseConv2d.from_dense(conv, gs.Connectivity.full(1, 8))
    x = torch.randn(2, 1, 12, 12)
    torch.testing.assert_close(sparse(x), conv(x))
    last = x.to(memory_format=torch.channels_last)
    expected = conv.to(memory_format=torch.channels_last)(last)
    assert torch.equal(sparse(last), expected)
    assert sparse(last).stride() == expected.stride()
    assert sparse(x).is_contiguous()


def test_a_seed_draws_what_conv2d_draws() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 7, 3)
    torch.manual_seed(0)
    sparse = gs.SparseConv2d(5, 7, 3)
    torch.testing.assert_close(sparse.weight, conv.weight.flatten(0, 1))
    torch.testing.assert_close(sparse.bias, conv.bias)


def test_initialisation_knows_each_outputs_fan_in() -> None:
    mask = np.zeros((2, 100), dtype=bool)
    mask[0, :4] = mask[1] = True
    layer = gs.SparseConv2d(100, 2, 1, connectivity=gs.Connectivity.from_mask(mask))
    few, many = layer.weight[:4].abs().max(), layer.weight[4:].abs().max()
    assert 0.1 < few <= 0.5  # 1 / sqrt(4)
    assert 0.05 < many <= 0.1  # 1 / sqrt(100)


@pytest.mark.parametrize("groups", [1, 2])
def test_from_dense_and_to_dense_are_inverse(groups: int) -> None:
    conv = nn.Conv2d(6, 8, 3, padding=1, groups=groups).eval().requires_grad_(False)
    pattern = gs.Connectivity.random(6, 8, 0.5, groups=groups)
    sparse = gs.SparseConv2d.from_dense(conv, pattern)
    dense = sparse.to_dense()
    mask = torch.from_numpy(pattern.mask())
    if groups == 1:
        assert torch.equal(dense.weight, conv.weight * mask[:, :, None, None])
    x = torch.randn(2, 6, 5, 5)
    torch.testing.assert_close(sparse(x), dense(x))
    assert not sparse.training
    assert not sparse.weight.requires_grad
    assert torch.equal(gs.SparseConv2d.from_dense(dense, pattern).weight, sparse.weight)


def test_only_live_connections_take_memory() -> None:
    layer = gs.SparseConv2d(256, 256, 3, density=0.1, bias=False)
    assert layer.weight.shape == (round(0.1 * 256 * 256), 3, 3)
    stored = sum(t.numel() * t.element_size() for t in layer.buffers())
    trained = 3 * layer.weight.numel() * 4  # weights, gradients, momentum
    assert stored < 0.06 * trained


@pytest.mark.parametrize("pattern", ["balanced", "uniform"])
def test_a_state_dict_carries_the_pattern(pattern: str) -> None:
    one = gs.SparseConv2d(6, 8, 3, density=0.3, pattern=pattern, seed=1)
    buffer = io.BytesIO()
    torch.save(one.state_dict(), buffer)
    buffer.seek(0)
    other = gs.SparseConv2d(6, 8, 3, density=0.6, seed=2)
    parameter = other.weight
    result = other.load_state_dict(torch.load(buffer, weights_only=True))
    assert not result.missing_keys
    assert other.weight is parameter
    assert other.connectivity == one.connectivity
    assert other.connectivity.pattern == pattern
    assert torch.equal(other.weight, one.weight)
    x = torch.randn(1, 6, 5, 5)
    assert torch.equal(one(x), other(x))
    assert other.connectivity.grow(0.7) == one.connectivity.grow(0.7)


def test_a_state_dict_that_does_not_fit_is_refused() -> None:
    layer = gs.SparseConv2d(6, 8, 3, density=0.3)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(RuntimeError, match="the pattern stored for this layer does not fit: indices must lie in"):
        layer.load_state_dict(gs.SparseConv2d(20, 8, 3, density=0.3).state_dict())
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict({})


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(clone: Any) -> None:
    layer = gs.SparseConv2d(4, 6, 3, density=0.5, pattern="uniform", seed=3)
    twin = clone(layer)
    x = torch.randn(1, 4, 6, 6)
    assert torch.equal(layer(x), twin(x))
    assert twin.connectivity.seed == 3
    with torch.no_grad():
        twin.weight.zero_()
    assert layer.weight.abs().sum() > 0


def test_to_moves_weights_and_leaves_indices() -> None:
    layer = gs.SparseConv2d(4, 6, 3, density=0.5).to(torch.float64)
    assert layer.weight.dtype == torch.float64
    assert layer.indices.dtype == torch.int32
    assert layer(torch.zeros(1, 4, 5, 5, dtype=torch.float64)).dtype == torch.float64
    assert layer.to("meta").weight.device.type == "meta"


@pytest.mark.parametrize("density", [0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiles_whole_and_exports(dtype: torch.dtype, density: float) -> None:
    layer = gs.SparseConv2d(4, 6, 3, padding=1, density=density, dtype=dtype)
    x = torch.randn(2, 4, 6, 6, dtype=dtype)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    found, layer.weight.grad = layer.weight.grad, None
    layer(x).sum().backward()
    torch.testing.assert_close(found, layer.weight.grad)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x))


def test_a_network_trains_under_autocast() -> None:
    model = nn.Sequential(
        gs.SparseConv2d(4, 6, 3, density=0.5), nn.Conv2d(6, 6, 1), gs.SparseConv2d(6, 2, 3, density=0.5)
    )
    with torch.autocast("cpu", torch.bfloat16):
        out = model(torch.randn(1, 4, 7, 7))
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\], got 0"):
        gs.SparseConv2d(4, 4, 3, density=0)
    with pytest.raises(ValueError, match="padding_mode must be one of"):
        gs.SparseConv2d(4, 4, 3, padding_mode="mirror")
    with pytest.raises(ValueError, match='padding="same" needs stride 1'):
        gs.SparseConv2d(4, 4, 3, stride=2, padding="same")
    with pytest.raises(TypeError, match=r"kernel_size must be an int or two ints, got 3\.5"):
        gs.SparseConv2d(4, 4, 3.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        gs.SparseConv2d(4, 4, 3, stride=0)
    with pytest.raises(ValueError, match="does not fit a convolution 4 -> 4"):
        gs.SparseConv2d(4, 4, 3, connectivity=gs.Connectivity.full(3, 4))
    with pytest.raises(TypeError, match=r"connectivity must be a gossamer\.Connectivity"):
        gs.SparseConv2d(4, 4, 3, connectivity="full")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="across the convolution's 2 groups"):
        gs.SparseConv2d(4, 4, 3, groups=2, connectivity=gs.Connectivity.full(4, 4))
    with pytest.raises(TypeError, match=r"from_dense takes an nn\.Conv2d"):
        gs.SparseConv2d.from_dense(nn.Linear(3, 3), gs.Connectivity.full(3, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 3, 5, 5), (4, 5), (1, 1, 4, 5, 5)])
def test_inputs_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expects \[n, 4, h, w\] or \[4, h, w\], got"):
        gs.SparseConv2d(4, 4, 3)(torch.zeros(shape))


def test_an_image_smaller_than_the_kernel_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"the kernel reaches over \(5, 5\) pixels, more than the padded input \[1, 2, 3, 3\]"
    ):
        gs.SparseConv2d(2, 2, 5, density=0.5)(torch.zeros(1, 2, 3, 3))


def test_repr_says_what_it_is() -> None:
    text = repr(gs.SparseConv2d(8, 8, 3, padding=1, density=0.25, bias=False))
    assert text == (
        "SparseConv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False, connections=16, density=0.25)"
    )


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # PyTorch's own, from jvp
@pytest.mark.parametrize("learns", [True, False])
def test_transformations_of_functions_see_the_convolution(learns: bool) -> None:
    """The operators themselves have no forward-mode derivative; a derivative of zero would be a silent lie."""
    layer = gs.SparseConv2d(4, 6, 3, density=0.5).requires_grad_(learns)
    dense, x, v = layer.to_dense(), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 8)
    for transform in (
        lambda f: torch.func.jvp(f, (x,), (v,)),
        lambda f: torch.func.grad(lambda image: f(image).square().sum())(x),
        lambda f: torch.func.vmap(f)(torch.stack([x, v])),
        lambda f: torch.func.vmap(torch.func.grad(lambda image: f(image[None]).square().sum()))(x),
    ):
        torch.testing.assert_close(transform(layer), transform(dense), rtol=1e-4, atol=1e-4)

    def with_weight(weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, (x,))

    tangent = torch.func.jvp(with_weight, (layer.weight.detach(),), (torch.ones_like(layer.weight),))[1]
    ones = copy.deepcopy(layer)
    with torch.no_grad():
        ones.weight.fill_(1)
        ones.bias.zero_()
        torch.testing.assert_close(tangent, ones(x), rtol=1e-4, atol=1e-4)
