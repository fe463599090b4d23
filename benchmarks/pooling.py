"""Max-pooling: ours against PyTorch's, in NCHW and in channels-last (with the conversions from NCHW and back).

    python benchmarks/pooling.py [--threads 1] [--seconds 1]

The three take turns, and each figure is the fastest of many calls. Milliseconds of the forward pass without a gradient,
and of the forward and backward pass.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.kernels import cpu, pool

Pooling = Callable[[Tensor, int, int, int], Tensor]
SHAPES = [  # input, kernel, stride, padding
    ((128, 64, 32, 32), 3, 2, 1),
    ((128, 64, 32, 32), 3, 1, 1),
    ((128, 64, 32, 32), 2, 2, 0),
    ((128, 256, 8, 8), 2, 2, 0),
    ((1, 64, 224, 224), 2, 2, 0),
    ((1, 64, 112, 112), 3, 2, 1),
]


def channels_last(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """PyTorch's pooling in the memory format it is fast in, for a network that is not in it."""
    pooled = F.max_pool2d(x.contiguous(memory_format=torch.channels_last), kernel, stride, padding)
    return pooled.contiguous()


PEERS: dict[str, Pooling] = {"NCHW": F.max_pool2d, "channels-last": channels_last, "ours": pool.max_pool2d}


def milliseconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def forward(peer: Pooling, x: Tensor, window: tuple[int, int, int]) -> float:
    with torch.no_grad():
        return milliseconds(lambda: peer(x, *window))


def step(peer: Pooling, x: Tensor, window: tuple[int, int, int]) -> float:
    """A forward and a backward pass; the gradient that comes in is NCHW, as from the next sparse layer."""
    x = x.detach().requires_grad_()
    with torch.no_grad():
        grad = torch.ones_like(peer(x, *window), memory_format=torch.contiguous_format)
    return milliseconds(lambda: torch.autograd.grad(peer(x, *window), x, grad)[0].contiguous())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1, help="for each shape and pass")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    isa, version = cpu.info()["isa"], torch.__version__
    print(f"{platform.machine()}, {isa}, {options.threads} threads, torch {version}\n")
    print(f"| input, window/stride/padding | pass | {' | '.join(f'{name} ms' for name in PEERS)} |")
    print(f"| --- | --- | {' | '.join('---:' for _ in PEERS)} |")
    for shape, *window in SHAPES:
        x = torch.randn(shape)
        for name, measure in (("forward", forward), ("forward + backward", step)):
            best = dict.fromkeys(PEERS, float("inf"))
            rounds, end = 0, time.perf_counter() + options.seconds
            while rounds < 5 or time.perf_counter() < end:
                rounds += 1
                for peer, function in PEERS.items():
                    best[peer] = min(best[peer], measure(function, x, tuple(window)))
            sizes = f"{list(shape)}, {'/'.join(map(str, window))}"
            print(f"| {sizes} | {name} | {' | '.join(f'{value:.2f}' for value in best.values())} |")


if __name__ == "__main__":
    main()
