"""Native batch normalisation against PyTorch's in float64: values, moments and gradients, up to float32's rounding."""

from __future__ import annotations

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
from gossamer.kernels.native import norm
from gossamer.kernels.native.library import LIBRARY
from guarded import Guarded

EPS = 1e-5


@pytest.fixture(autouse=True)
def _threads_as_they_were() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def agrees(x: Tensor, weight: Tensor | None, bias: Tensor | None, tolerance: float = 1e-5, relu: bool = False) -> None:
    """Output, moments and all gradients, within `tolerance` of the largest number of each in float64."""
    names = [t for t in (x, weight, bias) if t is not None]
    ours = [t.clone().requires_grad_() for t in names]
    theirs = [t.double().requires_grad_() for t in names]
    rest = iter(ours[1:])
    y, mean, variance = norm.batch_norm(
        ours[0], None if weight is None else next(rest), None if bias is None else next(rest), EPS, relu
    )
    rest = iter(theirs[1:])
    expected = F.batch_norm(
        *(theirs[0], None, None),
        *(None if weight is None else next(rest), None if bias is None else next(rest)),
        True,
        eps=EPS,
    )
    if relu:  # float64 disagrees on which outputs near zero are above it
        assert torch.equal(y, norm.batch_norm(x, weight, bias, EPS)[0].relu())
        expected = expected.where(y > 0, 0)
    grad = torch.randn_like(y)
    close(y, expected, tolerance)
    close(mean, x.double().mean((0, 2, 3)), 1e-6)
    close(variance, x.double().var((0, 2, 3), unbiased=False), tolerance)
    for a, b in zip(
        torch.autograd.grad(y, ours, grad), torch.autograd.grad(expected, theirs, grad.double()), strict=True
    ):
        close(a, b, tolerance * 10)
    moments = mean + 1, variance + 0.5
    values = norm.normalise_(x.clone(), *moments, weight, bias, EPS, relu)
    expected = F.batch_norm(x.double(), *(None if t is None else t.double() for t in (*moments, weight, bias)), eps=EPS)
    close(values, F.relu(expected) if relu else expected, tolerance)


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    scale = max(1.0, float(theirs.detach().abs().max()))
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=tolerance * scale)


@settings(max_examples=int(os.environ.get("GOSSAMER_EXAMPLES", "150")), deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 12), st.sampled_from([1, 2, 7, 16, 33]), st.integers(2, 40)),
    st.tuples(st.booleans(), st.booleans()),
    st.sampled_from([0.0, 1.0, -30.0]),
    st.booleans(),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_any_shape_agrees_with_pytorch(
    shape: tuple[int, ...], affine: tuple[bool, bool], middle: float, relu: bool, threads: int, seed: int
) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    weight, bias = (torch.randn(shape[1]) if there else None for there in affine)
    agrees(torch.randn(shape) + middle, weight, bias, relu=relu)


@pytest.mark.parametrize("shape", [(3, 2, 100, 131), (700, 3, 2, 3), (1, 1, 1, 20_000), (64, 64, 32, 32)], ids=str)
@pytest.mark.parametrize("relu", [False, True])
def test_channels_of_several_pieces_agree_with_pytorch(shape: tuple[int, ...], relu: bool) -> None:
    """The last result is large enough to be stored past the caches."""
    agrees(torch.randn(shape), torch.rand(shape[1]), torch.randn(shape[1]), relu=relu)


@pytest.mark.parametrize("shape", [(3, 40, 5, 7), (2, 3, 100, 131), (64, 64, 32, 32)], ids=str)
def test_the_gradient_knows_with_pytorch_to_the_bit_where_the_relu_was_open(shape: tuple[int, ...]) -> None:
    """Also where rounding decides: one output of each channel is no more than what its product lost."""
    x, weight = torch.randn(shape), torch.randn(shape[1])
    x[1] = x[0]
    bias = -norm.batch_norm(x, weight, None, EPS)[0][0, :, -1, -1]
    bias.requires_grad_()
    y = norm.batch_norm(x, weight, bias, EPS, relu=True)[0]
    (passed,) = torch.autograd.grad(y.sum(), bias)
    assert torch.equal(passed, (y > 0).sum((0, 2, 3)).float())


def test_what_is_no_number_passes_the_relu_as_in_pytorch() -> None:
    nan = float("nan")
    for place in ("input", "weight", "bias", "gradient"):
        x, weight, bias, grad = torch.randn(2, 3, 5, 9), torch.rand(3), torch.randn(3), torch.randn(2, 3, 5, 9)
        {"input": x[0, 1, 2], "weight": weight[1:], "bias": bias[1:], "gradient": grad[0, 1, 2]}[place][0] = nan
        results = []
        for function in (
            lambda x, w, b: norm.batch_norm(x, w, b, EPS, relu=True)[0],
            lambda x, w, b: F.relu(F.batch_norm(x, None, None, w, b, True, eps=EPS)),
        ):
            tensors = [t.clone().requires_grad_() for t in (x, weight, bias)]
            y = function(*tensors)
            results.append([y, *torch.autograd.grad(y, tensors, grad)])
        torch.testing.assert_close(*results, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_a_mean_far_from_zero_costs_no_variance() -> None:
    """Sums of squares would lose all of it: 1000 squared is a million times the variance."""
    x = torch.randn(8, 3, 40, 40) + 1000
    _, mean, variance = norm.batch_norm(x, None, None, EPS)
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3)), rtol=1e-7, atol=0)
    torch.testing.assert_close(variance.double(), x.double().var((0, 2, 3), unbiased=False), rtol=1e-5, atol=0)


def test_images_that_differ_only_from_each_other_have_their_variance() -> None:
    x = torch.arange(6.0)[:, None, None, None].expand(6, 2, 70, 70).contiguous()
    _, mean, variance = norm.batch_norm(x, None, None, EPS)
    assert mean.tolist() == [2.5, 2.5]
    torch.testing.assert_close(variance, torch.full((2,), 35 / 12))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_spoils_its_own_channel_alone(value: float) -> None:
    x = torch.randn(2, 3, 9, 9)
    x[1, 1, 4, 4] = value
    y, _, variance = norm.batch_norm(x, None, None, EPS)
    assert variance.isnan().tolist() == [False, True, False]
    assert y[:, 1].isnan().all()
    assert not y[:, ::2].isnan().any()


@instruction_sets.every_lesser_one
def test_lesser_instruction_sets_pass_the_same_tests(isa: str) -> None:
    instruction_sets.pass_the_tests(isa, __file__, "with_pytorch or in_pytorch or outside_the_tensors")


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    x, weight = torch.randn(3, 7, 40, 33).requires_grad_(), torch.rand(7)
    results = []
    for threads in (1, 2, 3, 30):
        torch.set_num_threads(threads)
        y, mean, variance = norm.batch_norm(x, weight, None, EPS)
        evaluated = norm.normalise_(x.detach().clone(), weight, weight, None, None, EPS)
        results.append((y, mean, variance, torch.autograd.grad(y.square().sum(), x)[0], evaluated))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_moments_of_no_images_are_an_error() -> None:
    x = torch.zeros(0, 3, 8, 8)
    with pytest.raises(RuntimeError, match=r"size is out of range.*\[0, 3, 8, 8\]"):
        norm.batch_norm(x, None, None, EPS)
    with pytest.raises(RuntimeError, match=r"size is out of range"):
        torch.ops.gossamer.batch_norm_grad(x, x, None, None, torch.zeros(3), torch.ones(3), EPS)
    assert norm.normalise_(x, torch.zeros(3), torch.ones(3), None, None, EPS) is x  # its moments are there


def test_other_layouts_are_converted() -> None:
    x, grad = torch.randn(2, 8, 9, 9).requires_grad_(), torch.randn(2, 8, 9, 9)
    y = norm.batch_norm(x, None, None, EPS)[0]
    expected = y, *torch.autograd.grad(y, x, grad)
    last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    y = norm.batch_norm(last, None, None, EPS)[0]
    found = y, *torch.autograd.grad(y, last, grad.contiguous(memory_format=torch.channels_last))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_opcheck() -> None:
    x, weight, bias = (torch.randn(s).requires_grad_() for s in ((2, 3, 9, 11), 3, 3))
    mean, variance = torch.randn(3), torch.rand(3)
    torch.library.opcheck(torch.ops.gossamer.batch_norm.default, (x, weight, bias, EPS))
    torch.library.opcheck(torch.ops.gossamer.batch_norm.default, (x, None, None, EPS))
    torch.library.opcheck(torch.ops.gossamer.batch_norm.default, (x, weight, bias, EPS, True))
    plain, moments = x.detach(), (mean, variance, EPS)
    torch.library.opcheck(torch.ops.gossamer.batch_norm_grad.default, (plain, plain, None, None, *moments))
    torch.library.opcheck(torch.ops.gossamer.batch_norm_grad.default, (plain, plain, None, mean, *moments, True))
    for rest in ((None, None, EPS), (mean, variance, EPS, True)):
        torch.library.opcheck(torch.ops.gossamer.normalise_.default, (plain, mean, variance, *rest))


@pytest.mark.parametrize("relu", [False, True])
def test_the_second_gradient_is_pytorchs(relu: bool) -> None:
    values = [torch.randn(2, 3, 5, 4), torch.randn(3), torch.randn(3)]
    v, results = torch.randn(2, 3, 5, 4), []
    for function in (
        lambda x, w, b: norm.batch_norm(x, w, b, EPS, relu)[0],
        lambda x, w, b: (F.relu if relu else torch.clone)(F.batch_norm(x, None, None, w, b, True, eps=EPS)),
    ):
        x, w, b = (t.clone().requires_grad_() for t in values)
        (first,) = torch.autograd.grad(function(x, w, b).pow(3).sum(), x, create_graph=True)
        results.append([first, *torch.autograd.grad((first * v).sum(), (x, w, b))])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


def test_what_does_not_fit_is_named() -> None:
    x, grad = torch.randn(2, 3, 4, 4), torch.ops.gossamer.batch_norm_grad
    with pytest.raises(TypeError, match=r"needs float32 .*torch.float64"):
        norm.batch_norm(x.double(), None, None, EPS)
    with pytest.raises(TypeError, match=r"got \[3, 4, 4\]"):
        norm.batch_norm(x[0], None, None, EPS)
    with pytest.raises(RuntimeError, match=r"of 3 channels needs one number for each, got \[\[4\], None\]"):
        norm.batch_norm(x, torch.ones(4), None, EPS)
    with pytest.raises(
        RuntimeError, match=r"of 3 channels needs one number for each, got \[\[3\], \[4\], None, None\]"
    ):
        norm.normalise_(x, torch.ones(3), torch.ones(4), None, None, EPS)
    with pytest.raises(RuntimeError, match=r"works in place, on contiguous planes; the strides were \(48, 16, 1, 4\)"):
        norm.normalise_(x.mT, torch.ones(3), torch.ones(3), None, None, EPS)
    with pytest.raises(RuntimeError, match=r"takes a gradient like it, got torch.float32 \[1, 3, 4, 4\]"):
        grad(x[:1], x, None, None, torch.ones(3), torch.ones(3), EPS)


@pytest.mark.skipif(sys.platform != "linux", reason="uses Linux's mprotect")
@pytest.mark.parametrize("relu", [0, 1])
@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("area", [1, 15, 16, 49, 64, 4100])
def test_nothing_outside_the_tensors_is_touched(area: int, at_end: bool, relu: int) -> None:
    batch, channels = 3, 5
    whole = [Guarded(batch * channels * area, at_end) for _ in range(4)]
    vectors = [Guarded(channels, at_end) for _ in range(5)]
    for tensor in (*whole, *vectors):
        tensor.values[:] = np.nan
    x, y, g, gx = whole
    mean, variance, gw, gb, shift = vectors
    x.values[:], g.values[:], shift.values[:] = 2, 1, 1
    call = norm._Norm(batch, channels, area)
    addresses = mean.address, variance.address
    rest = batch * channels * area, channels, 2
    assert (
        LIBRARY.gossamer_batch_norm(call, x.address, None, shift.address, EPS, relu, *addresses, y.address, *rest) == 0
    )
    assert (y.values == 1).all()
    assert (mean.values == 2).all()
    assert (variance.values == 0).all()
    y.values[:] = 2
    assert LIBRARY.gossamer_normalise(call, *addresses, None, shift.address, EPS, relu, y.address, *rest) == 0
    assert (y.values == 1).all()
    call = (
        call,
        g.address,
        x.address,
        None,
        shift.address,
        *addresses,
        EPS,
        relu,
        gx.address,
        gw.address,
        gb.address,
        *rest,
    )
    assert LIBRARY.gossamer_batch_norm_grad(*call) == 0
    assert (gx.values == 0).all()
    assert (gw.values == 0).all()
    assert (gb.values == batch * area).all()
