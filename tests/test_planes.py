"""`MaxPool2d`, `AvgPool2d` and `BatchNorm2d`: who computes what, and that nobody but the clock can tell."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import gossamer as gs
from gossamer import planes
from gossamer.tracing import trace


class Operators(TorchDispatchMode):
    """The names of the operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


def pooled_natively(layer: nn.Module, x: Tensor) -> bool:
    """Whether ours computes this; either way the result must be nn.MaxPool2d's."""
    plain = nn.MaxPool2d(layer.kernel_size, layer.stride, layer.padding, layer.dilation, ceil_mode=layer.ceil_mode)
    with Operators() as operators:
        y = layer(x)
    assert torch.equal(y, plain(x))
    assert y.dtype == x.dtype
    return "gossamer.max_pool2d" in operators.names


X = torch.randn(2, 8, 12, 15)


@pytest.fixture(autouse=True)
def _small_inputs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The native operators take small inputs as well, which would cost more than they save."""
    for name in ("LEAST_POOLED", "LEAST_TRAINED"):
        monkeypatch.setattr(planes, name, 0)


def test_small_inputs_go_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for layer in (gs.MaxPool2d(2), gs.AvgPool2d(3, 1), gs.BatchNorm2d(8), gs.BatchNorm2d(8).eval()):
        with torch.no_grad():
            assert operators(layer, X) == set()
    large = torch.randn(4, 8, 304, 304)
    for layer in (gs.MaxPool2d(2), gs.AvgPool2d(3, 1), gs.BatchNorm2d(8)):
        assert operators(layer, large) != set()


@pytest.mark.parametrize("arguments", [(2,), (3, 2, 1), ((3, 3), (2, 2), (1, 1)), (3, 1)], ids=str)
@pytest.mark.parametrize("gradient", [True, False])
def test_contiguous_planes_are_pooled_natively(arguments: tuple, gradient: bool) -> None:
    assert pooled_natively(gs.MaxPool2d(*arguments), X.clone().requires_grad_(gradient))


def test_everything_else_goes_to_pytorch() -> None:
    layer = gs.MaxPool2d(3, 2, 1)
    assert not pooled_natively(layer, X.contiguous(memory_format=torch.channels_last))
    assert not pooled_natively(layer, X.double())
    assert not pooled_natively(layer, X.bfloat16())
    assert not pooled_natively(layer, X[0])
    assert not pooled_natively(layer, X[:, :, ::2])
    assert not pooled_natively(layer, X[:0])
    assert not pooled_natively(gs.MaxPool2d(3, 2, dilation=2), X)
    assert not pooled_natively(gs.MaxPool2d((3, 2)), X)
    assert not pooled_natively(gs.MaxPool2d(3, (2, 1)), X)
    assert not pooled_natively(gs.MaxPool2d(2, ceil_mode=True), X)
    assert not pooled_natively(gs.MaxPool2d(16, 1, 8), torch.randn(1, 1, 20, 20))
    assert layer(X.to("meta")).shape == (2, 8, 6, 8)
    output, index = gs.MaxPool2d(2, return_indices=True)(X)
    assert torch.equal(index, F.max_pool2d(X, 2, return_indices=True)[1])
    assert torch.equal(output, F.max_pool2d(X, 2))


@pytest.mark.parametrize("arguments", [(2, 2, 2), (0,), (20,), (3, 1, -1)], ids=str)
def test_errors_are_pytorchs(arguments: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError) as theirs:
        nn.MaxPool2d(*arguments)(X)
    with pytest.raises(RuntimeError) as ours:
        gs.MaxPool2d(*arguments)(X)
    assert str(ours.value) == str(theirs.value)


def test_autocast_pools_what_it_is_given() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert pooled_natively(gs.MaxPool2d(2), X)
        assert not pooled_natively(gs.MaxPool2d(2), X.bfloat16())


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # PyTorch's own, from jvp
def test_transformations_of_functions() -> None:
    layer, plain = gs.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1)
    five = torch.randn(3, 2, 4, 9, 9)
    assert torch.equal(torch.func.vmap(layer)(five), torch.func.vmap(plain)(five))
    ours, theirs = (torch.func.grad(lambda x, f=f: f(x).pow(2).sum())(X) for f in (layer, plain))
    assert torch.equal(ours, theirs)
    ours, theirs = (torch.func.jvp(f, (X,), (torch.ones_like(X),))[1] for f in (layer, plain))
    assert torch.equal(ours, theirs)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X, torch.ones_like(X))
        ours, theirs = (forward_ad.unpack_dual(f(dual)).tangent for f in (layer, plain))
    assert torch.equal(ours, theirs)


# -- averages ----------------------------------------------------------------------------------------------------------


def operators(layer: nn.Module, x: Tensor) -> set[str]:
    with Operators() as seen:
        layer(x)
    return {name for name in seen.names if name.startswith("gossamer.")}


@pytest.mark.parametrize("arguments", [(3, 1, 1), (3, 2, 1), (5, 2), ((4, 4), 1, 2), (2, 1, 0, False, False)], ids=str)
def test_averages_are_a_convolution(arguments: tuple) -> None:
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    layer, plain = gs.AvgPool2d(*arguments), nn.AvgPool2d(*arguments)
    assert operators(layer, x) == {"gossamer.sparse_conv2d"}
    torch.testing.assert_close(layer(x), plain(y))
    for pool, image in ((layer, x), (plain, y)):
        pool(image).pow(3).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (gs.AvgPool2d(3, 1, 1, count_include_pad=False), X),
        (gs.AvgPool2d(3, 2, ceil_mode=True), X),
        (gs.AvgPool2d(2, 1, divisor_override=3), X),
        (gs.AvgPool2d((2, 3), 1), X),
        (gs.AvgPool2d(2), X),
        (gs.AvgPool2d(5, 3), X),
        (gs.AvgPool2d(12, 1), X),
        (gs.AvgPool2d(2, 1), X.double()),
        (gs.AvgPool2d(2, 1), X.contiguous(memory_format=torch.channels_last)),
        (gs.AvgPool2d(2, 1), X[0]),
    ],
)
def test_other_averages_go_to_pytorch(layer: gs.AvgPool2d, x: Tensor) -> None:
    plain = nn.AvgPool2d(
        *(layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, layer.count_include_pad),
        layer.divisor_override,
    )
    assert operators(layer, x) == set()
    assert torch.equal(layer(x), plain(x))


# -- batch normalisation -----------------------------------------------------------------------------------------------


def twins(**arguments: object) -> tuple[gs.BatchNorm2d, nn.BatchNorm2d]:
    """Ours and PyTorch's, with the same parameters and buffers."""
    ours, theirs = gs.BatchNorm2d(8, **arguments), nn.BatchNorm2d(8, **arguments)
    if ours.affine:
        nn.init.normal_(ours.weight)
        nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize(
    "arguments",
    [{}, {"momentum": None}, {"momentum": 0.7, "eps": 0.1}, {"affine": False}, {"track_running_stats": False}],
    ids=str,
)
def test_normalisation_trains_and_evaluates_as_pytorchs(arguments: dict) -> None:
    ours, theirs = twins(**arguments)
    for _ in range(3):
        x = torch.randn(4, 8, 6, 5) * 3 + 2
        images = [x.clone().requires_grad_() for _ in range(2)]
        assert operators(ours, x) == {"gossamer.batch_norm"}
        theirs(x)
        y, expected = ours(images[0]), theirs(images[1])
        torch.testing.assert_close(y, expected)
        for out in (y, expected):
            out.pow(3).sum().backward()
        torch.testing.assert_close(images[0].grad, images[1].grad, rtol=1e-4, atol=1e-4)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    ours.eval(), theirs.eval()
    assert operators(ours, X) == set()
    torch.testing.assert_close(ours(X), theirs(X))


def test_other_normalisations_go_to_pytorch() -> None:
    ours, theirs = twins()
    last = X.contiguous(memory_format=torch.channels_last)
    assert operators(ours, last) == set()
    theirs(last)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    assert operators(ours.double(), X.double()) == set()
    assert operators(twins()[0].to(torch.bfloat16), X.bfloat16()) == set()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        twins()[0](torch.randn(1, 8, 1, 1))
    with pytest.raises(RuntimeError, match="running_mean should contain"):
        nn.BatchNorm2d(4)(X)
    with pytest.raises(RuntimeError, match=r"batch_norm of 8 channels"):
        gs.BatchNorm2d(4)(X)
    with pytest.raises(ValueError, match="expected 4D input"):
        gs.BatchNorm2d(8)(X[0])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # PyTorch's own, from jvp
def test_transformations_of_normalisation() -> None:
    ours, theirs = (layer.eval() for layer in twins())
    jvps = [torch.func.jvp(layer, (X,), (torch.ones_like(X),))[1] for layer in (ours, theirs)]
    assert torch.equal(*jvps)
    weights = torch.randn(3, 8)
    several = [
        torch.func.vmap(lambda w, f=f: torch.func.functional_call(f, {"weight": w}, (X,)))(weights)
        for f in (ours, theirs)
    ]
    torch.testing.assert_close(*several)


def test_synchronised_normalisation_takes_the_place_of_ours() -> None:
    model = gs.sparsify(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), 0.5)
    assert type(model[1]) is gs.BatchNorm2d
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(model)[1]) is nn.SyncBatchNorm


# -- whole models ------------------------------------------------------------------------------------------------------


def test_exchanged_layers_keep_parameters_buffers_and_hooks() -> None:
    model, calls = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AvgPool2d(2, 1)), []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before, state = model[1].weight, {k: v.clone() for k, v in model[1].state_dict().items()}
    gs.sparsify(model, 0.5, inplace=True)
    assert [type(layer) for layer in model[1:]] == [gs.BatchNorm2d, gs.AvgPool2d]
    assert model[1].weight is before
    assert any(before is p for group in optimizer.param_groups for p in group["params"])
    torch.testing.assert_close(dict(model[1].state_dict()), state)
    model(X[:, :3])
    assert calls == [1]


def net() -> nn.Sequential:
    pool = nn.MaxPool2d(2)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), pool, nn.Conv2d(8, 8, 3, padding=1), nn.Sequential(pool)),
        *(nn.MaxPool2d(3, (2, 2), 1, 1, False, True), nn.Flatten(), nn.Linear(72, 4)),
    )


def test_sparsify_exchanges_plain_pools_and_keeps_what_they_are() -> None:
    class Mine(nn.MaxPool2d):
        pass

    model = net().append(Mine(1)).eval()
    sparse = gs.sparsify(model, 0.5)
    assert type(sparse[2]) is gs.MaxPool2d
    assert sparse[4][0] is sparse[2]
    assert type(sparse[8]) is Mine
    assert [str(m) for m in (sparse[2], sparse[5])] == [str(m) for m in (model[2], model[5])]
    assert not sparse[2].training
    assert type(model[2]) is nn.MaxPool2d
    assert gs.sparsify(model, 0.5, inplace=True) is model
    assert type(model[2]) is gs.MaxPool2d


def test_a_training_step_is_the_same() -> None:
    sparse, x = gs.sparsify(net(), 0.5), torch.randn(4, 3, 16, 16)
    plain = copy.deepcopy(sparse)
    for i, parent in ((2, plain), (0, plain[4])):
        parent[i] = nn.MaxPool2d(2)
    for model in (sparse, plain):
        model(x).square().sum().backward()
    for ours, theirs in zip(sparse.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_a_saved_model_loads_into_a_dense_one_and_pools_alike(tmp_path: Path) -> None:
    sparse, x = gs.sparsify(net(), 0.5), torch.randn(4, 3, 16, 16)
    gs.save(sparse, tmp_path / "model.safetensors")
    for fresh in (net(), gs.sparsify(net(), 0.2, seed=1)):
        loaded = gs.load(fresh, tmp_path / "model.safetensors")
        assert type(loaded[2]) is gs.MaxPool2d
        assert torch.equal(loaded(x), sparse(x))
    gs.save(dense := net(), tmp_path / "dense.safetensors")
    assert type(gs.load(net(), tmp_path / "dense.safetensors")[2]) is nn.MaxPool2d
    assert dense.state_dict().keys() == net().state_dict().keys()


def test_the_channel_graph_and_the_accounts_see_pytorchs_operators() -> None:
    sparse = gs.sparsify(net(), 0.5)
    names = [call.name for call in trace(sparse, (3, 16, 16)).calls]
    assert sum("aten.max_pool2d" in name for name in names) == 3
    assert not any("gossamer.max_pool2d" in name for name in names)
    assert gs.dead_channels(sparse, (3, 16, 16)) == {}
    assert gs.count(sparse, (3, 16, 16)).params > 0


@pytest.mark.parametrize("layer", [gs.MaxPool2d(3, 2, 1), gs.AvgPool2d(2), gs.BatchNorm2d(8).eval()], ids=str)
def test_compile_and_export_take_pytorchs_operator(layer: nn.Module) -> None:
    seen: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        seen.append(graph)
        return graph

    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(X), layer(X))
    graphs = [seen[0], torch.export.export(layer, (X,)).graph_module]
    if not list(layer.parameters()):
        graphs.append(make_fx(layer, tracing_mode="fake")(X))
    for graph in graphs:
        assert any("pool2d" in node.name or "batch_norm" in node.name for node in graph.graph.nodes)
        assert not any("gossamer" in str(node.target) for node in graph.graph.nodes)
