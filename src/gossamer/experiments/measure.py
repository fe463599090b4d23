"""What a network costs when it runs: milliseconds for one image and for a batch, training images/s, peak memory."""

from __future__ import annotations

import copy
import resource
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.timing import take_turns

SECONDS = 0.25
"""Each figure is the median of as many calls as fit in this time, three at least, after a warm-up call."""


def measure(model: nn.Module, input_shape: tuple[int, int, int], *, batch: int = 64) -> dict[str, Any]:
    """Times of `model` on its own device with the threads torch now has: JSON-able, all warm medians.

    `ms_image`, `ms_batch`: forward in evaluation mode. `train_images_per_s`: forward, loss, backward and an SGD step
    with momentum on batches of `batch` images. Each is taken in the faster of the two memory formats (contiguous and
    channels-last) on copies of the model, so that no network is measured in the one that does not suit it.
    """
    device = next(model.parameters()).device
    copies = [
        copy.deepcopy(model).to(memory_format=layout)  # type: ignore[call-overload]
        for layout in (torch.contiguous_format, torch.channels_last)
    ]
    image, images = (torch.randn(n, *input_shape, device=device) for n in (1, batch))
    return {
        "ms_image": 1e3 * min(_forward_seconds(model, image) for model in copies),
        "ms_batch": 1e3 * min(_forward_seconds(model, images) for model in copies),
        "batch": batch,
        "train_images_per_s": batch / min(_step_seconds(model, images) for model in copies),
        "threads": torch.get_num_threads(),
    }


def peak_memory(device: torch.device) -> int:
    """Most bytes held at once so far: by the tensors on a GPU, or else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _forward_seconds(model: nn.Module, images: Tensor) -> float:
    model.eval()
    with torch.inference_mode():
        return _median_seconds(lambda: model(images), images.device)


def _step_seconds(model: nn.Module, images: Tensor) -> float:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return _median_seconds(step, images.device)


def _median_seconds(call: Callable[[], object], device: torch.device) -> float:
    def once() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return take_turns([once], SECONDS, least=3)[0].median
