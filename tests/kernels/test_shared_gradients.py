"""Gradients where outputs share their inputs: every way to compute them, with rows long enough for all remainders."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from gossamer.kernels import cpu, reference
from gossamer.kernels.native import conv as native

LAYERS = [  # batch, size, kernel, stride, padding
    *((1, (17, 17), (3, 3), 1, 1), (2, (20, 35), (5, 5), 1, 2), (3, (9, 17), (1, 7), 1, (0, 3))),  # rows run together
    *((17, (7, 7), (3, 3), 1, 1), (70, (2, 2), (3, 3), 1, 1), (33, (4, 3), (2, 4), 1, 2)),  # images in lanes
    *((9, (8, 8), (3, 3), 2, 1), (2, (14, 13), (3, 3), 2, 0), (40, (5, 6), (1, 7), 2, (0, 3))),  # phases of a stride
    *(
        (2, (12, 16), (1, 1), 1, 0),
        (5, (15, 13), (1, 1), 1, 0),
        (9, (7, 7), (1, 1), 1, 0),
    ),  # points: whole vectors, not, joined
    *((3, (9, 11), (1, 1), 2, 0), (2, (6, 5), (1, 1), 1, 2)),  # points that are copied
]


@pytest.fixture(autouse=True)
def _native_only() -> Iterator[None]:
    threads = torch.get_num_threads()
    with cpu.use_path("native"):
        yield
    torch.set_num_threads(threads)


def problem(layer: tuple, block: int) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor], tuple]:
    """(input, weight, output gradient, pattern, geometry), of whole numbers: their sums are exact, in any order."""
    batch, size, kernel, stride, padding = layer
    mask = (np.random.default_rng(5).random((12 // block, 29)) < 0.8).repeat(block, axis=0)
    csr = tuple(torch.from_numpy(a.astype(np.int32)) for a in (np.append(0, mask.sum(1).cumsum()), np.nonzero(mask)[1]))
    geometry = ([stride] * 2, [padding] * 2 if isinstance(padding, int) else list(padding), [1, 1])
    generator = torch.Generator().manual_seed(0)
    x, w = (
        torch.randint(-3, 4, shape, generator=generator).float()
        for shape in ((batch, 29, *size), (len(csr[1]), *kernel))
    )
    out = reference.output_size(x.shape, kernel, *geometry)
    return x, w, torch.randint(-3, 4, (batch, 12, *out), generator=generator).float(), csr, geometry


@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_gradients_are_exact_whatever_scratch_memory_held(layer: tuple, block: int) -> None:
    x, w, grad, csr, geometry = problem(layer, block)
    torch.set_num_threads(1)  # scratch memory is the calling thread's
    poison = torch.full((2, 29, 70, 70), float("nan"))
    native.sparse_conv2d_weight_grad(
        torch.full((2, 12, 70, 70), float("nan")), poison, *csr, [3, 3], [1, 1], [1, 1], [1, 1]
    )
    for threads in (1, 3):
        torch.set_num_threads(threads)
        ours = (
            native.sparse_conv2d_input_grad(grad, w, *csr, list(x.shape), *geometry),
            native.sparse_conv2d_weight_grad(grad, x, *csr, list(w.shape[1:]), *geometry),
        )
        assert torch.equal(ours[0], reference.sparse_conv2d_input_grad(grad, w, *csr, list(x.shape), *geometry))
        assert torch.equal(ours[1], reference.sparse_conv2d_weight_grad(grad, x, *csr, list(w.shape[1:]), *geometry))
