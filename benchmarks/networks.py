"""Whole networks: dense PyTorch, onnxruntime, sparse, and thin at equal multiply-adds.

    python benchmarks/networks.py [--only TEXT] [--threads 1,2] [--seconds 2] [--json FILE]

Forward passes of one image at density 0.1, and a training step (forward, loss, backward, SGD with momentum) of VGG-16n on
64 images of 32x32 at density 0.05. PyTorch runs eagerly, each network in both memory formats, of which the faster counts.
onnxruntime runs the dense network as `torch.onnx.export(dynamo=True)` writes it, which folds batch normalisation into the
convolutions, with PyTorch's number of threads; its idle threads sleep (`session.intra_op.allow_spinning` is "0"), or they
would take the other calls' cores. All take turns in one process, two runs in a row, and each figure is the fastest of at
least five runs and as many as fit in the seconds. It has to agree with PyTorch first.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from timing import Call, fastest, header, keep_memory
from torch import Tensor, nn

from gossamer import models
from gossamer.experiments import bench

try:
    import onnxruntime
    import onnxscript  # noqa: F401  (the exporter needs it)
except ModuleNotFoundError as error:
    raise SystemExit(f"{error.name} is missing: pip install 'gossamer[onnx]'") from None


@dataclass(frozen=True)
class Case:
    """One network, and what is timed of it."""

    name: str
    model: str
    size: int
    density: float
    batch: int = 1
    train: bool = False


CASES = [
    Case("VGG-16n forward", "vgg16n", 224, 0.1),
    Case("ResNet-50 forward", "torchvision:resnet50", 224, 0.1),
    Case("Inception V3 forward", "inception_v3", 299, 0.1),
    Case("MNIST forward", "mnist", 28, 0.1),
    Case("VGG-16n step at 32x32", "vgg16n", 32, 0.05, 64, True),
]


def export(model: nn.Module, image: Tensor) -> bytes:
    """The network in evaluation mode as an ONNX model."""
    program = torch.onnx.export(model.eval(), (image,), dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


def onnx_call(exported: bytes, image: Tensor, threads: int, expected: Tensor) -> Call:
    """onnxruntime's forward pass; raises AssertionError where its answer is another than PyTorch's."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: image.numpy()}
    torch.testing.assert_close(torch.from_numpy(session.run(None, feed)[0]), expected, rtol=1e-3, atol=1e-3)
    return lambda: session.run(None, feed)


def measure(case: Case, threads: list[int], seconds: float) -> dict[int, dict[str, float]]:
    """Milliseconds by number of threads and variant: "dense", "onnxruntime" (of a forward pass), "sparse", "thin"."""
    torch.manual_seed(0)
    model = models.create(case.model, image_size=case.size, num_classes=10 if case.train else None)
    shape = model.input_shape
    image = torch.randn(case.batch, *shape)
    with torch.no_grad():
        expected = model.eval()(image)
    exported = None if case.train else export(model, image)
    calls = {
        name.split()[0]: bench.network_calls(network, shape, case.batch, case.train)
        for name, network in bench.variants_of(model, shape, [case.density]).items()
    }
    taken = {}
    for number in threads:
        torch.set_num_threads(number)
        if exported is not None:
            calls["onnxruntime"] = [onnx_call(exported, image, number, expected)]
        named = [(name, call) for name, some in calls.items() for call in some]
        best = fastest([call for _, call in named], seconds, in_a_row=2)
        taken[number] = {
            name: 1e3 * min(t for (other, _), t in zip(named, best, strict=True) if other == name) for name in calls
        }
    return taken


def cell(ms: dict[str, float], name: str) -> str:
    if name not in ms:
        return "-"
    return f"{ms[name]:.3g}" + ("" if name == "dense" else f" ({ms['dense'] / ms[name]:.1f}x)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="networks with TEXT in their names")
    parser.add_argument("--threads", default="1,2", help="numbers of threads, with commas between them")
    parser.add_argument("--seconds", type=float, default=2.0, help="spent on each figure at least")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also append one line for each row to this file")
    options = parser.parse_args()
    cases = [case for case in CASES if options.only in case.name]
    if not cases:
        parser.error(f"no network has {options.only!r} in its name: {', '.join(case.name for case in CASES)}")
    keep_memory()
    first = header(options.threads, f"onnxruntime {onnxruntime.__version__}")
    print(first, "ms (times faster than dense)", "", sep="\n")
    print("| network | batch | d | threads | dense | onnxruntime, dense | sparse | thin, equal madds |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for case in cases:
        taken = measure(case, [int(n) for n in options.threads.split(",")], options.seconds)
        for threads, ms in taken.items():
            cells = [cell(ms, name) for name in ("dense", "onnxruntime", "sparse", "thin")]
            row = [case.name, str(case.batch), f"{case.density:g}", str(threads), *cells]
            print(f"| {' | '.join(row)} |", flush=True)
            if options.json:
                with options.json.open("a") as file:
                    line = {"network": case.name, "batch": case.batch, "density": case.density, "threads": threads}
                    file.write(json.dumps(line | {"ms": ms, "on": first}) + "\n")


if __name__ == "__main__":
    main()
