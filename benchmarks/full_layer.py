"""What a sparse layer costs once it is full: a training step of SparseConv2d at density 1 against nn.Conv2d's.

    python benchmarks/full_layer.py [--batch 128] [--seconds 3]

For the layers of the mnist and cifar networks and for the whole networks, laid out channels-last as the trainer lays them out,
in float32 and under bfloat16 autocast. A step is forward, backward and SGD with momentum, on one thread. The two take turns,
and each figure is the CPU time of the fastest of many, so that a busy machine is unfair to neither.
"""

from __future__ import annotations

import argparse
import copy
import platform
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from gossamer import Connectivity, SparseConv2d, models
from gossamer.kernels import cpu
from gossamer.timing import take_turns

Step = Callable[[], None]


def filled(model: nn.Module) -> nn.Module:
    """A copy whose convolutions are sparse layers with every connection."""
    if isinstance(model, nn.Conv2d):
        full = Connectivity.grouped(model.in_channels, model.out_channels, model.groups)
        return SparseConv2d.from_dense(model, full)
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d):
                setattr(parent, name, filled(child))
    return model


def training_step(model: nn.Module, images: Tensor, amp: bool, grad: bool) -> Step:
    """One step of the model, laid out channels-last; `grad` asks for the gradient of the images too."""
    model = model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    images = images.to(memory_format=torch.channels_last).requires_grad_(grad)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, nesterov=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16) if amp else nullcontext():
            out = model(images)
        optimizer.zero_grad(set_to_none=True)
        images.grad = None
        out.backward(torch.ones_like(out))
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=3.0, help="spent on each pair of figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"# {platform.machine()}, {cpu.info()['isa']}, torch {torch.__version__}, 1 thread")
    print(f"# CPU milliseconds of a step on {options.batch} images")
    print(f"{'layer or network':<24} {'precision':<9} {'nn.Conv2d':>10} {'full':>8} {'ratio':>6}")
    for name, model, shape, grad in cases():
        images = torch.randn(options.batch, *shape)
        for precision in ("float32", "bfloat16"):
            steps = [
                training_step(copy.deepcopy(m), images, precision == "bfloat16", grad) for m in (model, filled(model))
            ]
            dense, full = (1e3 * timing.cpu for timing in take_turns(steps, options.seconds / 2))
            print(f"{name:<24} {precision:<9} {dense:>10.2f} {full:>8.2f} {full / dense:>6.3f}", flush=True)


def cases() -> list[tuple[str, nn.Module, tuple[int, int, int], bool]]:
    """(name, module, shape of its input, whether the input needs a gradient)."""
    return [
        ("mnist 1-32 5x5 at 28", nn.Conv2d(1, 32, 5, padding=2, bias=False), (1, 28, 28), False),
        ("mnist 32-64 5x5 at 14", nn.Conv2d(32, 64, 5, padding=2, bias=False), (32, 14, 14), True),
        ("mnist 64-512 7x7 at 7", nn.Conv2d(64, 512, 7, bias=False), (64, 7, 7), True),
        ("cifar 3-64 5x5 at 32", nn.Conv2d(3, 64, 5, padding=2, bias=False), (3, 32, 32), False),
        ("cifar 64-64 5x5 at 16", nn.Conv2d(64, 64, 5, padding=2, bias=False), (64, 16, 16), True),
        ("mnist network", models.create("mnist"), (1, 28, 28), False),
        ("cifar network", models.create("cifar"), (3, 32, 32), False),
    ]


if __name__ == "__main__":
    main()
