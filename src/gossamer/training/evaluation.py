"""Loss and accuracy of a network over a split, and how images and outputs pass between the two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.data.split import Split
from gossamer.training.distributed import Team

Prepare = Callable[[Tensor], Tensor]
"""uint8 images `[n, c, h, w]` -> normalised float images on the device and in the layout of the network."""


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, prepare: Prepare, batch_size: int, team: Team) -> tuple[float, float]:
    """Mean loss and accuracy in evaluation mode and full precision, by all processes together.

    Raises ValueError when not one image of the split can be read.
    """
    model.eval()
    loss = correct = images = 0.0
    for batch, labels in split.test_batches(batch_size, team.share):
        labels = labels.to(team.device)
        outputs = logits(model(prepare(batch))).float()
        loss += F.cross_entropy(outputs, labels, reduction="sum").item()
        correct += int((outputs.argmax(1) == labels).sum())
        images += len(labels)
    loss, correct, images = team.sum(loss, correct, images)
    if not images:
        raise ValueError(f"no test image can be read: {next(iter(split.skipped.items()), 'there are none')}")
    return loss / images, correct / images


def logits(outputs: Any) -> Tensor:
    """The classifier's output; some networks add those of auxiliary heads while they train."""
    first: Tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
    return first
