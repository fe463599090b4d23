"""`MaxPool2d`: who computes what, and that nobody but the clock can tell."""

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
    assert not pooled_natively(layer, nn.Parameter(X))
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


def test_the_channel_graph_and_the_accounts_see_pytorchs_operator() -> None:
    sparse = gs.sparsify(net(), 0.5)
    names = [call.name for call in trace(sparse, (3, 16, 16)).calls]
    assert sum("aten.max_pool2d" in name for name in names) == 3
    assert not any("gossamer.max_pool2d" in name for name in names)
    assert gs.dead_channels(sparse, (3, 16, 16)) == {}
    assert gs.count(sparse, (3, 16, 16)).params > 0


def test_compile_and_export_take_pytorchs_operator() -> None:
    layer = gs.MaxPool2d(3, 2, 1)
    seen: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        seen.append(graph)
        return graph

    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    assert torch.equal(compiled(X), layer(X))
    graphs = [seen[0], torch.export.export(layer, (X,)).graph_module, make_fx(layer, tracing_mode="fake")(X)]
    for graph in graphs:
        assert any("max_pool2d" in node.name for node in graph.graph.nodes)
        assert not any("gossamer" in str(node.target) for node in graph.graph.nodes)
