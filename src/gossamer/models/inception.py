"""Inception V3 (Szegedy et al., 2016) as the paper used it: TF-slim's, 21,751,136 convolution weights, 5.711 G madds at 299."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.models._blocks import ConvBNReLU, pooled


class Concat(nn.Module):
    """Branches side by side on the channel axis."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class InceptionV3(nn.Module):
    """Inception V3; with `auxiliary=True` the training forward also returns the auxiliary head's logits."""

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, image_size: int = 299, auxiliary: bool = False
    ) -> None:
        super().__init__()
        if image_size < 75:
            raise ValueError(f"inception_v3 takes images of at least 75 pixels a side, got {image_size}")
        self.input_shape = (in_channels, image_size, image_size)
        self.stem = nn.Sequential(
            ConvBNReLU(in_channels, 32, 3, stride=2),
            ConvBNReLU(32, 32, 3),
            _same(32, 64, 3),
            nn.MaxPool2d(3, stride=2),
            ConvBNReLU(64, 80, 1),
            ConvBNReLU(80, 192, 3),
            nn.MaxPool2d(3, stride=2),
        )
        self.mixed = nn.Sequential(
            _block_35(192, 32),
            _block_35(256, 64),
            _block_35(288, 64),
            _reduce_35(288),
            _block_17(768, 128),
            _block_17(768, 160),
            _block_17(768, 160),
            _block_17(768, 192),
        )
        self.auxiliary = _auxiliary(768, num_classes) if auxiliary else None
        self.last = nn.Sequential(_reduce_17(768), _block_8(1280), _block_8(2048))
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(2048, num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.mixed(self.stem(x))
        auxiliary = self.auxiliary(x) if self.auxiliary is not None and self.training else None
        logits = self.classifier(self.dropout(pooled(self.last(x))))
        return logits if auxiliary is None else (logits, auxiliary)


def _same(in_channels: int, out_channels: int, *kernel: int) -> ConvBNReLU:
    """A block that keeps the map's size."""
    kh, kw = kernel if len(kernel) == 2 else (kernel[0], kernel[0])
    return ConvBNReLU(in_channels, out_channels, (kh, kw), padding=(kh // 2, kw // 2))


def _pooled(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), _same(in_channels, out_channels, 1))


def _block_35(n: int, pool: int) -> Concat:
    return Concat(
        _same(n, 64, 1),
        nn.Sequential(_same(n, 48, 1), _same(48, 64, 5)),
        nn.Sequential(_same(n, 64, 1), _same(64, 96, 3), _same(96, 96, 3)),
        _pooled(n, pool),
    )


def _reduce_35(n: int) -> Concat:
    return Concat(
        ConvBNReLU(n, 384, 3, stride=2),
        nn.Sequential(_same(n, 64, 1), _same(64, 96, 3), ConvBNReLU(96, 96, 3, stride=2)),
        nn.MaxPool2d(3, stride=2),
    )


def _block_17(n: int, c: int) -> Concat:
    return Concat(
        _same(n, 192, 1),
        nn.Sequential(_same(n, c, 1), _same(c, c, 1, 7), _same(c, 192, 7, 1)),
        nn.Sequential(_same(n, c, 1), _same(c, c, 7, 1), _same(c, c, 1, 7), _same(c, c, 7, 1), _same(c, 192, 1, 7)),
        _pooled(n, 192),
    )


def _reduce_17(n: int) -> Concat:
    return Concat(
        nn.Sequential(_same(n, 192, 1), ConvBNReLU(192, 320, 3, stride=2)),
        nn.Sequential(
            _same(n, 192, 1), _same(192, 192, 1, 7), _same(192, 192, 7, 1), ConvBNReLU(192, 192, 3, stride=2)
        ),
        nn.MaxPool2d(3, stride=2),
    )


def _block_8(n: int) -> Concat:
    def split(c: int) -> Concat:
        return Concat(_same(c, 384, 1, 3), _same(c, 384, 3, 1))

    return Concat(
        _same(n, 320, 1),
        nn.Sequential(_same(n, 384, 1), split(384)),
        nn.Sequential(_same(n, 448, 1), _same(448, 384, 3), split(384)),
        _pooled(n, 192),
    )


def _auxiliary(n: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.AvgPool2d(5, stride=3),
        ConvBNReLU(n, 128, 1),
        nn.AdaptiveAvgPool2d(5),
        ConvBNReLU(128, 768, 5),
        nn.Flatten(),
        nn.Linear(768, num_classes),
    )
