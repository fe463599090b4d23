"""Tracing runs any model on any inputs, says truly why it cannot, and leaves the model bit for bit as it was."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
import nets
from gossamer.graph.channels import ChannelGraph
from gossamer.graph.tracing import trace
from snapshots import snapshot

X = torch.zeros(1, *nets.IMAGE)


class Keeping(nn.Module):
    """One module under two parents, and every way to keep something from one pass to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Module(), nn.Module()
        self.a.c = self.b.c = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.same = [self.a.c.weight]
        self.grid: Tensor | None = None
        self.cache: dict[Any, Tensor] = {}
        self.passes, self.seen, self.shapes = 0, [], set()
        self.register_buffer("mean", torch.ones(3, 1, 1))
        seen = self.seen
        self.a.c.register_forward_hook(lambda _m, _i, out: seen.append(out))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.shapes.add(tuple(x.shape))
        if self.grid is None:
            self.grid = torch.arange(x.shape[-1]) + torch.zeros(1)
        if x.device not in self.cache:
            self.cache[x.device] = self.mean * 2
        self.last = x
        self.mean = self.mean * 0.9 + x.mean() * 0.1
        x = self.norm(self.b.c(self.a.c(x)))
        return x * self.grid * self.cache[x.device] + self.same[0].sum()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("used", [False, True])
def test_what_a_model_keeps_is_what_it_was(training: bool, used: bool) -> None:
    model = Keeping()
    if used:
        model(torch.randn(2, *nets.IMAGE))
    before = snapshot(model)
    calls = trace(model, nets.IMAGE, training).calls
    assert sum(call.name == "aten.convolution" for call in calls) == 2
    assert snapshot(model) == before
    assert gs.count(model, nets.IMAGE).madds == 2 * 81 * 256
    with pytest.raises(ValueError, match="does not run"):
        gs.count(model, (4, 16, 16))
    assert snapshot(model) == before
    assert torch.isfinite(model(torch.randn(2, *nets.IMAGE))).all()


@pytest.mark.parametrize(
    "spec",
    "timm:levit_128s timm:efficientvit_m0 timm:tiny_vit_5m_224 timm:efficientformerv2_s0 torchvision:resnet18".split(),
)
def test_families_are_what_they_were(spec: str) -> None:
    model = gs.models.create(spec).eval()
    before = snapshot(model)
    gs.count(model, (3, 224, 224))
    assert snapshot(model) == before


@dataclass
class Answer:
    logits: Tensor
    about: str = "words"


class Calling(nn.Module):
    """A convolution behind whatever a model may be called with, and may return."""

    def __init__(self, wrap: Callable[[Tensor], Any] = lambda x: x) -> None:
        super().__init__()
        self.conv, self.wrap = nn.Conv2d(3, 4, 3), wrap

    def forward(self, x: Any, steps: Any = None, *, scale: float = 1.0, mask: Tensor | None = None) -> Any:
        x = x["image"] if isinstance(x, dict) else x[0] if isinstance(x, list) else x
        return self.wrap(self.conv(x) * scale)


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": X, "scale": 2.0, "mask": None},
        {"x": {"image": X}},
        ([X, X],),
        (X, 7),
        (X, None),
        (X, torch.tensor(3)),
        ({"image": X, "size": (16, 16)}, torch.zeros(1, dtype=torch.long)),
        [X],
        (1, 3, 16, 16),
        torch.zeros(nets.IMAGE),
    ],
)
def test_inputs_of_every_kind(inputs: Any) -> None:
    assert gs.count(Calling(), inputs).madds == 108 * 14 * 14
    assert ChannelGraph.of(Calling(), inputs).image.size >= 3


@pytest.mark.parametrize(
    "wrap", [lambda x: {"logits": x, "more": [x]}, lambda x: (x, None, 3), Answer, lambda x: [Answer(x)]]
)
def test_outputs_of_every_kind(wrap: Callable[[Tensor], Any]) -> None:
    assert len(ChannelGraph.of(Calling(wrap), nets.IMAGE).prediction) == 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrapped_models() -> None:
    for model in (nn.DataParallel(Calling()), torch.compile(Calling())):
        assert gs.count(model, nets.IMAGE).madds == 108 * 14 * 14  # type: ignore[arg-type]


class Deciding(Calling):
    """Code that asks for values."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        x = self.conv(x)
        return -x if x.sum() > 0 else x


class Dropping(Calling):
    """Layers left out at random in training."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.mean(1) if self.training and torch.rand(()) < 0.5 else self.conv(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_reasons_are_true() -> None:
    with pytest.raises(ValueError, match="depends on the values of its data"):
        gs.count(Deciding(), nets.IMAGE)
    with pytest.raises(ValueError, match="depends on the values of its data"):
        trace(Dropping(), nets.IMAGE, training=True)
    assert gs.thin(Dropping(), 0.5, nets.IMAGE).conv.out_channels == 4  # the inference pass is followed
    with pytest.raises(ValueError, match="LazyConv2d gets its shape from data; run the model once"):
        gs.count(nn.Sequential(nn.LazyConv2d(4, 3)), nets.IMAGE)
    with pytest.raises(ValueError, match=r"cannot trace '0': it is compiled by torch\.jit"):
        gs.count(nn.Sequential(torch.jit.script(nn.Conv2d(3, 4, 3))), nets.IMAGE)
    with pytest.raises(ValueError, match="unexpected keyword argument 'y'"):
        gs.count(Calling(), {"x": X, "y": X})
    for wrong in ("an image", (), {"x": 3}, (0, 28, 28), (X.numpy(),), 3, None):
        with pytest.raises((TypeError, ValueError), match=r"example inputs must be a tensor|count needs"):
            gs.count(Calling(), wrong)  # type: ignore[arg-type]


def test_a_refusal_is_its_sentence_alone(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(ValueError, match="cannot thin this model"):
        gs.thin(nets.Slicing(), 0.5, nets.IMAGE)
    assert caplog.records == []
    assert not logging.getLogger("torch._subclasses.fake_tensor").disabled
