"""`MaxPool2d`, `AvgPool2d` and `BatchNorm2d`: who computes what, and that nobody but the clock can tell."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import gossamer as gs
from gossamer.graph.tracing import trace
from gossamer.kernels import policy
from gossamer.layers import RectifyingSequential, exchange_layers


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
    for name in ("LEAST_POOLED", "LEAST_TRAINED", "LEAST_EVALUATED"):
        monkeypatch.setattr(policy, name, 0)


def test_small_inputs_go_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for layer in (gs.MaxPool2d(2), gs.AvgPool2d(3, 1), gs.BatchNorm2d(8), gs.BatchNorm2d(8).eval()):
        with torch.no_grad():
            assert operators(layer, X) == set()
    large = torch.randn(4, 8, 304, 304)
    for layer in (gs.MaxPool2d(2), gs.AvgPool2d(3, 1), gs.BatchNorm2d(8)):
        assert operators(layer, large) != set()
    assert operators(gs.BatchNorm2d(512), torch.randn(64, 512, 2, 2)) != set()  # PyTorch pays for each plane
    assert operators(gs.BatchNorm2d(128), torch.randn(64, 128, 4, 4)) == set()
    with torch.no_grad():
        evaluated = [operators(gs.sparsify(Block(8), 0.5).eval(), x) for x in (X, large)]
    assert evaluated == [{"gossamer.sparse_conv2d"}, {"gossamer.sparse_conv2d", "gossamer.normalise_"}]


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


def all_operators(layer: nn.Module, x: Tensor) -> set[str]:
    with Operators() as seen:
        layer(x)
    return seen.names


def operators(layer: nn.Module, x: Tensor) -> set[str]:
    return {name for name in all_operators(layer, x) if name.startswith("gossamer.")}


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


# -- a ReLU after it ---------------------------------------------------------------------------------------------------


class Block(nn.Sequential):
    """As everyone's."""

    def __init__(self, channels: int = 3, **arguments: object) -> None:
        super().__init__(nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8, **arguments), nn.ReLU(inplace=True))


def pairs_of_models(**arguments: object) -> tuple[nn.Module, nn.Module]:
    """A sparse model whose Sequentials normalise and rectify, and the same with none but PyTorch's layers beside."""
    model = nn.Sequential(Block(**arguments), nn.Sequential(nn.BatchNorm2d(8, **arguments), nn.ReLU(), nn.AvgPool2d(2)))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    ours = gs.sparsify(model, 0.5)
    theirs = copy.deepcopy(model)
    theirs[0][0] = copy.deepcopy(ours[0][0])
    return ours, theirs


def sees(model: nn.Module, x: Tensor) -> set[str]:
    """The operators of a step: ReLU's, and ours for batch normalisation."""
    with Operators() as seen:
        model(x).sum().backward()
    return {n for n in seen.names if "relu" in n or "clamp" in n or "threshold" in n or "gossamer.batch_norm" in n}


NATIVE = {"gossamer.batch_norm", "gossamer.batch_norm_grad"}
IMAGES = torch.randn(4, 3, 7, 9)


@pytest.mark.parametrize("value", [0.0, float("nan")])
@pytest.mark.parametrize(
    "arguments", [{}, {"affine": False}, {"momentum": None, "eps": 0.1}, {"track_running_stats": False}], ids=str
)
def test_normalisation_takes_the_relu_along(arguments: dict, value: float) -> None:
    ours, theirs = pairs_of_models(**arguments)
    optimizers = [torch.optim.SGD(model.parameters(), 0.01) for model in (ours, theirs)]
    for _ in range(2):
        images = [IMAGES.clone().requires_grad_() for _ in range(2)]
        for model, x, optimizer in zip((ours, theirs), images, optimizers, strict=True):
            x.data[1, 1, 2, 2] += value
            optimizer.zero_grad()
            model(x).pow(2).sum().backward()
            optimizer.step()
        torch.testing.assert_close(ours(IMAGES), theirs(IMAGES), rtol=1e-4, atol=1e-4, equal_nan=True)
        torch.testing.assert_close(images[0].grad, images[1].grad, rtol=1e-3, atol=1e-3, equal_nan=True)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-4, atol=1e-4, equal_nan=True)
    assert sees(ours, IMAGES) == NATIVE
    theirs.load_state_dict(ours.state_dict())
    assert sees(ours.eval(), IMAGES) >= {"aten.relu", "aten.relu_"}
    torch.testing.assert_close(ours(IMAGES), theirs.eval()(IMAGES), rtol=1e-4, atol=1e-4, equal_nan=True)
    before = copy.deepcopy(ours.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(IMAGES), theirs(IMAGES), rtol=1e-4, atol=1e-4, equal_nan=True)
        in_place = "gossamer.normalise_" in all_operators(ours[0], IMAGES)
    assert in_place == ours[0][1].track_running_stats
    torch.testing.assert_close(ours.state_dict(), before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("inference", [torch.no_grad, torch.inference_mode])
def test_evaluation_writes_only_over_what_a_sparse_convolution_has_just_made(inference: Callable) -> None:
    ours, seen = gs.sparsify(Block(8), 0.5).eval(), []
    expected = nn.Sequential(*copy.deepcopy(list(ours)))(X).detach()
    with inference():
        assert operators(ours, X) == {"gossamer.sparse_conv2d", "gossamer.normalise_"}
        assert not any("relu" in name or "batch_norm" in name for name in all_operators(ours, X))
        torch.testing.assert_close(ours(X), expected)
        handle = ours[0].register_forward_hook(lambda *call: seen.append(call[2]))  # which keeps it
        assert "gossamer.normalise_" not in all_operators(ours, X)
        assert torch.equal(seen[0], ours[0](X))
        handle.remove()
        rest, x = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()).eval(), X.clone()
        rest = exchange_layers(rest)
        assert operators(rest, x) == set()
        assert torch.equal(x, X)


def test_who_rectifies_shows_nowhere_else() -> None:
    """Names, parts and copies are as without; what is printed says it."""
    model = nn.Sequential(Block(), Block(8))
    keys, lines = list(model.state_dict()), str(model[0]).splitlines()
    sparse = gs.sparsify(model, 0.5)
    assert [k for k in sparse.state_dict() if "indptr" not in k and "indices" not in k and "_extra" not in k] == keys
    assert type(sparse[0]) is type(sparse[1]) is RectifyingSequential
    assert type(model[0]) is Block
    shown = str(sparse[0]).splitlines()
    assert [shown[0], *shown[2:]] == ["RectifyingSequential(", *lines[2:]]
    assert [type(layer) for layer in sparse[0]] == [gs.SparseConv2d, gs.BatchNorm2d, nn.ReLU]
    assert nn.Sequential(*list(sparse[0])[:2])(IMAGES).min() < 0
    assert exchange_layers(sparse) is sparse
    again = gs.sparsify(copy.deepcopy(model), 0.5, inplace=True)
    for other in (sparse, again, copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse)), copy.copy(sparse)):
        assert sees(other, IMAGES) == NATIVE


def test_the_root_may_be_the_sequential() -> None:
    """It becomes another object then, which a model changed in place cannot."""
    model = Block()
    sparse = gs.sparsify(model, 0.5)
    assert type(sparse) is RectifyingSequential
    assert sees(sparse, IMAGES) == NATIVE
    assert gs.sparsify(model, 0.5, inplace=True) is model
    assert type(model) is Block
    assert "aten.relu_" in sees(model, IMAGES)


HOOKS = [
    lambda layer, hook: layer.register_forward_hook(hook),
    lambda layer, hook: layer.register_forward_pre_hook(hook),
    lambda layer, hook: layer.register_full_backward_hook(hook),
    lambda layer, hook: layer.register_full_backward_pre_hook(hook),
    lambda _, hook: nn.modules.module.register_module_forward_hook(hook),
]


@pytest.mark.parametrize("register", HOOKS)
@pytest.mark.parametrize("layer", [1, 2])
def test_layers_with_hooks_are_called(layer: int, register: Callable, recwarn: pytest.WarningsRecorder) -> None:
    """A hook of any kind, before the exchange or after, sees what it saw before."""
    plain, late = nn.Sequential(Block()), gs.sparsify(nn.Sequential(Block()), 0.5)
    plain[0][2] = late[0][2] = nn.ReLU()  # full backward hooks and in-place layers exclude each other
    seen: list[nn.Module] = []
    for model in (plain, late):
        seen.clear()
        handle = register(model[0][layer], lambda module, *_: seen.append(module) if len(seen) < 9 else None)
        sparse = gs.sparsify(model, 0.5, inplace=True) if model is plain else model
        assert "aten.relu" in sees(sparse, IMAGES)
        assert sparse[0][layer] in seen
        with torch.no_grad():
            assert any("relu" in name for name in all_operators(sparse.eval(), IMAGES))
            handle.remove()
            assert not any("relu" in name for name in all_operators(sparse, IMAGES))
        assert sees(sparse.train(), IMAGES) == NATIVE


def test_what_takes_their_places_is_called() -> None:
    model = gs.sparsify(Block(), 0.5)
    model[2] = nn.LeakyReLU()
    assert model(IMAGES).min() < 0
    model[2], model[1].forward = nn.ReLU(), lambda x: x - 100
    assert not model(IMAGES).any()
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(gs.sparsify(Block(), 0.5))[2]) is nn.ReLU


def test_layers_in_several_places() -> None:
    """One ReLU after every normalisation, and one normalisation both with and without a ReLU after it."""
    relu, norm = nn.ReLU(), nn.BatchNorm2d(8)
    layers = [
        nn.Conv2d(3, 8, 3),
        norm,
        relu,
        nn.Conv2d(8, 8, 1),
        relu,
        nn.Conv2d(8, 8, 1),
        norm,
        nn.BatchNorm2d(8),
        relu,
    ]
    ours = gs.sparsify(nn.Sequential(*layers), 0.5)
    theirs = nn.Sequential(*copy.deepcopy(ours))
    torch.testing.assert_close(ours(IMAGES), theirs(IMAGES))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    assert ours[1] is ours[6]


def test_a_sequential_with_its_own_forward_stays_what_it_is() -> None:
    class Own(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return self[2](self[1](self[0](input)) + 1)

    class More(nn.Sequential):
        def channels(self) -> int:
            return self[0].out_channels

    for kind in (Own, More):
        assert type(gs.sparsify(kind(*Block()), 0.5)) is kind
    for last in (nn.ReLU6(), nn.Identity()):
        assert type(gs.sparsify(nn.Sequential(*list(Block())[:2], last), 0.5)) is nn.Sequential


def test_a_saved_block_loads_with_its_relu(tmp_path: Path) -> None:
    sparse = gs.sparsify(nn.Sequential(Block()), 0.5)
    gs.save(sparse, tmp_path / "model.safetensors")
    fresh = gs.load(nn.Sequential(Block()), tmp_path / "model.safetensors")
    assert sees(fresh, IMAGES) == NATIVE
    torch.testing.assert_close(fresh(IMAGES), sparse(IMAGES))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("training", [False, True])
def test_compile_export_and_tracing_see_both(training: bool) -> None:
    model = exchange_layers(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()).train(training))
    compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), copy.deepcopy(model)(X))
    exported = torch.export.export(model, (X,))
    names = [node.name for node in exported.graph.nodes]
    assert any("relu" in name for name in names)
    assert not any("gossamer" in str(node.target) for node in exported.graph.nodes)
    traced = torch.jit.trace(copy.deepcopy(model), X, check_trace=False)
    assert "aten::relu" in str(traced.inlined_graph)
    assert any("aten.relu" in call.name for call in trace(model, (8, 12, 15)).calls)


# -- transformations ---------------------------------------------------------------------------------------------------


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
