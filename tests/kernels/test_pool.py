"""Native max-pooling against PyTorch's: values, ties, not-a-number and gradients are the same, bit for bit."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import instruction_sets
from gossamer.kernels.native import pool
from gossamer.kernels.native.library import LIBRARY
from guarded import Guarded

WINDOWS = [
    (2, 2, 0),
    (3, 2, 1),
    (3, 2, 0),
    (3, 1, 1),
    (2, 1, 1),
    (1, 2, 0),
    (5, 3, 2),
    (15, 1, 7),
    (3, 4, 1),
    (13, 5, 6),
]


@pytest.fixture(autouse=True)
def _threads_as_they_were() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(a.signbit(), b.signbit())


def agrees(x: Tensor, window: tuple[int, int, int]) -> None:
    """Values with and without index, and the gradient, equal PyTorch's."""
    x.requires_grad_()
    theirs, ours = F.max_pool2d(x, *window), pool.max_pool2d(x, *window)
    same(ours, theirs)
    with torch.no_grad():
        same(pool.max_pool2d(x, *window), theirs)
    grad = torch.randn_like(theirs)
    same(*(torch.autograd.grad(y, x, grad)[0] for y in (ours, theirs)))


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[int], tuple[int, int, int]]:
    kernel = draw(st.sampled_from([1, 2, 2, 2, 3, 3, 3, 3, 4, 5, 7, 15]))
    stride = draw(st.sampled_from([1, 2, 2, 2, 3, 4]))
    padding = draw(st.integers(0, kernel // 2))
    small = max(1, kernel - 2 * padding)
    size = [draw(st.integers(small, small + room)) for room in draw(st.sampled_from([(3, 3), (12, 40), (40, 90)]))]
    return [draw(st.integers(1, 5)), draw(st.integers(1, 12)), *size], (kernel, stride, padding)


@settings(max_examples=int(os.environ.get("GOSSAMER_EXAMPLES", "150")), deadline=None)
@given(
    problems(), st.sampled_from(["distinct", "ties", "with NaN and infinities"]), st.integers(1, 4), st.integers(0, 99)
)
def test_any_shape_agrees_with_pytorch(
    problem: tuple[list[int], tuple[int, int, int]], values: str, threads: int, seed: int
) -> None:
    shape, window = problem
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    x = torch.randn(shape)
    if values != "distinct":
        x = x.round()  # -0.0 and 0.0 are among the ties
    if values == "with NaN and infinities":
        for value in (math.nan, math.inf, -math.inf):
            x[torch.rand_like(x) < 0.1] = value
    agrees(x, window)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("value", [-math.inf, math.nan, 0.0, -0.0])
def test_planes_of_one_value_agree_with_pytorch(window: tuple[int, int, int], value: float) -> None:
    """All of them tie: the first element inside the image wins, of not-a-number the last."""
    agrees(torch.full((2, 3, 19, 37), value), window)


@pytest.mark.parametrize("window", [w for w in WINDOWS if w[0] < 4], ids=str)
def test_planes_that_take_several_pieces_agree_with_pytorch(window: tuple[int, int, int]) -> None:
    agrees(torch.randn(1, 3, 230, 171).round(), window)
    agrees(torch.randn(1, 1, 6, 20_000), window)


@pytest.mark.parametrize("window", [(1, 1, 0), (2, 2, 1), (3, 2, 1), (3, 1, 1), (15, 7, 7)], ids=str)
def test_planes_of_one_pixel_agree_with_pytorch(window: tuple[int, int, int]) -> None:
    agrees(torch.randn(9, 70, 1, 1), window)


@instruction_sets.every_lesser_one
def test_lesser_instruction_sets_pass_the_same_tests(isa: str) -> None:
    instruction_sets.pass_the_tests(isa, __file__, "with_pytorch or outside_the_tensors")


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_results_do_not_depend_on_the_number_of_threads(window: tuple[int, int, int]) -> None:
    x = torch.randn(3, 7, 40, 33).requires_grad_()
    results = []
    for threads in (1, 2, 3, 5, 30):
        torch.set_num_threads(threads)
        y = pool.max_pool2d(x, *window)
        results.append((y, torch.autograd.grad(y.square().sum(), x)[0]))
    for y, grad in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(grad, results[0][1])


def test_no_images() -> None:
    x = torch.zeros(0, 3, 8, 8, requires_grad=True)
    y = pool.max_pool2d(x, 3, 2, 1)
    assert y.shape == (0, 3, 4, 4)
    assert torch.autograd.grad(y, x, y.detach())[0].shape == x.shape


def test_other_layouts_are_converted() -> None:
    x = torch.randn(2, 8, 9, 9)
    expected = pool.max_pool2d(x, 3, 2, 1)
    assert torch.equal(pool.max_pool2d(x.to(memory_format=torch.channels_last), 3, 2, 1), expected)
    assert torch.equal(pool.max_pool2d(x.mT.contiguous().mT, 3, 2, 1), expected)


@pytest.mark.parametrize("window", WINDOWS[:5], ids=str)
def test_opcheck(window: tuple[int, int, int]) -> None:
    x = torch.randn(2, 3, 9, 11)
    torch.library.opcheck(torch.ops.gossamer.max_pool2d.default, (x, *window, False))
    x.requires_grad_()
    torch.library.opcheck(torch.ops.gossamer.max_pool2d.default, (x, *window, True))
    y, index = torch.ops.gossamer.max_pool2d(x.detach(), *window, True)
    grad = torch.randn_like(y).requires_grad_()
    torch.library.opcheck(torch.ops.gossamer.max_pool2d_grad.default, (grad, index, list(x.shape), *window))


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_the_second_gradient_is_pytorchs(window: tuple[int, int, int]) -> None:
    x, v = torch.randn(2, 3, 20, 18).requires_grad_(), torch.randn(2, 3, 20, 18)
    ours, theirs = [], []
    for function, results in ((pool.max_pool2d, ours), (F.max_pool2d, theirs)):
        (first,) = torch.autograd.grad(function(x, *window).pow(3).sum(), x, create_graph=True)
        results.extend([first, torch.autograd.grad((first * v).sum(), x)[0]])
    torch.testing.assert_close(ours, theirs)


def test_a_gradient_without_index_is_an_error() -> None:
    x = torch.randn(1, 1, 4, 4, requires_grad=True)
    y, index = torch.ops.gossamer.max_pool2d(x, 2, 2, 0, False)
    assert index.numel() == 0
    with pytest.raises(RuntimeError, match="with_index=True"):
        y.sum().backward()


@pytest.mark.parametrize("window", [(16, 1, 0), (0, 1, 0), (2, 0, 0), (2, 2, 2), (3, 1, -1), (9, 1, 0)], ids=str)
def test_windows_that_cannot_be_are_errors(window: tuple[int, int, int]) -> None:
    x, y = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 20, 20)
    call = pool._Pool(1, 8, 8, *window)
    assert LIBRARY.gossamer_max_pool(call, x.data_ptr(), 64, y.data_ptr(), 400, None, 0, 1) == 1
    with pytest.raises(TypeError, match="needs float32"):
        pool.max_pool2d(x.double(), 2, 2, 0)


def test_an_index_outside_its_window_is_an_error_and_not_a_crash() -> None:
    grad = torch.ones(1, 1, 4, 4)
    for bad in (4, 200, 255):
        index = torch.full_like(grad, bad, dtype=torch.uint8)
        with pytest.raises(RuntimeError, match="must lie in its window"):
            torch.ops.gossamer.max_pool2d_grad(grad, index, [1, 1, 8, 8], 2, 2, 0)
    with pytest.raises(RuntimeError, match="takes a gradient and an index"):
        torch.ops.gossamer.max_pool2d_grad(grad, index[:, :, 1:], [1, 1, 8, 8], 2, 2, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="uses Linux's mprotect")
@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (32, 33), (16, 260)], ids=str)
@pytest.mark.parametrize("window", [(2, 2, 0), (2, 2, 1), (3, 2, 1), (3, 1, 1), (3, 3, 0)], ids=str)
def test_nothing_outside_the_tensors_is_touched(
    window: tuple[int, int, int], size: tuple[int, int], at_end: bool
) -> None:
    rows, cols = pool.output_size((5, 1, *size), *window)
    if min(rows, cols) < 1:
        assert (
            LIBRARY.gossamer_max_pool(pool._Pool(5, *size, *window), None, 0, None, 0, None, 0, 2) == 1
        )  # a size is out of range
        return
    inputs, outputs = 5 * size[0] * size[1], 5 * rows * cols
    x, y, index = Guarded(inputs, at_end), Guarded(outputs, at_end), Guarded(outputs, at_end, np.uint8)
    x.values[:], y.values[:], index.values[:] = 1, np.nan, 255
    library, call = LIBRARY, pool._Pool(5, *size, *window)
    assert library.gossamer_max_pool(call, x.address, inputs, y.address, outputs, None, 0, 2) == 0
    assert (y.values == 1).all()
    assert library.gossamer_max_pool(call, x.address, inputs, y.address, outputs, index.address, outputs, 2) == 0
    assert (index.values < window[0] ** 2).all()
    memory = (y.address, outputs, index.address, outputs, x.address, inputs)
    assert library.gossamer_max_pool_grad(call, *memory, 2) == 0
    assert x.values.sum() == outputs
