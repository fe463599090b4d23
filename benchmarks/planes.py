"""Pooling and batch normalisation: ours against PyTorch in NCHW and in channels-last (with conversions from and to NCHW).

    python benchmarks/planes.py [--threads 1] [--seconds 1]

Ours are the native operators at every size, also below the limits from which `gossamer.kernels.policy` takes them. Where a
SparseConv2d stands first, it is the same for all sides and its time is in each of them.
All take turns, and each figure is the fastest of many calls. Milliseconds of a forward pass in evaluation, without a
gradient, and of a forward and backward pass in training.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from timing import agree, fastest, header, keep_memory
from torch import Tensor, nn

import gossamer as gs
from gossamer.kernels import policy
from gossamer.layers import exchange_layers

Layer = Callable[[Tensor], Tensor]
Case = tuple[tuple[int, ...], nn.Module, nn.Module]


def cases(
    theirs: type[nn.Module], ours: type[nn.Module], *problems: tuple[tuple[int, ...], tuple[int, ...]]
) -> list[Case]:
    """For each (input shape, arguments of the layer) the shape and both layers."""
    return [(shape, theirs(*arguments), ours(*arguments)) for shape, arguments in problems]


def rectified(*shapes: tuple[int, ...]) -> list[Case]:
    """Batch normalisation and an in-place ReLU, as PyTorch computes them and as they are after `sparsify`."""
    made: list[Case] = []
    for shape in shapes:
        pairs = [nn.Sequential(nn.BatchNorm2d(shape[1]), nn.ReLU(inplace=True)) for _ in range(2)]
        pairs[1] = exchange_layers(pairs[1])
        made.append((shape, *pairs))
    return made


def convolved(*shapes: tuple[int, ...]) -> list[Case]:
    """The same after a sparse convolution with one connection for each output, over whose output evaluation can write."""
    made: list[Case] = []
    for shape in shapes:
        conv = nn.Conv2d(shape[1], shape[1], 3, padding=1, bias=False)
        layers = [conv, nn.BatchNorm2d(shape[1]), nn.ReLU(inplace=True)]
        ours = gs.sparsify(nn.Sequential(*layers), 1 / shape[1])
        made.append((shape, nn.Sequential(ours[0], *layers[1:]), ours))
    return made


CASES = [
    *cases(
        *(nn.MaxPool2d, gs.MaxPool2d),
        *(((1, 32, 8, 8), (2, 2, 0)), ((1, 32, 28, 28), (2, 2, 0))),
        *(((128, 64, 32, 32), (3, 2, 1)), ((128, 64, 32, 32), (3, 1, 1)), ((128, 64, 32, 32), (2, 2, 0))),
        *(((128, 256, 8, 8), (2, 2, 0)), ((1, 64, 224, 224), (2, 2, 0)), ((1, 64, 112, 112), (3, 2, 1))),
    ),
    *cases(
        *(nn.AvgPool2d, gs.AvgPool2d),
        *(((1, 32, 8, 8), (3, 1, 1)), ((1, 32, 28, 28), (3, 1, 1))),
        *(((1, 288, 35, 35), (3, 1, 1)), ((1, 768, 17, 17), (3, 1, 1)), ((1, 2048, 8, 8), (3, 1, 1))),
        *(((16, 288, 35, 35), (3, 1, 1)), ((16, 128, 28, 28), (3, 2, 1))),
    ),
    *cases(
        *(nn.BatchNorm2d, gs.BatchNorm2d),
        *(((1, 32, 28, 28), (32,)), ((1, 512, 14, 14), (512,)), ((1, 64, 56, 56), (64,)), ((1, 256, 56, 56), (256,))),
        *(
            ((64, 512, 2, 2), (512,)),
            ((64, 512, 4, 4), (512,)),
            ((64, 256, 8, 8), (256,)),
            ((64, 128, 16, 16), (128,)),
            ((64, 64, 32, 32), (64,)),
        ),
        ((1, 64, 224, 224), (64,)),
    ),
    *rectified((64, 512, 4, 4), (64, 256, 8, 8), (64, 128, 16, 16), (64, 64, 32, 32), (1, 64, 224, 224)),
    *convolved((1, 512, 14, 14), (1, 96, 35, 35), (1, 64, 56, 56), (1, 512, 28, 28), (1, 256, 56, 56)),
    *convolved((1, 64, 147, 147), (1, 64, 224, 224), (64, 512, 4, 4), (16, 256, 14, 14)),
]


def channels_last(layer: nn.Module) -> Layer:
    """PyTorch's layer in the memory format it is fast in, for a network that is not in it."""
    if is_convolved(layer):
        rest = channels_last(layer[1:])
        return lambda x: rest(layer[0](x))
    return lambda x: layer(x.contiguous(memory_format=torch.channels_last)).contiguous()


def is_convolved(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Sequential) and isinstance(layer[0], gs.SparseConv2d)


def evaluation(layer: Layer, x: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return layer(x)

    return run


def training(layer: Layer, x: Tensor) -> Callable[[], object]:
    """The gradient that comes in is NCHW, as from the next sparse layer."""
    x = x.clone().requires_grad_()
    grad = torch.ones_like(layer(x.detach()), memory_format=torch.contiguous_format)
    return lambda: torch.autograd.grad(layer(x), x, grad)[0].contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1, help="for each call")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_memory()
    policy.LEAST_POOLED = policy.LEAST_TRAINED = policy.LEAST_EVALUATED = 0  # what these limits rest on
    print(header(str(options.threads)), end="\n\n")
    print("| layer, input | pass | NCHW ms | channels-last ms | ours ms |\n| --- | --- | ---: | ---: | ---: |")
    for shape, theirs, ours in CASES:
        x = torch.randn(shape)
        pools = isinstance(theirs, nn.MaxPool2d | nn.AvgPool2d)
        name = " + ".join(type(layer).__name__ for layer in (theirs if isinstance(theirs, nn.Sequential) else [theirs]))
        if pools:
            name += f" {theirs.kernel_size}/{theirs.stride}/{theirs.padding}"
        for measure in (evaluation, training) if pools else (evaluation if is_convolved(theirs) else training,):
            layers = [layer.train(measure is training) for layer in (theirs, ours)]
            calls = [measure(layer, x) for layer in (layers[0], channels_last(layers[0]), layers[1])]
            agree(calls[2], calls[0])
            best = fastest(calls, options.seconds)
            print(
                f"| {name}, {list(shape)} | {measure.__name__} | {' | '.join(f'{s * 1e3:.3g}' for s in best)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
