"""The native kernels against the specification: every kind of shape, every instruction set, any number of threads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import instruction_sets
from gossamer.kernels import cpu, reference
from gossamer.kernels.native import conv as native
from gossamer.kernels.native.library import LIBRARY
from guarded import Guarded
from samples import SAMPLES, Sample

ROOT = Path(__file__).parents[2]
NATIVE = Path(cpu.info()["library"])
every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=str)


@pytest.fixture(autouse=True)
def _native_only() -> Iterator[None]:
    """Never the dense path here, and the thread count as it was."""
    threads = torch.get_num_threads()
    with cpu.use_path("native"):
        yield
    torch.set_num_threads(threads)


def pattern(inputs: int, outputs: int, density: float, seed: int, block: int = 1) -> tuple[Tensor, Tensor]:
    """Independent coin tosses, so rows differ in length and some are empty; `block` outputs in a row have the same inputs."""
    mask = np.random.default_rng(seed).random((-(-outputs // block), inputs)) < density
    mask = mask.repeat(block, axis=0)[:outputs]
    indptr = np.concatenate([[0], mask.sum(1).cumsum()]).astype(np.int32)
    return torch.from_numpy(indptr), torch.from_numpy(np.nonzero(mask)[1].astype(np.int32))


def three(
    module: object, x: Tensor, w: Tensor, grad: Tensor, csr: tuple[Tensor, Tensor], geometry: tuple
) -> list[Tensor]:
    """Output, input gradient and weight gradient of one problem."""
    return [
        module.sparse_conv2d(x, w, *csr, *geometry),
        module.sparse_conv2d_input_grad(grad, w, *csr, list(x.shape), *geometry),
        module.sparse_conv2d_weight_grad(grad, x, *csr, list(w.shape[1:]), *geometry),
    ]


def agrees(x: Tensor, w: Tensor, csr: tuple[Tensor, Tensor], geometry: tuple) -> None:
    """All three passes within a tolerance that grows with the number of products summed, as rounding does."""
    height, width = reference.output_size(x.shape, w.shape[1:], *geometry)
    outputs, taps = csr[0].numel() - 1, w.shape[2] * w.shape[1]
    grad = torch.randn(x.shape[0], outputs, height, width)
    ours = three(native, x, w, grad, csr, geometry)
    theirs = three(reference, x.double(), w.double(), grad.double(), csr, geometry)
    fan = [int(csr[0].diff().max()), int(torch.bincount(csr[1], minlength=1).max()) if len(csr[1]) else 0]
    summed = [fan[0] * taps, fan[1] * taps, x.shape[0] * height * width]
    for name, a, b, terms in zip(("output", "input gradient", "weight gradient"), ours, theirs, summed, strict=True):
        assert a.shape == b.shape, name
        tolerance = 1e-6 * max(terms, 1) ** 0.5 * 16
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


@st.composite
def problems(draw: st.DrawFn) -> tuple:
    kernel = draw(
        st.sampled_from(
            [(1, 1), (3, 3), (5, 5), (1, 3), (3, 1), (1, 7), (7, 1), (7, 7), (2, 2), (4, 3), (2, 5), (8, 8)]
        )
    )
    stride = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (2, 1), (3, 2)]))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (1, 1), (2, 2), (1, 3)]))
    padding = tuple(draw(st.integers(0, k)) for k in kernel)
    size = [
        draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), high))
        for k, d, p, high in zip(kernel, dilation, padding, (24, 70), strict=True)
    ]
    if draw(st.booleans()):  # small maps have their own kernels
        size = [
            max(min(s, 9), d * (k - 1) + 1 - 2 * p) for s, k, d, p in zip(size, kernel, dilation, padding, strict=True)
        ]
    batch = draw(st.sampled_from([1, 1, 2, 3, 8, 17, 33, 65]))
    channels = draw(st.integers(1, 9)), draw(st.one_of(st.integers(1, 9), st.sampled_from([4, 8, 12])))
    density = draw(st.sampled_from([0.0, 0.1, 0.4, 1.0]))
    return (
        kernel,
        stride,
        dilation,
        padding,
        size,
        batch,
        channels,
        density,
        draw(st.integers(1, 4)),
        draw(st.integers(0, 99)),
        draw(st.sampled_from([1, 2, 4])),
    )


@settings(max_examples=int(os.environ.get("GOSSAMER_EXAMPLES", "100")), deadline=None)
@given(problems())
def test_any_shape_agrees_with_the_reference(problem: tuple) -> None:
    kernel, stride, dilation, padding, size, batch, (inputs, outputs), density, threads, seed, block = problem
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    csr = pattern(inputs, outputs, density, seed, block)
    x, w = torch.randn(batch, inputs, *size), torch.randn(len(csr[1]), *kernel)
    agrees(x, w, csr, (list(stride), list(padding), list(dilation)))


NETWORK_LAYERS = [  # batch, channels, size, kernel, stride, padding: one for each kernel and way to split work
    *((1, 16, 24, 112, 3, 1, 1), (1, 40, 24, 56, 3, 1, 1), (2, 24, 40, 35, 5, 1, 2), (2, 32, 32, 28, 3, 2, 1)),
    *((3, 300, 64, 7, 1, 1, 0), (1, 64, 96, 56, 1, 1, 0), (2, 64, 64, 29, 1, 2, 0), (33, 64, 32, 8, 3, 1, 1)),
    *((70, 48, 32, 4, 3, 1, 1), (70, 48, 32, 2, 3, 1, 1), (40, 16, 32, 7, 7, 1, 0), (2, 8, 12, 224, 3, 1, 1)),
    *((2, 24, 96, 56, 1, 1, 0), (4, 48, 24, 56, 1, 2, 0)),  # output, input gradient large enough to go past the caches
    *((70, 32, 256, 4, 3, 1, 1), (3, 32, 160, 14, 1, 1, 0)),  # the same by images; planes copied to begin on vectors
    *((1, 3, 24, 112, 7, 2, 3), (2, 24, 16, 57, 5, 2, 2), (3, 2, 40, 19, 3, 1, 0)),  # few channels for many threads
]


SHARED_LAYERS = [  # the same for outputs that share their inputs
    *((1, 40, 24, 56, 3, 1, 1), (1, 20, 12, 128, 3, 1, 1), (2, 24, 40, 35, 5, 1, 2), (2, 32, 32, 28, 3, 2, 1)),
    *((3, 300, 64, 7, 1, 1, 0), (1, 64, 96, 56, 1, 1, 0), (2, 64, 64, 29, 1, 2, 0), (2, 16, 20, 30, 3, 1, 0)),
    *((66, 128, 32, 8, 3, 1, 1), (70, 48, 32, 4, 3, 1, 1), (20, 48, 32, 4, 3, 1, 1), (70, 48, 32, 2, 3, 1, 1)),
    *((5, 64, 32, 7, 3, 1, 1), (40, 16, 32, 7, 7, 1, 0), (1, 3, 24, 112, 7, 2, 3), (9, 400, 16, 5, 3, 1, 2)),
    *((1, 300, 16, 56, 3, 1, 1), (3, 32, 64, 14, 1, 1, 0), (3, 2, 40, 19, 3, 1, 0), (1, 256, 400, 56, 1, 2, 0)),
]


@pytest.mark.parametrize(
    ("layer", "block"), [(layer, 1) for layer in NETWORK_LAYERS] + [(layer, 4) for layer in SHARED_LAYERS], ids=str
)
def test_layers_of_networks_agree_with_the_reference(layer: tuple[int, ...], block: int) -> None:
    batch, inputs, outputs, size, k, stride, padding = layer
    csr = pattern(inputs, outputs, 0.15, 0, block)
    agrees(
        torch.randn(batch, inputs, size, size),
        torch.randn(len(csr[1]), k, k),
        csr,
        ([stride] * 2, [padding] * 2, [1, 1]),
    )


@pytest.mark.parametrize(
    ("kernel", "padding", "size", "batch"),
    [
        *(((1, 7), (0, 3), (17, 17), 1), ((7, 1), (3, 0), (17, 17), 3), ((1, 3), (2, 1), (13, 19), 2)),
        *(((3, 1), (0, 0), (20, 18), 9), ((1, 5), (0, 0), (17, 23), 2), ((1, 7), (0, 3), (40, 9), 1)),
    ],
)
def test_one_dimensional_kernels_agree_with_the_reference(
    kernel: tuple[int, int], padding: tuple[int, int], size: tuple[int, int], batch: int
) -> None:
    """On maps whose width fills vectors badly, where stretches of the map lie in the lanes (with AVX-512 they do)."""
    csr = pattern(12, 20, 0.3, 0)
    geometry = ([1, 1], [*padding], [1, 1])
    agrees(torch.randn(batch, 12, *size), torch.randn(len(csr[1]), *kernel), csr, geometry)
    if cpu.info()["isa"] == "avx512":
        for operation in ("forward", "input_grad"):
            assert native.kernel_name(operation, (batch, 12, *size), kernel, *csr, *geometry) == "stretches in lanes"


def kernels_ran(problem: tuple, csr: tuple[Tensor, Tensor], geometry: tuple) -> dict[str, tuple[str, str]]:
    """For each pass the kernel that the library names and the one that ran."""
    shape, kernel = problem
    x, w = torch.randn(shape), torch.randn(len(csr[1]), *kernel)
    grad = torch.randn(shape[0], csr[0].numel() - 1, *reference.output_size(shape, kernel, *geometry))
    calls = {
        "forward": lambda: native.sparse_conv2d(x, w, *csr, *geometry),
        "input_grad": lambda: native.sparse_conv2d_input_grad(grad, w, *csr, list(shape), *geometry),
        "weight_grad": lambda: native.sparse_conv2d_weight_grad(grad, x, *csr, list(kernel), *geometry),
    }
    names = {}
    for operation, call in calls.items():
        call()
        ran = LIBRARY.gossamer_kernel_ran().decode()
        names[operation] = native.kernel_name(operation, shape, kernel, *csr, *geometry), ran
    return names


@pytest.mark.parametrize("size", [(2, 2), (5, 7), (17, 17), (30, 33)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (1, 7), (7, 1), (2, 2), (5, 5)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 2), (3, 3)])
def test_the_kernel_named_is_the_one_that_runs(
    kernel: tuple[int, int], size: tuple[int, int], stride: tuple[int, int]
) -> None:
    csr = pattern(6, 9, 0.5, 0)
    for batch in (1, 9, 65):
        for dilation in (1, 2):
            geometry = ([*stride], [dilation * (k // 2) for k in kernel], [dilation] * 2)
            if any(s + 2 * p <= dilation * (k - 1) for s, p, k in zip(size, geometry[1], kernel, strict=True)):
                continue
            for threads in (1, 4):
                torch.set_num_threads(threads)
                for operation, (named, ran) in kernels_ran(((batch, 6, *size), kernel), csr, geometry).items():
                    assert named == ran != "none", (operation, batch, dilation, threads)


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding", "forward", "input_grad", "weight_grad"),
    [
        ((1, 6, 32, 32), 3, 1, 1, *["rows, taps in columns"] * 3),
        ((1, 6, 32, 32), 3, 2, 1, "rows, taps in columns", "rows, taps in columns, phases together", "rows"),
        ((1, 6, 40, 40), 1, 1, 0, "points", "points", "in place"),
        ((1, 6, 40, 40), 1, 2, 0, "points", "points", "lines"),
        ((70, 6, 4, 4), 3, 1, 1, "images in lanes", "images in lanes", "images in lanes"),
        ((70, 6, 2, 2), 3, 1, 1, "images in lanes, by position", "images in lanes, by position", "images in lanes"),
        ((70, 6, 8, 8), 3, 2, 1, "images in lanes", "images in lanes and points", "images in lanes"),
        ((1, 6, 18, 17), 3, 1, 1, *["rows run together"] * 3),
    ],
)
def test_names_of_kernels(
    shape: tuple[int, ...], kernel: int, stride: int, padding: int, forward: str, input_grad: str, weight_grad: str
) -> None:
    if cpu.info()["isa"] != "avx512":
        pytest.skip("which kernel a map gets depends on the lanes; these are of AVX-512")
    torch.set_num_threads(1)
    names = kernels_ran((shape, (kernel, kernel)), pattern(6, 9, 0.5, 0), ([stride] * 2, [padding] * 2, [1, 1]))
    expected = {"forward": forward, "input_grad": input_grad, "weight_grad": weight_grad}
    assert {operation: ran for operation, (_, ran) in names.items()} == expected


@pytest.mark.parametrize("block", [2, 4])
@pytest.mark.parametrize(
    ("shape", "kernel", "padding", "forward", "input_grad", "weight_grad"),
    [
        ((1, 6, 32, 32), 3, 1, "lines", "rows, taps in columns", "rows, taps in columns"),
        ((1, 6, 32, 32), 3, 0, "in place", "rows, taps in columns", "rows, taps in columns"),
        ((1, 6, 18, 17), 1, 0, "in place", "points, shared", "in place, shared"),
        ((1, 6, 18, 17), 3, 1, "lines", "lines, shared", "rows run together"),
        ((70, 6, 3, 3), 1, 0, "points", "points, shared", "lines, shared"),
        ((70, 6, 4, 4), 3, 1, "images in lanes, by position", "images in lanes, shared", "images in lanes"),
        ((20, 6, 4, 4), 3, 1, "images in lanes", "images in lanes, shared", "images in lanes"),
    ],
)
def test_names_of_kernels_for_shared_inputs(
    shape: tuple[int, ...], kernel: int, padding: int, forward: str, input_grad: str, weight_grad: str, block: int
) -> None:
    if cpu.info()["isa"] != "avx512":
        pytest.skip("which kernel a map gets depends on the lanes; these are of AVX-512")
    torch.set_num_threads(1)
    geometry = ([1, 1], [padding] * 2, [1, 1])
    names = kernels_ran((shape, (kernel, kernel)), pattern(6, 12, 0.5, 0, block), geometry)
    expected = {"forward": f"{forward}, shared", "input_grad": input_grad, "weight_grad": weight_grad}
    assert names == {op: (name.replace("shared", f"shared by {block}"),) * 2 for op, name in expected.items()}


@pytest.mark.parametrize("kernel", [2, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("cols", [15, 31])
def test_tiles_of_every_height_agree_with_the_reference(kernel: int, stride: int, cols: int) -> None:
    csr = pattern(4, 5, 0.5, 0)
    for rows in range(1, 19):
        x = torch.randn(1, 4, rows * stride, cols * stride)
        geometry = ([stride] * 2, [kernel // 2] * 2, [1, 1])
        agrees(x, torch.randn(len(csr[1]), kernel, kernel), csr, geometry)


@pytest.mark.parametrize("kernel", [(3, 3), (2, 2), (5, 5), (1, 3), (7, 7), (4, 3)])
@pytest.mark.parametrize("size", [(2, 2), (9, 14), (30, 30), (41, 19), (57, 64)])
@pytest.mark.parametrize("stride", [(2, 2), (2, 1), (1, 2)])
def test_phases_of_strided_layers_agree_with_the_reference(
    kernel: tuple[int, int], size: tuple[int, int], stride: tuple[int, int]
) -> None:
    """The input gradient gathers all phases of a stride of two in one go."""
    csr = pattern(10, 14, 0.3, 0)
    for padding, dilation in (([0, 0], [1, 1]), ([1, 2], [1, 1]), ([3, 3], [2, 1]), ([4, 6], [2, 2])):
        if all(s + 2 * p > d * (k - 1) for s, p, d, k in zip(size, padding, dilation, kernel, strict=True)):
            weight = torch.randn(len(csr[1]), *kernel)
            agrees(torch.randn(2, 10, *size), weight, csr, ([*stride], padding, dilation))


@every_sample
def test_samples_agree_with_the_reference(sample: Sample) -> None:
    x, w, *csr = sample.tensors(torch.float32)
    agrees(x, w, tuple(csr), tuple(list(v) for v in sample.geometry))


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


@instruction_sets.every_lesser_one
def test_lesser_instruction_sets_pass_the_same_tests(isa: str) -> None:
    instruction_sets.pass_the_tests(isa, __file__, "with_the_reference or the_one_that_runs")


def test_an_unsupported_instruction_set_is_an_error_that_names_those_there_are() -> None:
    run = python("import gossamer.kernels", GOSSAMER_ISA="avx1024")
    assert run.returncode != 0
    assert "GOSSAMER_ISA=avx1024" in run.stderr
    assert "base" in run.stderr


@pytest.mark.parametrize(
    ("layer", "block"),
    [(layer, 1) for layer in NETWORK_LAYERS[:1] + NETWORK_LAYERS[3:6] + NETWORK_LAYERS[7:]]
    + [(layer, 4) for layer in SHARED_LAYERS],
    ids=str,
)
def test_results_do_not_depend_on_the_number_of_threads(layer: tuple[int, ...], block: int) -> None:
    batch, inputs, outputs, size, k, stride, padding = layer
    csr = pattern(inputs, outputs, 0.2, 1, block)
    x, w = torch.randn(batch, inputs, size, size), torch.randn(len(csr[1]), k, k)
    geometry = ([stride] * 2, [padding] * 2, [1, 1])
    torch.set_num_threads(1)
    grad = torch.randn_like(native.sparse_conv2d(x, w, *csr, *geometry))
    alone = three(native, x, w, grad, csr, geometry)
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        for one, many in zip(alone, three(native, x, w, grad, csr, geometry), strict=True):
            assert torch.equal(one, many)


@pytest.mark.parametrize(
    ("layer", "block"), [(layer, 1) for layer in NETWORK_LAYERS] + [(layer, 2) for layer in SHARED_LAYERS], ids=str
)
def test_nothing_is_left_unwritten(layer: tuple[int, ...], block: int) -> None:
    """Fresh tensors are full of NaN here; none may come through."""
    batch, inputs, outputs, size, k, stride, padding = layer
    csr = pattern(inputs, outputs, 0.05, 2, block)
    x, w = torch.randn(batch, inputs, size, size), torch.randn(len(csr[1]), k, k)
    geometry = ([stride] * 2, [padding] * 2, [1, 1])
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1).isnan()
        grad = torch.ones_like(native.sparse_conv2d(x, w, *csr, *geometry))
        for result in three(native, x, w, grad, csr, geometry):
            assert result.isfinite().all()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(sys.platform != "linux", reason="uses Linux's mprotect")
@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize(
    ("batch", "size", "kernel", "stride", "padding"),
    [
        (1, 13, 3, 1, 1),
        (2, 33, 3, 1, 1),
        (1, 17, 5, 2, 2),
        (3, 7, 1, 1, 0),
        (2, 13, 1, 1, 0),
        (2, 15, 3, 1, 0),
        (1, 30, 1, 2, 0),
        (17, 5, 3, 1, 1),
        (9, 4, 4, 1, 0),
    ],
)
def test_nothing_outside_the_tensors_is_touched(
    batch: int, size: int, kernel: int, stride: int, padding: int, block: int, at_end: bool
) -> None:
    indptr, indices = pattern(5, 8, 0.5, 3, block)
    geometry = [stride] * 2, [padding] * 2, [1, 1]
    conv = native._conv([batch, 5, size, size], [kernel] * 2, indptr, indices, *geometry)
    height, width = reference.output_size((batch, 5, size, size), (kernel, kernel), *geometry)
    x, y = Guarded(batch * 5 * size * size, at_end), Guarded(batch * 8 * height * width, at_end)
    w = Guarded(len(indices) * kernel * kernel, at_end)
    x.values[:], w.values[:] = 1, 1
    ours, kernels, theirs = ((t.address, t.values.size) for t in (x, w, y))
    assert LIBRARY.gossamer_forward(conv, *ours, *kernels, None, 0, 0, *theirs, 2) == 0
    assert LIBRARY.gossamer_input_grad(conv, *theirs, *kernels, *ours, 2) == 0
    assert LIBRARY.gossamer_weight_grad(conv, *theirs, *ours, *kernels, 2) == 0
    assert np.isfinite(w.values).all()


@pytest.mark.parametrize("size", [1, 14])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("block", [1, 2, 4])
def test_bias_and_relu_are_fused_into_the_store(size: int, kernel: int, block: int) -> None:
    csr = pattern(6, 12, 0.4, 4, block)
    x, w, bias = torch.randn(2, 6, size, size), torch.randn(len(csr[1]), kernel, kernel), torch.randn(12)
    conv = native._conv(x.shape, w.shape[1:], *csr, [1, 1], [kernel // 2] * 2, [1, 1])
    out = torch.full((2, 12, size, size), torch.nan)
    given, kernels, added, to = ((t.data_ptr(), t.numel()) for t in (x, w, bias, out))
    status = LIBRARY.gossamer_forward(conv, *given, *kernels, *added, 1, *to, 1)
    assert status == 0
    expected = reference.sparse_conv2d(x, w, *csr, [1, 1], [kernel // 2] * 2, [1, 1]) + bias[:, None, None]
    torch.testing.assert_close(out, expected.relu(), rtol=1e-4, atol=1e-5)


def test_no_images() -> None:
    csr = pattern(3, 4, 0.5, 5)
    x, w, grad = torch.zeros(0, 3, 5, 5), torch.randn(len(csr[1]), 3, 3), torch.zeros(0, 4, 5, 5)
    out, for_x, for_w = three(native, x, w, grad, csr, ([1, 1], [1, 1], [1, 1]))
    assert out.shape == (0, 4, 5, 5)
    assert for_x.shape == x.shape
    assert torch.equal(for_w, torch.zeros_like(w))


def test_other_layouts_are_converted() -> None:
    csr = pattern(8, 8, 0.3, 6)
    x, w = torch.randn(2, 8, 9, 9), torch.randn(len(csr[1]), 3, 3)
    geometry = ([1, 1], [1, 1], [1, 1])
    expected = native.sparse_conv2d(x, w, *csr, *geometry)
    assert torch.equal(native.sparse_conv2d(x.to(memory_format=torch.channels_last), w, *csr, *geometry), expected)
    assert torch.equal(native.sparse_conv2d(x.mT.contiguous().mT, w.mT.contiguous().mT, *csr, *geometry), expected)


def test_an_index_outside_the_input_is_an_error_and_not_a_crash() -> None:
    x, w = torch.randn(1, 3, 5, 5), torch.randn(2, 3, 3)
    indptr = torch.tensor([0, 2], dtype=torch.int32)
    for bad in ([0, 3], [-1, 1], [1, 1], [2, 0]):
        with pytest.raises(
            ValueError, match=r"indices must (lie in 0\.\.2, the input channels|ascend within each output)"
        ):
            native.sparse_conv2d(x, w, indptr, torch.tensor(bad, dtype=torch.int32), [1, 1], [1, 1], [1, 1])


def test_dense_patterns_take_the_dense_path_and_the_override_keeps_them_from_it() -> None:
    with cpu.use_path("auto"):
        assert cpu.choose_path("forward", (1, 64, 28, 28), (3, 3), 64 * 64, 64)[0] == "dense"
        path, reason = cpu.choose_path("forward", (1, 64, 28, 28), (3, 3), 400, 64)
        assert path == "native"
        assert "density 0.098" in reason
    with cpu.use_path("dense"):
        assert cpu.choose_path("forward", (1, 64, 28, 28), (3, 3), 400, 64)[0] == "dense"
    with pytest.raises(ValueError, match="'fast'"), cpu.use_path("fast"):
        pass


def test_a_fresh_thread_computes() -> None:
    csr = pattern(16, 16, 0.3, 7)
    x, w = torch.randn(8, 16, 28, 28), torch.randn(len(csr[1]), 3, 3)
    geometry = ([1, 1], [1, 1], [1, 1])
    expected, results = native.sparse_conv2d(x, w, *csr, *geometry), []
    thread = threading.Thread(target=lambda: results.append(native.sparse_conv2d(x, w, *csr, *geometry)), daemon=True)
    thread.start()
    thread.join(60)
    assert torch.equal(results[0], expected)


FORKED = """
import os, signal, numpy, torch, gossamer as gs
from gossamer.kernels.native import conv as native
torch.set_num_threads(2)
layer, x = gs.SparseConv2d(32, 32, 3, padding=1, density=0.2), torch.randn(8, 32, 28, 28)
call = lambda: native.sparse_conv2d(x, layer.weight.detach(), layer.indptr, layer.indices, [1, 1], [1, 1], [1, 1])
expected = call().numpy()
child = os.fork()
if child == 0:  # only our kernels: PyTorch's own would hang here
    signal.alarm(60)
    os._exit(0 if numpy.array_equal(call().numpy(), expected) else 3)
assert os.waitpid(child, 0)[1] == 0, "the child hung or computed something else"
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_computes_the_same() -> None:
    run = python(FORKED)
    assert run.returncode == 0, run.stderr


def test_shared_inputs_from_layout_to_layout(tmp_path: Path) -> None:
    """The part that the layers' copies do not exercise: any pitch, borders that are written, residuals."""
    compiler = shutil.which("g++")
    if not compiler:
        pytest.skip("needs g++")
    flags = ["-std=gnu++17", "-w", "-DGOSSAMER_BUILD=base", "-I", str(ROOT / "csrc"), "-o", str(tmp_path / "shared")]
    subprocess.run([compiler, str(ROOT / "tests/native/shared.cpp"), *flags], check=True, timeout=300)
    run = subprocess.run([tmp_path / "shared"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize(
    "source",
    [
        *(f"conv/{name}" for name in ("conv", "shared", "shared_forward", "shared_input_grad", "shared_weight_grad")),
        *("pool/pool", "norm/norm", "net/step"),
    ],
)
def test_there_are_no_weak_symbols_in_the_builds_for_instruction_sets(source: str, tmp_path: Path) -> None:
    """Even unoptimised, where nothing is inlined: a weak symbol could be linked from one build into all."""
    compiler, nm = shutil.which("g++"), shutil.which("nm")
    if not compiler or not nm:
        pytest.skip("needs g++ and nm")
    flags = ["-std=gnu++17", "-O0", "-w", "-fno-exceptions", "-DGOSSAMER_BUILD=base", "-I", str(ROOT / "csrc")]
    file = ROOT / f"csrc/{source}.cpp"
    subprocess.run([compiler, *flags, "-c", str(file), "-o", str(tmp_path / "o")], check=True, timeout=300)
    symbols = subprocess.run([nm, tmp_path / "o"], check=True, capture_output=True, text=True).stdout.splitlines()
    assert any("_base" in line for line in symbols)
    assert [line for line in symbols if line[17:18] in "WVuwv"] == []


def test_a_c_program_uses_the_library(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("needs a C compiler")
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-I", str(ROOT / "csrc"), "-o", str(tmp_path / "edge")]
    link = [f"-L{NATIVE.parent}", "-lgossamer", f"-Wl,-rpath,{NATIVE.parent}"]
    subprocess.run([compiler, str(ROOT / "examples/c/edge.c"), *flags, *link], check=True)
    run = subprocess.run([tmp_path / "edge"], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[0].startswith(f"gossamer {cpu.info()['version']}, ")
    assert run.stdout.splitlines()[3] == "1 2 2 2 2 0"


@pytest.mark.parametrize("size", [11, 23, 33])
def test_what_scratch_memory_held_before_does_not_matter(size: int) -> None:
    """On maps of these sizes vectors of the weight gradient reach beyond the last row of the last channel."""
    many, few, geometry = pattern(64, 64, 0.3, 0), pattern(3, 5, 0.7, 1), ([1, 1], [1, 1], [1, 1])
    poison, x, grad = torch.full((2, 64, 40, 40), float("nan")), *(torch.randn(2, c, size, size) for c in (3, 5))
    torch.set_num_threads(1)  # scratch memory is the calling thread's
    native.sparse_conv2d_weight_grad(poison, poison, *many, [3, 3], *geometry)
    ours = native.sparse_conv2d_weight_grad(grad, x, *few, [3, 3], *geometry)
    expected = reference.sparse_conv2d_weight_grad(grad, x, *few, [3, 3], *geometry)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-3)
