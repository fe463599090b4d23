"""The one block all the paper's networks are made of."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class ConvBNReLU(nn.Sequential):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int], **options: Any) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, bias=False, **options),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


def pooled(x: Tensor) -> Tensor:
    """The mean of each channel's plane: [n, c, h, w] -> [n, c]."""
    return x.mean((2, 3))
