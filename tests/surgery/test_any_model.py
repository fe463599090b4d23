"""Surgery on models as they are found: with locks, results of a forward pass, hooks, frozen parts, normalised weights."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils as U
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import gossamer as gs
import nets
from snapshots import snapshot

X = torch.zeros(2, *nets.IMAGE)


class Holding(nets.Residual):
    """Keeps its features, with their graph, and a lock."""

    def __init__(self) -> None:
        super().__init__()
        self.lock, self.kept = threading.RLock(), {"locks": [threading.Lock(), threading.Condition()]}

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            self.features = self.stem(x)
            self.kept["out"] = super().forward(x)
            return self.kept["out"]


def test_copies_of_models_that_hold_results_and_locks() -> None:
    model = Holding()
    model(X)
    before = snapshot(model)
    results = (
        gs.sparsify(model, 0.5),
        gs.thin(model, 0.5, nets.IMAGE),
        gs.repair(gs.sparsify(model, 0.5), nets.IMAGE)[0],
        gs.symmetry.permute(model, {"stem": torch.randperm(12).tolist()}, nets.IMAGE),
    )
    assert snapshot(model) == before
    for result in results:
        assert result.features.grad_fn is None
        assert result.lock is not model.lock
        assert result.kept["locks"][0] is not model.kept["locks"][0]
        result(X).sum().backward()
    held = nn.Sequential(nn.Conv2d(3, 4, 1))
    held.numbers = (n for n in range(3))
    with pytest.raises(ValueError, match=r"cannot copy this model, because of something that it holds: .*generator"):
        gs.sparsify(held, 0.5)
    assert gs.sparsify(held, 0.5, inplace=True) is held


def test_exclude_takes_modules_and_what_contains_them() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))

    def sparse(*exclude: Any) -> list[str]:
        result = gs.sparsify(model, 0.5, exclude=exclude)
        return [name for name, module in result.named_modules() if isinstance(module, gs.SparseConv2d)]

    assert sparse(model[1]) == ["0.0", "0.1", "2"]
    assert sparse(model[0]) == sparse("0") == sparse(model[0][0], "0.1") == ["1", "2"]
    assert sparse(model[0][1], "2") == ["0.0", "1"]
    with pytest.raises(ValueError, match="exclude=<a Conv2d> names no layer of the model"):
        sparse(nn.Conv2d(8, 8, 3))
    for wrong in (3, None, model[1].weight, int):
        with pytest.raises(
            TypeError, match="exclude takes modules, and their names, regular expressions or types, got"
        ):
            sparse(wrong)


def test_a_layer_stays_what_its_owner_made_it() -> None:
    conv = nn.Conv2d(4, 4, 3)
    conv.bias.requires_grad_(False)
    called: list[str] = []
    hook = conv.register_forward_hook(lambda *_: called.append("hook"))
    conv.role, conv.scale = "stem", nn.Parameter(torch.ones(2))
    conv.register_buffer("seen", torch.ones(3), persistent=False)
    sparse = gs.SparseConv2d.from_dense(conv.eval(), gs.Connectivity.random(4, 4, 0.5))
    dense = sparse.to_dense()
    for layer in (sparse, dense, gs.sparsify(nn.Sequential(conv), 0.5)[0]):
        assert (layer.weight.requires_grad, layer.bias.requires_grad, layer.training) == (True, False, False)
        assert (layer.role, layer.scale.tolist(), layer.seen.tolist()) == ("stem", [1, 1], [1, 1, 1])
        assert "seen" not in layer.state_dict()
        called.clear()
        layer(torch.zeros(1, 4, 8, 8))
        assert called == ["hook"]
    assert type(dense) is nn.Conv2d
    hook.remove()  # the handle works wherever the hooks went
    sparse(torch.zeros(1, 4, 8, 8))
    assert called == ["hook"]


COMPUTED: dict[str, Callable[[nn.Module], Any]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old weight_norm": U.weight_norm,
    "old spectral_norm": U.spectral_norm,
    "pruning": lambda layer: prune.random_unstructured(layer, "weight", 0.3),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("computed", COMPUTED.values(), ids=COMPUTED)
def test_kernels_that_are_computed_are_refused_by_name(computed: Callable[[nn.Module], Any]) -> None:
    model = gs.sparsify(nets.Residual(), 0.3)
    computed(model.down)
    image = torch.randn(2, *nets.IMAGE)
    before, out = model.down.connectivity, model.eval()(image)
    others = model.stem.connectivity
    for change in (gs.rewire, lambda m: gs.densify(m, density=0.5)):
        with pytest.raises(ValueError, match="cannot change the connections of 'down': its kernels are computed"):
            change(model)
    with pytest.raises(ValueError, match="its kernels are computed"):
        model.down.replace_connectivity(before, torch.zeros(before.connections, 3, 3))
    with pytest.raises(TypeError, match="to_dense takes a layer with a plain weight"):
        model.down.to_dense()
    assert (model.down.connectivity, model.stem.connectivity) == (before, others)
    assert torch.equal(model(image), out)
    dense = nets.Residual()
    computed(dense.down)
    with pytest.raises(ValueError, match=r"cannot make 'down' sparse: .* computes its weight"):
        gs.sparsify(dense, 0.3)


def test_convolutions_with_code_of_their_own_are_named() -> None:
    class Own(nn.Conv2d):
        def _conv_forward(self, *args: Any) -> Tensor:
            return 2 * super()._conv_forward(*args)

    patched = nn.Conv2d(3, 3, 1)
    patched.forward = lambda x: 2 * x  # type: ignore[method-assign]
    biased = nn.Conv2d(3, 3, 1)
    prune.random_unstructured(biased, "bias", 0.5)
    for conv in (Own(3, 3, 1), patched, biased):
        with pytest.raises(ValueError, match=r"cannot make '0' sparse: .* computes its weight or output its own way"):
            gs.sparsify(nn.Sequential(conv), 0.5)
    with pytest.raises(ValueError, match=r"cannot make '0' sparse: it gets its shape from data; run the model once"):
        gs.sparsify(nn.Sequential(nn.LazyConv2d(4, 3)), 0.5)


def test_models_without_data() -> None:
    dense = nets.Residual()
    real = gs.sparsify(dense, 0.5)
    with torch.device("meta"):
        inside = gs.sparsify(nets.Residual(), 0.5)
    for meta in (gs.sparsify(nets.Residual().to("meta"), 0.5), inside, gs.sparsify(dense, 0.5).to("meta")):
        assert all(p.is_meta for p in meta.parameters())
        assert meta.down.connectivity == real.down.connectivity
        assert gs.count(meta, nets.IMAGE) == gs.count(real, nets.IMAGE)
        assert gs.dead_channels(meta, nets.IMAGE) == {}
        gs.densify(meta, density=0.7)
        grown = gs.densify(gs.sparsify(dense, 0.5), density=0.7)
        assert meta.down.connectivity == grown.down.connectivity
        filled = meta.to_empty(device="cpu")
        assert filled.down.connectivity == grown.down.connectivity
        filled.load_state_dict(grown.state_dict())
        assert torch.equal(filled.eval()(X), grown.eval()(X))
    meta = gs.sparsify(nets.Residual().to("meta"), 0.2)  # the stored pattern is another
    meta.load_state_dict(real.state_dict(), assign=True)
    assert torch.equal(meta.eval()(X), real.eval()(X))
    shared = real.share_memory()
    assert shared.down.indices.is_shared()
    assert real.to_empty(device="cpu").stem.connectivity == gs.sparsify(dense, 0.5).stem.connectivity


def test_fx_and_feature_extraction_take_sparse_models() -> None:
    for name, size in (("torchvision:resnet18", 64), ("torchvision:vgg11_bn", 32)):
        model = gs.sparsify(gs.models.create(name, num_classes=5), 0.2).eval()
        image = torch.randn(1, 3, size, size)
        drawn = torch.fx.symbolic_trace(model)
        assert torch.equal(drawn(image), model(image))
        leaves = [m for m in drawn.modules() if isinstance(m, gs.SparseConv2d)]
        assert len(leaves) == sum(isinstance(m, gs.SparseConv2d) for m in model.modules())
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    features = extraction.create_feature_extractor(model, ["features.4"])(image)["features.4"]
    assert torch.equal(features, model.features[:5](image))
