"""Wrong calls of the operators, and of the C functions on tensors that lie between forbidden pages."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gossamer import kernels
from gossamer.kernels.native import conv, pool
from gossamer.kernels.native.library import LIBRARY
from guarded import Guarded

Once = Callable[[], str]
SIZES = [-1, 0, 1, 2, 3, 7, 64, 65, 10**6, 2**31 - 1, 2**31, 2**32 + 1, 2**62, 2**63 - 1, -(2**63)]
SMALL = [size for size in SIZES if size != 10**6]  # what is not refused is computed, by PyTorch too
PASSES = ("forward", "input_grad", "weight_grad")


def operators(rng: random.Random, folder: Path) -> Once:
    """One or two arguments of a right call replaced; what is accepted must be what PyTorch computes."""
    del folder

    def once() -> str:
        channels, outputs, kernel = rng.randint(1, 6), rng.randint(1, 6), rng.randint(1, 3)
        mask = torch.rand(outputs, channels, generator=torch.Generator().manual_seed(rng.randrange(2**31))) < 0.5
        indptr = torch.cat([torch.zeros(1), mask.sum(1).cumsum(0)]).int()
        indices = mask.nonzero()[:, 1].int()
        x, w = torch.ones(2, channels, 6, 7), torch.ones(len(indices), kernel, kernel)
        g = torch.ones(2, outputs, 6 + 3 - kernel, 7 + 3 - kernel)
        name = rng.choice(PASSES)
        tensors: dict[str, list[Any]] = {
            "forward": [x, w, indptr, indices],
            "input_grad": [g, w, indptr, indices, list(x.shape)],
            "weight_grad": [g, x, indptr, indices, [kernel, kernel]],
        }
        arguments = [*tensors[name], [1, 1], [1, 1], [1, 1], 1, rng.choice(("native", "dense"))]
        for at in rng.sample(range(len(arguments) - 1), rng.choice((0, 1, 1, 2))):
            arguments[at] = _other(rng, arguments[at])
        operator = kernels.sparse_conv2d if name == "forward" else getattr(kernels, f"sparse_conv2d_{name}")
        try:
            result = operator(*arguments)
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            return "refused" if str(error) else "lost"
        if result.device.type == "cpu" and not any(isinstance(a, torch.Tensor) and a.is_meta for a in arguments):
            other = operator(*arguments[:-1], "dense" if arguments[-1] == "native" else "native")
            torch.testing.assert_close(result, other, rtol=1e-3, atol=1e-3)
        return "accepted"

    return once


def _other(rng: random.Random, value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        if isinstance(value, int):
            return rng.choice(SMALL)
        changed = list(value)
        changed[rng.randrange(len(changed))] = rng.choice(SMALL)
        return rng.choice((changed, changed, value[:1], [*value, 1]))
    way = rng.randrange(8)
    if way == 0:
        return value[:-1]
    if way == 1:
        return value[None]
    if way == 2:
        return value.mT.contiguous() if value.dim() > 1 else value.flip(0)
    if way == 3:
        return value.to(rng.choice((torch.float64, torch.int32, torch.int64, torch.uint8, torch.bfloat16)))
    if way == 4:
        return value.to("meta")
    if way == 5 and value.layout == torch.strided:
        return value.to_sparse()
    if way == 6 and value.numel() and value.dtype == torch.int32:
        return value.clone().index_fill_(0, torch.tensor(rng.randrange(len(value))), rng.choice(SIZES[:10]))
    return value.flip(-1)


def c_functions(rng: random.Random, folder: Path) -> Once:
    """Sizes, counts and lists of the C functions, whose tensors lie flush with pages that may not be touched."""
    del folder
    memory = {(count, end): Guarded(count, end, np.float32) for count in (1, 12, 70, 420) for end in (True, False)}
    lists = {(count, end): Guarded(count, end, np.int32) for count in (1, 3, 5, 9) for end in (True, False)}
    names = [name for name, kind, *_ in conv._Conv._fields_ if kind is ctypes.c_int64]

    def once() -> str:
        end = rng.random() < 0.5
        for numbers in lists.values():
            numbers.values[:] = sorted(rng.choice((0, 1, 2, 3, 4, -1, 10**6)) for _ in numbers.values)
            numbers.values[0] = rng.choice((0, 0, 0, 1))
        if rng.random() < 0.3:
            return _pooled(rng, memory, end)
        outputs = rng.choice((2, 4, 8))
        rows = lists[outputs + 1, end]
        rows.values[:] = [min(i, 3) for i in range(outputs + 1)]
        connections = int(rows.values[-1])
        sources = lists[connections, end] if (connections, end) in lists else lists[3, end]
        sources.values[:] = rng.choice(([0, 1, 0], [0, 2, 1], [5, 1, 2]))[: len(sources.values)]
        sizes = {
            "batch": 1,
            "in_channels": 3,
            "in_h": rng.choice((1, 4)),
            "in_w": rng.choice((1, 7)),
            "out_channels": outputs,
        }
        sizes |= dict.fromkeys(("kernel_h", "kernel_w"), rng.choice((1, 3))) | dict.fromkeys(("pad_h", "pad_w"), 1)
        sizes |= dict.fromkeys(("stride_h", "stride_w", "dil_h", "dil_w"), 1)
        sizes |= {"indptr_count": outputs + 1, "indices_count": connections}
        for _ in range(rng.choice((0, 1, 1, 2))):
            sizes[rng.choice(names)] = rng.choice(SIZES)
        call = conv._Conv(**sizes, indptr=rows.address, indices=sources.address)
        call.indptr_count = min(call.indptr_count, len(rows.values))  # counts are true: those that C cannot know
        call.indices_count = min(call.indices_count, len(sources.values))
        given = [rng.choice(list(memory.values())) for _ in range(3)]
        if rng.random() < 0.7:  # such as fit, where there are any
            given = [Guarded(max(1, n), end) if 0 <= n < 10**5 else given[0] for n in _counts(call)]
        arguments = [part for g in given for part in (g.address, len(g.values))]
        threads = rng.choice((-1, 0, 1, 2, 10**6, 2**31 - 1))
        which = rng.choice(PASSES)
        if which == "forward":
            arguments[4:4] = [None, 0, rng.randint(0, 1)]
        status = getattr(LIBRARY, f"gossamer_{which}")(call, *arguments, threads)
        LIBRARY.gossamer_kernel_name(call, rng.choice((b"f", b"i", b"w", b"x")), threads)
        assert LIBRARY.gossamer_status_text(status) != b"unknown status"
        return "refused" if status else "accepted"

    def _counts(c: Any) -> list[int]:
        height, width = ctypes.c_int64(), ctypes.c_int64()
        LIBRARY.gossamer_output_size(ctypes.byref(c), ctypes.byref(height), ctypes.byref(width))
        inputs = c.batch * c.in_channels * c.in_h * c.in_w
        return [
            inputs,
            c.indices_count * c.kernel_h * c.kernel_w,
            c.batch * c.out_channels * height.value * width.value,
        ]

    return once


def _pooled(rng: random.Random, memory: dict[tuple[int, bool], Guarded], end: bool) -> str:
    sizes = [1, 3, 4, 2, 2, 0]  # planes, height, width, kernel, stride, padding
    if rng.random() < 0.7:
        sizes[rng.randrange(6)] = rng.choice(SIZES)
    x, y = (memory[count, end] for count in (12, 1))
    y = Guarded(2, end) if rng.random() < 0.7 else y
    status = LIBRARY.gossamer_max_pool(
        pool._Pool(*sizes), x.address, len(x.values), y.address, len(y.values), None, 0, rng.choice((1, 10**6))
    )
    return "refused" if status else "accepted"


KINDS: dict[str, Callable[[random.Random, Path], Once]] = {"operators": operators, "C functions": c_functions}
"""Kinds of calls: name -> what prepares one and returns what hands it in."""
