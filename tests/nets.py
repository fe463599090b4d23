"""Small networks with every way channels are joined, cut and moved that a channel graph must follow."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE = (3, 16, 16)


class Residual(nn.Module):
    """Sums whose operands come from several layers, a strided shortcut, and a shared convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.shared = nn.Conv2d(12, 12, 3, padding=1)
        self.down = nn.Conv2d(12, 20, 3, stride=2, padding=1)
        self.shortcut = nn.Conv2d(12, 20, 1, stride=2)
        self.classifier = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.shared(x)
        x = x + self.shared(F.relu(x))
        x = self.down(x) + self.shortcut(x)
        return self.classifier(x.mean((2, 3)))


class Concatenating(nn.Module):
    """Concatenation, a sum over a concatenation, flattening before a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 6, 3, padding=1)
        self.right = nn.Conv2d(3, 10, 5, padding=2)
        self.both = nn.Conv2d(16, 16, 3, padding=1)
        self.pool = nn.MaxPool2d(4)
        self.hidden = nn.Linear(16 * 16, 24)
        self.classifier = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = x + self.both(F.relu(x))
        return self.classifier(F.relu(self.hidden(self.pool(x).view(x.shape[0], -1))))


class Shuffling(nn.Module):
    """Split, depthwise and grouped convolutions, concatenation and channel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.point = nn.Conv2d(8, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(16, 24, 3, padding=1, groups=2)
        self.norm = nn.GroupNorm(4, 24)
        self.classifier = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        kept, rest = self.stem(x).chunk(2, dim=1)
        x = torch.cat([kept, self.depthwise(self.point(rest))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.classifier(self.norm(self.grouped(x)).amax((2, 3)))


class Gated(nn.Module):
    """Squeeze-and-excitation, layer normalisation on channels-last, a free scale, spatial attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.squeeze = nn.Linear(16, 4)
        self.excite = nn.Linear(4, 16)
        self.norm = nn.LayerNorm(16)
        self.expand = nn.Linear(16, 32)
        self.project = nn.Linear(32, 16)
        self.scale = nn.Parameter(torch.full((16, 1, 1), 0.5))
        self.last = nn.Conv2d(16, 8, 3)
        self.classifier = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        x = x * gate[:, :, None, None]
        y = self.project(F.gelu(self.expand(self.norm(x.permute(0, 2, 3, 1)))))
        x = x + self.scale * y.permute(0, 3, 1, 2)
        x = x * torch.sigmoid(x.mean(1, keepdim=True))
        return self.classifier(F.adaptive_avg_pool2d(self.last(x), 1).flatten(1))


class Padded(nn.Module):
    """A shortcut without weights that pads with empty channels, as the first residual networks for CIFAR had."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.classifier = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.wide(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.classifier(x).mean((2, 3))


FOLLOWED = [Residual, Concatenating, Shuffling, Gated]


class Slicing(nn.Module):
    """Code that fixes a number of channels: half of sixteen, written as eight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.partial = nn.Conv2d(8, 8, 3)
        self.classifier = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.partial(self.stem(x)[:, :8]).mean((2, 3)))


class Attending(nn.Module):
    """A product of two activations, in which every channel may meet every other."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Conv2d(3, 8, 1)
        self.key = nn.Conv2d(3, 8, 1)
        self.classifier = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        query, key = self.query(x).flatten(2), self.key(x).flatten(2)
        return self.classifier((query @ key.transpose(1, 2)).mean(2))
