"""Calls that nobody should make: each is one sentence or the right value, and never a crash or a result from foreign memory."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import calls
from torch import nn

import gossamer as gs
from gossamer import kernels
from gossamer.kernels import cpu, dense
from gossamer.kernels.native import conv as native
from gossamer.training.config import TrainConfig

BIG = 2**31 - 1
PATTERN = (torch.tensor([0, 2, 3], dtype=torch.int32), torch.tensor([0, 2, 1], dtype=torch.int32))
X, W, G = torch.randn(2, 3, 5, 6), torch.randn(3, 3, 3), torch.randn(2, 2, 5, 6)
GEOMETRY = ([1, 1], [1, 1], [1, 1])


def test_layers_with_wrong_buffers_say_so() -> None:
    layer, x = gs.SparseConv2d(8, 16, 3, padding=1, density=0.3), torch.randn(1, 8, 6, 6)
    wrong = layer.indptr.clone()
    wrong[-1] = 10**6
    right = layer.indptr.clone()
    layer(x)
    layer.load_state_dict(
        {"indptr": wrong}, strict=False
    )  # in place: the pattern that was remembered is another one now
    with pytest.raises(ValueError, match="indptr must rise from 0"):
        layer(x)
    layer.load_state_dict({"indptr": right}, strict=False)
    layer(x)
    indices = layer.indices
    for kind in (torch.float32, torch.int64):
        layer.indices = indices.to(kind)
        with pytest.raises(TypeError, match="indices must be int32"):
            layer(x)
    layer.indices = indices
    layer.weight = nn.Parameter(torch.randn(2, 3, 3))
    with pytest.raises(ValueError, match="one for each kernel"):
        layer(x)


def test_a_pattern_changed_behind_pytorchs_back_is_refused_all_the_same() -> None:
    indptr, indices = (t.clone() for t in PATTERN)
    native.sparse_conv2d(X, W, indptr, indices, *GEOMETRY)
    indices.numpy()[0] = 10**6
    with cpu.use_path("native"), pytest.raises(RuntimeError, match="ascend within the input channels"):
        native.sparse_conv2d(X, W, indptr, indices, *GEOMETRY)


@pytest.mark.parametrize("state", [[-1, 0, 0], [2, 0, 0], [0, 0, -1], [0, 0], [0.5, 0, 0]], ids=str)
def test_an_extra_state_that_cannot_be_is_refused(state: list[float]) -> None:
    with pytest.raises(ValueError, match="extra_state"):
        gs.SparseConv2d(2, 2, 1).set_extra_state(torch.tensor(state))


@pytest.mark.parametrize("indices", [[0.5], [2**32], [-1]], ids=str)
def test_connections_are_whole_numbers_that_fit(indices: list[float]) -> None:
    with pytest.raises(ValueError, match="indices must be whole numbers"):
        gs.Connectivity(1, 1, np.array([0, 1]), np.array(indices))


@pytest.mark.parametrize("module", [native, dense, kernels], ids=["native", "dense", "operators"])
@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        (0, X[0], "input must be"),
        (0, X.double(), "of one floating-point type"),
        (0, X.int(), "of one floating-point type"),
        (0, X.to("meta"), "on one device"),
        (0, X.to_sparse(), "strided"),
        (1, W[:2], "one for each kernel"),
        (1, W[0], "kernels must be"),
        (2, PATTERN[0].long(), "indptr must be int32"),
        (2, PATTERN[0][:1], "indptr must be"),
        (3, PATTERN[1].float(), "indices must be int32"),
        (3, PATTERN[1][:2], "one for each kernel"),
        (3, PATTERN[1] + 1, "indices must lie in 0..2"),
        (3, PATTERN[1][[1, 0, 2]], "indices must ascend"),
        (4, [1], "stride must be two numbers"),
        (4, [0, 1], "stride must be two numbers from 1"),
        (5, [BIG, BIG], "rows and columns"),
        (5, [2**31, 1], "padding must be two numbers"),
        (5, [-1, 0], "padding must be two numbers"),
        (6, [-1, 1], "dilation must be two numbers"),
        (6, [BIG, BIG], "rows and columns"),
        (7, 2, "groups must divide"),
        (7, 0, "groups must divide"),
    ],
    ids=lambda value: "tensor" if isinstance(value, torch.Tensor) else str(value)[:40],  # the same in every process
)
def test_a_wrong_argument_is_named(module: object, place: int, value: object, sentence: str) -> None:
    arguments = [X, W, *PATTERN, *GEOMETRY, 1]
    arguments[place] = value
    with pytest.raises((TypeError, ValueError), match=re.escape(sentence)):
        module.sparse_conv2d(*arguments)


def test_gradients_that_do_not_fit_are_named() -> None:
    for wrong in (G[:1], G[..., :-1], G.mT, G[:, :1]):
        with pytest.raises(ValueError, match="grad_output must have the output's shape"):
            kernels.sparse_conv2d_input_grad(wrong, W, *PATTERN, list(X.shape), *GEOMETRY)
        with pytest.raises(ValueError, match="grad_output must have the output's shape"):
            kernels.sparse_conv2d_weight_grad(wrong, X, *PATTERN, [3, 3], *GEOMETRY)
    with pytest.raises(ValueError, match="indptr must rise from 0 to the 2 connections"):
        kernels.sparse_conv2d_weight_grad(G, X, PATTERN[0], PATTERN[1][:2], [3, 3], *GEOMETRY)
    with pytest.raises(ValueError, match="on one device"):
        kernels.sparse_conv2d_input_grad(G, W.to("meta"), *PATTERN, list(X.shape), *GEOMETRY)


@pytest.mark.parametrize(
    "geometry",
    [([BIG, BIG], [1, 1], [1, 1]), ([70, 1], [0, 0], [1, 1]), ([1, 1], [10**5, 10**5], [10**5, 10**5])],
    ids=str,
)
def test_sizes_that_no_layer_has_take_no_more_time_or_memory_than_their_tensors(geometry: tuple) -> None:
    x, w = X.double(), W.double()
    out = native.sparse_conv2d(X, W, *PATTERN, *geometry, 1, "native")
    expected = torch.nn.functional.conv2d(x, dense.scatter(w, *PATTERN, 3), None, *geometry)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(out)
    for_x = native.sparse_conv2d_input_grad(grad, W, *PATTERN, [*X.shape], *geometry, 1, "native")
    for_w = native.sparse_conv2d_weight_grad(grad, X, *PATTERN, [3, 3], *geometry, 1, "native")
    w.requires_grad_()
    x.requires_grad_()
    out = torch.nn.functional.conv2d(x, dense.scatter(w, *PATTERN, 3), None, *geometry)
    right = torch.autograd.grad(out, (x, w), grad.double())
    torch.testing.assert_close((for_x.double(), for_w.double()), right, rtol=1e-4, atol=1e-4)


MANY_THREADS = """
import os, torch, gossamer as gs
from gossamer.kernels.native import conv
layer, x = gs.SparseConv2d(64, 64, 3, density=0.2), torch.ones(8, 64, 30, 30)
call = lambda: conv.sparse_conv2d(x, layer.weight.detach(), layer.indptr, layer.indices, [1, 1], [0, 0], [1, 1], 1, "native")
one, torch.get_num_threads = call(), lambda: 10**6  # torch.set_num_threads would end the process by itself
assert torch.equal(call(), one)
threads = len(os.listdir("/proc/self/task"))
assert threads <= 2 * max(64, os.cpu_count()) + 16, threads
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in Linux's /proc")
def test_many_threads_are_no_more_than_there_can_be() -> None:
    run = subprocess.run([sys.executable, "-c", MANY_THREADS], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr


def test_numbers_of_threads_that_end_the_process_are_refused() -> None:
    with pytest.raises(ValueError, match="threads is 100000; it must be"):
        TrainConfig(threads=100_000)


@pytest.mark.skipif(sys.platform != "linux", reason="uses Linux's mprotect")
@pytest.mark.parametrize("kind", calls.KINDS)
def test_mutated_calls_are_refused_or_right(kind: str, tmp_path: Path) -> None:
    once = calls.KINDS[kind](random.Random(0), tmp_path)
    outcomes = {once() for _ in range(150)}
    assert outcomes == {"refused", "accepted"}
