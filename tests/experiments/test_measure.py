"""Measuring leaves the model as it was, and measures what it says."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from gossamer.experiments import measure


class Slow(nn.Module):
    """A convolution whose forward takes at least 2 ms a call, plus 1 ms an image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(0.002 + 0.001 * len(images))
        return self.norm(self.conv(images)).mean((2, 3))


def test_times_are_those_of_the_calls() -> None:
    found = measure.measure(Slow(), (3, 8, 8), batch=8)
    assert found["ms_image"] >= 3
    assert found["ms_batch"] >= 10
    assert found["train_images_per_s"] <= 8 / 0.010
    assert found["batch"] == 8
    assert found["threads"] == torch.get_num_threads()


def test_the_model_stays_as_it_was() -> None:
    model = Slow().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure.measure(model, (3, 8, 8), batch=2)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_peak_memory_grows_with_what_is_held() -> None:
    cpu = torch.device("cpu")
    before = measure.peak_memory(cpu)
    held = torch.ones(100_000_000)
    assert measure.peak_memory(cpu) >= before
    assert measure.peak_memory(cpu) > held.nbytes
