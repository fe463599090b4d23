"""Compiled sparse networks beside the thin networks of equal multiply-adds in the runtimes a user would take instead.

    python benchmarks/engine.py [--only TEXT] [--threads 1] [--batch 1] [--seconds 2] [--json FILE]

Forward passes in float32. Sparse networks have random connections in blocks of outputs that share their inputs, as large as the
density allows; the thin network is the one whose multiply-adds are nearest. The thin and the dense network run in onnxruntime,
OpenVINO, eager PyTorch (its faster memory format) and as programs of our own. All take turns in one process, two runs in a row;
each figure is the fastest run. Each has to agree with PyTorch first.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from networks import export, onnx_call
from timing import Call, fastest, header, keep_memory
from torch import Tensor, nn

import gossamer as gs

try:
    import openvino
except ModuleNotFoundError:
    raise SystemExit("openvino is missing: pip install 'gossamer[peers]'") from None


@dataclass(frozen=True)
class Case:
    """One network at one width and density, and how many times the best thin time the program may take."""

    model: str
    size: int
    width: float
    density: float
    goal: float | None = None

    @property
    def name(self) -> str:
        return f"{self.model} {self.size}, {self.width:g} / {self.density:g}"


CASES = [
    Case("inception_v3", 299, 1, 0.1, 1.05),
    Case("inception_v3", 299, 1, 0.03, 1.3),
    Case("inception_v3", 299, 1, 0.01, 1.5),
    Case("inception_v3", 299, 0.5, 0.01, 1.6),
    Case("vgg16n", 224, 1, 0.1, 1.0),
    Case("vgg16n", 224, 1, 0.03, 1.3),
    Case("vgg16n", 224, 1, 0.01, 1.6),
    Case("torchvision:resnet50", 224, 1, 0.1, 1.1),
    Case("torchvision:resnet50", 224, 1, 0.03, 1.5),
    Case("torchvision:resnet50", 224, 0.5, 0.03, 1.5),
    Case("torchvision:resnet18", 224, 1, 0.1, 1.1),
    Case("torchvision:resnet18", 224, 1, 0.03, 1.4),
    Case("mnist", 28, 1, 0.1),
    Case("cifar", 32, 1, 0.1),
]


def thin_of(model: nn.Module, shape: tuple[int, ...], madds: int) -> nn.Module:
    """The thin network whose multiply-adds are nearest to these."""
    low, high = 0.0, 1.0
    tried: list[tuple[int, nn.Module]] = []
    for _ in range(7):
        middle = (low + high) / 2
        thin = gs.thin(model, middle, shape)
        have = gs.count(thin, shape).madds
        tried.append((abs(have - madds), thin))
        low, high = (middle, high) if have < madds else (low, middle)
    return min(tried, key=lambda pair: pair[0])[1]


@torch.no_grad()
def openvino_call(exported: bytes, image: Tensor, threads: int, expected: Tensor) -> Call:
    """OpenVINO's forward pass in float32; raises AssertionError where its answer is another than PyTorch's."""
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(exported, b""), "CPU", settings).create_infer_request()
    tensor = image.numpy()
    torch.testing.assert_close(
        torch.from_numpy(request.infer([tensor], share_inputs=True)[0]), expected, rtol=1e-3, atol=1e-3
    )
    return lambda: request.infer([tensor], share_inputs=True, share_outputs=True)


def program_call(model: nn.Module, image: Tensor, threads: int, expected: Tensor) -> Call:
    """Our program; raises AssertionError where its answer is another than PyTorch's."""
    program = gs.compile(model, image)
    program.threads = threads
    array = image.numpy()
    assert np.abs(program(array) - expected.numpy()).max() <= 1e-4 * expected.abs().max()
    return lambda: program(array)


def measure(case: Case, threads: int, batch: int, seconds: float) -> dict[str, float]:
    """Milliseconds by variant: "sparse", "sparse eager", and for "thin" and "dense" one for each runtime; multiply-adds."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    model = gs.models.create(case.model, image_size=case.size).eval()
    shape = model.input_shape
    dense = gs.thin(model, case.width, shape).eval() if case.width < 1 else model
    sparse = gs.sparsify(dense, case.density, block="auto").eval()
    madds = gs.count(sparse, shape).madds
    networks: dict[str, nn.Module] = {"thin": thin_of(model, shape, madds).eval(), "dense": model}
    image = torch.randn(batch, *shape)
    calls: dict[str, Call] = {}
    with torch.no_grad():
        calls["sparse"] = program_call(sparse, image, threads, sparse(image))
        calls["sparse eager"] = lambda: sparse(image)
        for name, network in networks.items():
            expected, exported = network(image), export(network, image)
            peers: dict[str, Callable[..., Call]] = {"onnxruntime": onnx_call, "OpenVINO": openvino_call}
            for peer, make in peers.items():
                calls[f"{name} {peer}"] = make(exported, image, threads, expected)
            calls[f"{name} program"] = program_call(network, image, threads, expected)
            last, moved = (
                copy.deepcopy(network).to(memory_format=torch.channels_last),
                image.to(memory_format=torch.channels_last),
            )
            calls[f"{name} eager"] = lambda network=network: network(image)  # type: ignore[misc]
            calls[f"{name} eager channels_last"] = lambda network=last, image=moved: network(image)  # type: ignore[misc]
        best = dict(zip(calls, fastest(list(calls.values()), seconds, in_a_row=2), strict=True))
    figures = {name: 1e3 * s for name, s in best.items()}
    for name, network in networks.items():
        figures[f"{name} eager"] = min(figures[f"{name} eager"], figures.pop(f"{name} eager channels_last"))
        figures[f"{name} madds"] = gs.count(network, shape).madds
    return figures | {"madds": madds}


def line(case: Case, f: dict[str, float]) -> str:
    """One row of the table."""
    thin, dense = (min(f[f"{n} {r}"] for r in ("onnxruntime", "OpenVINO", "eager")) for n in ("thin", "dense"))
    goal = "" if case.goal is None else f" (goal {case.goal:g})"
    cells = [case.name, f"{f['madds'] / 1e6:.0f} / {f['thin madds'] / 1e6:.0f} M"]
    cells += [f"{f[k]:.2f}" for k in ("sparse", "sparse eager")]
    cells += [f"{f[f'thin {r}']:.2f}" for r in ("OpenVINO", "onnxruntime", "eager", "program")]
    cells += [
        f"{f['sparse'] / thin:.2f}{goal}",
        f"{dense:.1f}",
        f"{f['dense program']:.1f}",
        f"{dense / f['sparse']:.1f}x",
    ]
    return "| " + " | ".join(cells) + " |"


COLUMNS = """network, width / density;madds: sparse / thin;program, ms;eager;thin: OpenVINO;onnxruntime;eager;program;
program / best thin;dense, best runtime;dense program;speed-up over dense""".replace("\n", "").split(";")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each variant")
    parser.add_argument("--json", type=Path, help="append a line for each case")
    given = parser.parse_args()
    keep_memory()
    print(header(str(given.threads), f"OpenVINO {openvino.__version__.split('-')[0]}", f"batch {given.batch}"))
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
    for case in (c for c in CASES if given.only in c.name):
        figures = measure(case, given.threads, given.batch, given.seconds)
        print(line(case, figures), flush=True)
        if given.json:
            with given.json.open("a") as file:
                file.write(
                    json.dumps({"case": case.name, "threads": given.threads, "batch": given.batch, **figures}) + "\n"
                )


if __name__ == "__main__":
    main()
