"""Every operator and network, captured, simplified and laid out, agrees with PyTorch; what is missing is one sentence."""

from __future__ import annotations

import copy
import re
import threading
from typing import Any

import interpreter
import machine
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from zoo import IMAGE, ZOO, Of

import gossamer as gs
import nets
from gossamer.engine import emission
from gossamer.engine.capture import capture
from gossamer.engine.ir import Graph
from gossamer.engine.memory import lay_out
from gossamer.engine.passes import simplify


def _close(got: list[Tensor], want: Any) -> None:
    leaves = [t for t in tree_leaves(want) if isinstance(t, Tensor)]
    assert len(got) == len(leaves)
    for one, other in zip(got, leaves, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


@torch.no_grad()
def check(model: nn.Module, *inputs: Tensor) -> Graph:
    """The simplified graph, after every stage agreed with the model."""
    want = model(*inputs)
    graph = capture(model, inputs)
    _close(interpreter.run(graph, *inputs), want)
    simple = simplify(graph)
    _close(interpreter.run(simple, *inputs), want)
    program, tensors = emission.emit(lay_out(simple))
    images = [machine.run(program, tensors, *(x[i] for x in inputs)) for i in range(len(inputs[0]))]
    _close([torch.stack(outputs) for outputs in zip(*images, strict=True)], want)
    return simple


@pytest.mark.parametrize("name", ZOO)
def test_every_operator(name: str) -> None:
    check(copy.deepcopy(ZOO[name]).eval(), torch.randn(2, *IMAGE))


@pytest.mark.parametrize("network", [*nets.FOLLOWED, nets.Padded, nets.Slicing, nets.Attending])
@pytest.mark.parametrize("density", [1.0, 0.5])
def test_small_networks(network: type[nn.Module], density: float) -> None:
    model = network() if density == 1 else gs.sparsify(network(), density)
    check(model.eval(), torch.randn(2, *nets.IMAGE))


@pytest.mark.parametrize(("name", "size"), [("mnist", 12), ("cifar", 16), ("inception_v3", 75)])
def test_ours(name: str, size: int) -> None:
    model = gs.sparsify(gs.models.create(name, num_classes=5, image_size=size), 0.1).eval()
    graph = check(model, torch.randn(1, *model.input_shape))
    kinds = {o.kind for o in graph.operations if o.activation is not None}
    assert kinds <= {"conv", "linear", "pool"}
    assert not [o for o in graph.operations if o.kind == "affine"]  # all in a store


def test_several_inputs_and_a_structure_of_outputs() -> None:
    model = Of(lambda x, y: {"sum": x + y, "both": [x.mean((2, 3)), None, (y.relu(),)]}).eval()
    graph = capture(model, (torch.zeros(4, 2, 5, 5), torch.zeros(4, 2, 5, 5)))
    assert [p.shape for p in graph.inputs] == [(2, 5, 5), (2, 5, 5)]
    assert graph.structure == {
        "dict": {"sum": {"output": 0}, "both": {"list": [{"output": 1}, {"none": None}, {"tuple": [{"output": 2}]}]}}
    }
    check(model, torch.randn(2, 2, 5, 5), torch.randn(2, 2, 5, 5))


def test_inputs_by_name_and_shape() -> None:
    class Named(nn.Module):
        def forward(self, image: Tensor, mask: Tensor) -> Tensor:
            return image * mask

    graph = capture(Named(), {"mask": torch.zeros(1, 1, 4, 4), "image": torch.zeros(1, 3, 4, 4)})
    assert {p.name: p.shape for p in graph.inputs} == {"image": (3, 4, 4), "mask": (1, 4, 4)}
    assert capture(nn.ReLU(), (3, 8, 8)).inputs[0].shape == (3, 8, 8)


def test_the_model_stays_as_it_was() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.calls = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.cache = self.norm(self.conv(x))
            return self.cache

    model = Counting().train()
    model.conv.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    capture(model, (3, 5, 5))
    assert (model.calls, hasattr(model, "cache"), model.training, model.conv.training) == (0, False, True, False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class _Inner(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.inner = Of(function)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: torch.cumsum(x, 2), "a program has no cumsum (in layer 'inner')"),
        (lambda x: x.mean(0, keepdim=True), "a program has no mean over the batch (in layer 'inner')"),
        (lambda x: x.double(), "a program has no to to torch.float64: programs compute in float32 (in layer 'inner')"),
        (lambda x: x if x.sum() > 0 else -x, "torch.export does not take this model on inputs of shape [1, 3, 4, 4]: "),
        (lambda x: torch.ones(2), "the model returns Tensors that do not depend on its inputs"),
        (lambda x: x[0], "the model returns a tensor whose first dimension is not the batch: [3, 4, 4] for one image"),
    ],
)
def test_what_is_missing_is_one_sentence(function: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        capture(_Inner(function), (3, 4, 4))
    assert "\n" not in str(caught.value)


def test_a_batch_is_nothing_but_its_images() -> None:
    mixing = Of(lambda x: x.flatten(1).view(1, -1))
    with pytest.raises(ValueError, match=re.escape("mixes the images of a batch: 2 give a tensor of shape [1, 96]")):
        capture(mixing, torch.zeros(2, 3, 4, 4))
    assert capture(mixing, torch.zeros(1, 3, 4, 4)).outputs[0].shape == (48,)


def test_a_model_that_cannot_be_copied_says_so() -> None:
    model = nn.ReLU()
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="the model cannot be copied: cannot pickle"):
        capture(model, (3, 4, 4))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.zeros(1, 3, 4, 4, dtype=torch.float64),), "a program takes float32 inputs, got torch.float64"),
        ((torch.zeros(1, 3, 4), torch.zeros(2, 3, 4)), "must be one batch for all, got shapes [1, 3, 4], [2, 3, 4]"),
        ("image", "example inputs must be a tensor, a tuple or dict of tensors"),
    ],
)
def test_inputs_that_do_not_fit(inputs: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        capture(nn.ReLU(), inputs)
    with pytest.raises(ValueError, match="meta device"):
        capture(nn.Conv2d(3, 3, 1, device="meta"), (3, 4, 4))
