"""Convolutions that every backend and the layer itself must get right: one list for correctness, gradients and opcheck."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.connectivity import Connectivity


@dataclass(frozen=True)
class Sample:
    """One convolution: channels, kernel, geometry, input plane, batch, pattern."""

    channels: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    plane: tuple[int, int] = (7, 6)
    batch: int = 2
    density: float = 0.4
    pattern: str = "balanced"
    groups: int = 1

    def connectivity(self) -> Connectivity:
        inputs, outputs = self.channels
        return Connectivity.random(inputs, outputs, self.density, pattern=self.pattern, seed=1, groups=self.groups)

    def tensors(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(input, weight, indptr, indices)."""
        generator = torch.Generator().manual_seed(0)
        c = self.connectivity()
        x = torch.randn(self.batch, self.channels[0], *self.plane, generator=generator, dtype=dtype)
        w = torch.randn(c.connections, *self.kernel, generator=generator, dtype=dtype)
        return x, w, torch.tensor(c.indptr), torch.tensor(c.indices)

    @property
    def geometry(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        return self.stride, self.padding, self.dilation


SAMPLES = [
    Sample((3, 5), (3, 3), padding=(1, 1)),
    Sample((6, 4), (1, 1), density=0.3),
    Sample((4, 4), (3, 3), stride=(2, 2), padding=(1, 1), plane=(9, 8)),
    Sample((2, 6), (5, 5), padding=(2, 2), pattern="uniform"),
    Sample((4, 3), (1, 7), padding=(0, 3), plane=(4, 9)),
    Sample((4, 3), (7, 1), padding=(3, 0), plane=(9, 4)),
    Sample((5, 5), (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1), plane=(8, 9)),
    Sample((4, 6), (3, 3), padding=(1, 1), groups=2, density=0.7),
    Sample((4, 4), (3, 3), padding=(1, 1), density=1.0),
    Sample((3, 2), (4, 4), plane=(4, 4)),
    Sample((3, 4), (3, 3), padding=(1, 1), plane=(1, 1), batch=1),
    Sample((3, 4), (3, 3), padding=(1, 1), batch=0),
]
