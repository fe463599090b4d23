"""The operators and the dense backend against the specification, under autograd, opcheck and the FLOP counter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import gossamer as gs
from gossamer import kernels
from gossamer.kernels import cpu, dense, reference
from samples import SAMPLES, Sample

every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=str)


def test_algorithm_1_is_pytorchs_convolution() -> None:
    x, w = torch.randn(2, 3, 7, 6, dtype=torch.float64), torch.randn(4, 3, 3, 2, dtype=torch.float64)
    ours = reference.dense_conv2d(x, w, (2, 1), (1, 0), (1, 2))
    torch.testing.assert_close(ours, F.conv2d(x, w, None, (2, 1), (1, 0), (1, 2)))


@every_sample
def test_the_reference_is_its_own_gradient(sample: Sample) -> None:
    """The specification's gradients are what autograd makes of its forward."""
    x, w, *pattern = sample.tensors()
    x.requires_grad_()
    w.requires_grad_()
    out = reference.sparse_conv2d(x, w, *pattern, *sample.geometry)
    grad = torch.randn_like(out)
    for_x, for_w = torch.zeros_like(x), torch.zeros_like(w)
    if sample.batch:
        for_x, for_w = torch.autograd.grad(out, (x, w), grad)
    ours = reference.sparse_conv2d_input_grad(grad, w.detach(), *pattern, x.shape, *sample.geometry)
    torch.testing.assert_close(ours, for_x)
    ours = reference.sparse_conv2d_weight_grad(grad, x.detach(), *pattern, w.shape[1:], *sample.geometry)
    torch.testing.assert_close(ours, for_w)


@every_sample
@pytest.mark.parametrize("backend", [dense, kernels], ids=["dense", "dispatched"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_backend_agrees_with_the_reference(sample: Sample, backend: object, dtype: torch.dtype) -> None:
    x, w, *pattern = sample.tensors(dtype)
    rest = (*sample.geometry, sample.groups)
    expected = reference.sparse_conv2d(x, w, *pattern, *sample.geometry)
    torch.testing.assert_close(backend.sparse_conv2d(x, w, *pattern, *rest), expected)
    grad = torch.randn_like(expected)
    expected = reference.sparse_conv2d_input_grad(grad, w, *pattern, x.shape, *sample.geometry)
    torch.testing.assert_close(backend.sparse_conv2d_input_grad(grad, w, *pattern, x.shape, *rest), expected)
    expected = reference.sparse_conv2d_weight_grad(grad, x, *pattern, w.shape[1:], *sample.geometry)
    ours = backend.sparse_conv2d_weight_grad(grad, x, *pattern, w.shape[1:], *rest)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("sample", [sample for sample in SAMPLES if sample.batch], ids=str)
def test_gradients_twice_over(sample: Sample) -> None:
    x, w, *pattern = sample.tensors()
    x.requires_grad_()
    w.requires_grad_()

    def run(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return kernels.sparse_conv2d(x, w, *pattern, *sample.geometry, sample.groups)

    assert torch.autograd.gradcheck(run, (x, w), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, w), fast_mode=True)


@pytest.mark.parametrize("sample", [SAMPLES[0], SAMPLES[2], SAMPLES[7]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(sample: Sample, dtype: torch.dtype) -> None:
    x, w, *pattern = sample.tensors(dtype)
    rest = (*sample.geometry, sample.groups)
    out = kernels.sparse_conv2d(x, w, *pattern, *rest)
    x.requires_grad_()
    w.requires_grad_()
    torch.library.opcheck(kernels.sparse_conv2d, (x, w, *pattern, *rest))
    grad = torch.randn_like(out).requires_grad_()
    torch.library.opcheck(kernels.sparse_conv2d_input_grad, (grad, w, *pattern, list(x.shape), *rest))
    torch.library.opcheck(kernels.sparse_conv2d_weight_grad, (grad, x, *pattern, list(w.shape[1:]), *rest))


def test_flops_are_of_live_connections_only() -> None:
    sample = SAMPLES[0]
    x, w, *pattern = sample.tensors(torch.float32)
    x.requires_grad_()
    w.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        out = kernels.sparse_conv2d(x, w, *pattern, *sample.geometry)
    forward = 2 * w.numel() * out.shape[0] * out.shape[2] * out.shape[3]
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * forward


def test_autocast_on_the_cpu_casts_what_takes_the_dense_path_alone() -> None:
    x, w, *pattern = SAMPLES[0].tensors(torch.float32)
    expected = kernels.sparse_conv2d(x, w, *pattern, *SAMPLES[0].geometry)
    for path, dtype in (("native", torch.float32), ("dense", torch.bfloat16)):
        leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16), cpu.use_path(path):
            out = kernels.sparse_conv2d(*leaves, *pattern, *SAMPLES[0].geometry)
            grads = torch.autograd.grad(out.float().sum(), leaves)
        assert out.dtype == dtype
        assert all(grad.dtype == torch.float32 for grad in grads)
        torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("path", ["native", "dense"])
def test_what_is_known_without_data_has_the_layout_of_the_result(path: str) -> None:
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    c = gs.Connectivity.random(8, 8, 0.5, seed=0)
    pattern, geometry = (torch.tensor(c.indptr), torch.tensor(c.indices)), ([1, 1], [1, 1], [1, 1])
    w = torch.randn(c.connections, 3, 3)
    grad = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    with cpu.use_path(path):
        torch.library.opcheck(kernels.sparse_conv2d, (x, w, *pattern, *geometry), test_utils="test_faketensor")
        arguments = (grad, w, *pattern, [2, 8, 6, 6], *geometry)
        torch.library.opcheck(kernels.sparse_conv2d_input_grad, arguments, test_utils="test_faketensor")
        out = kernels.sparse_conv2d(x, w, *pattern, *geometry)
    assert out.is_contiguous(memory_format=torch.channels_last) == (path == "dense")
