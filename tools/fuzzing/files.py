"""Damaged and dishonest files of every kind that the package reads."""

from __future__ import annotations

import io
import json
import logging
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import gossamer as gs
from fuzzing import mutate
from gossamer import storage
from gossamer.data import pictures, sources
from gossamer.experiments import grow, results, sweep
from gossamer.report import job
from gossamer.training import build, checkpoint
from gossamer.training.config import TrainConfig
from gossamer.training.distributed import Team
from gossamer.training.inference import load_trained
from gossamer.training.run import Training
from gossamer.training.run_folder import RunFolder
from gossamer.training.trainer import train

Once = Callable[[], str]


def refusal(error: Exception, path: Path | None = None) -> str:
    """ "refused", for an error that is one sentence and names the file."""
    text = str(error)
    assert text.strip(), "an error without a word"
    assert "\n" not in text, f"not one sentence: {text!r:.3000}"
    assert path is None or str(path) in text, f"{path} is not named: {text!r}"
    return "refused"


# -- saved models ------------------------------------------------------------------------------------------------------


def network() -> nn.Module:
    """Dense, grouped and normalised layers, and a classifier."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, groups=2),
        nn.Conv2d(12, 10, 1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 5),
    )


def model(rng: random.Random, folder: Path, network: Callable[[], nn.Module] = network) -> Once:
    """Saved models: bytes, header, sizes, patterns; half of those that lie carry the digest of their lie."""
    path = folder / "model.safetensors"
    saved = gs.sparsify(network(), 0.4, seed=3)
    gs.save(saved, path)
    whole = path.read_bytes()
    state = _copied(saved)
    fresh = [network()]
    before = [_copied(fresh[0])]

    def once() -> str:
        honest = rng.random() < 0.5
        path.write_bytes(mutate.of_bytes(rng, whole) if honest else _lying(rng, whole))
        try:
            loaded = gs.load(fresh[0], path)
        except (ValueError, OSError) as error:
            assert _same(before[0], _copied(fresh[0])), "a load that failed changed the model"
            return refusal(error, path)
        assert not honest or _same(state, _copied(loaded)), "a changed file was taken for the model"
        loaded.eval()(torch.zeros(1, 3, 8, 8))
        fresh[0] = network()
        before[0] = _copied(fresh[0])
        return "accepted"

    return once


def _lying(rng: random.Random, whole: bytes) -> bytes:
    """A file whose header or metadata says something else, in the right form."""
    (length,) = struct.unpack("<Q", whole[:8])
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    ours = json.loads(header["__metadata__"]["gossamer"])
    if rng.random() < 0.3:
        header = mutate.of_json(rng, header)
    else:
        ours = mutate.of_json(rng, ours)
        if isinstance(ours, dict) and rng.random() < 0.7:
            ours.pop("digest", None)
            tensors = {
                name: torch.frombuffer(
                    bytearray(data[slice(*part["data_offsets"])]) or bytearray(1), dtype=_TYPES[part["dtype"]]
                ).reshape(part["shape"])
                for name, part in header.items()
                if name != "__metadata__" and part["data_offsets"][0] < part["data_offsets"][1]
            }
            try:
                ours["digest"] = storage.digest(json.dumps(ours, separators=(",", ":"), sort_keys=True), tensors)
            except (TypeError, UnicodeEncodeError):  # keys of several types, half a character
                ours["digest"] = "0"
        header["__metadata__"]["gossamer"] = mutate.dumped(ours).decode()
    text = mutate.dumped(header)
    return struct.pack("<Q", len(text)) + text + data


_TYPES = {"F32": torch.float32, "U8": torch.uint8, "U16": torch.uint16, "I64": torch.int64, "I32": torch.int32}


def _copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(v, second[k]) for k, v in first.items())


# -- runs --------------------------------------------------------------------------------------------------------------

CONFIG = TrainConfig(model="mnist", density=0.3, width=0.25, epochs=2, batch_size=256, threads=1, lr=0.01)


def saved_state(rng: random.Random, folder: Path) -> Once:
    """Checkpoints: bytes, and states that never were, under their right digest."""
    run = Training(
        CONFIG, build.load_data(CONFIG), Team(build.data.split.WHOLE, torch.device("cpu")), RunFolder(folder)
    )
    images, labels = next(iter(run.dataset.train.training_batches(run.batch_size, 0)))
    run.train_step(images, labels)
    path = run.folder.checkpoint
    checkpoint.save(path, run.state())
    whole, state = path.read_bytes(), checkpoint.load(path)

    def once() -> str:
        honest = rng.random() < 0.5
        if honest:
            path.write_bytes(mutate.of_bytes(rng, whole))
        else:
            try:
                checkpoint.save(path, _other_state(rng, state))
            except (ValueError, TypeError, UnicodeEncodeError):
                return "refused"
        try:
            run.resume()
        except (ValueError, OSError) as error:
            return refusal(error, path)
        if run.step < run.total_steps:
            run.train_step(images, labels)
        return "accepted"

    return once


def _other_state(rng: random.Random, state: dict[str, Any]) -> dict[str, Any]:
    """One or two values of a nesting replaced, tensors by other tensors."""
    changed = _changed(rng, state)
    return changed if isinstance(changed, dict) else {"state": changed}


def _changed(rng: random.Random, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        other = rng.randrange(5)
        if other == 0:
            return value[None]
        if other == 1 and value.dim():
            return value[:-1].clone()
        if other == 2:
            return value.double() if value.dtype != torch.float64 else value.int()
        if other == 3 and value.numel() and not value.is_floating_point():
            return value + rng.choice((1, -1, 1000, 2**30))
        return rng.choice(mutate.ODD)
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        rest = {k: v for k, v in value.items() if k != key}
        return rest if rng.random() < 0.1 else {**rest, key: _changed(rng, value[key])}
    if isinstance(value, list) and value:
        at = rng.randrange(len(value))
        return [*value[:at], _changed(rng, value[at]), *value[at + 1 :]]
    return rng.choice(mutate.ODD)


def run_folder(rng: random.Random, folder: Path) -> Once:
    """What a folder says in JSON: its configuration, result, plan and curve."""
    train(CONFIG, folder / "run", progress=False)
    run = RunFolder(folder / "run")
    plan, curve = folder / sweep.PLAN, folder / grow.CURVE
    plan.write_text(json.dumps({"settings": CONFIG.to_dict(), "paper": "figure2"}))
    point = {"step": 1, "seconds": 1.5, "cpu_seconds": 1.5, "density": 0.1, "accuracy": 0.5, "loss": 1.0}
    curve.write_text(json.dumps(point))
    readers: dict[Path, Callable[[], object]] = {
        run.config: lambda: load_trained(run.path),
        run.result: run.read_result,
        plan: lambda: sweep.settings_of(folder),
        curve: lambda: grow.Curve(curve, 1, 1).read(),
    }
    contents = {path: path.read_bytes() for path in readers}
    logging.getLogger("gossamer").setLevel(logging.ERROR)

    def once() -> str:
        path = rng.choice(list(readers))
        whole = contents[path]
        wrong = mutate.of_bytes(rng, whole)
        path.write_bytes(wrong if rng.random() < 0.3 else mutate.dumped(mutate.of_json(rng, json.loads(whole))))
        try:
            readers[path]()
        except (ValueError, OSError) as error:
            return refusal(error)
        finally:
            path.write_bytes(whole)
        return "accepted"

    return once


def result_lines(rng: random.Random, folder: Path, *, report: bool = True) -> Once:
    """results.jsonl of a sweep and of growth; the report is written from what is left of it."""
    row = {"run": "sparse-0.1-r0", "status": "done", "method": "sparse", "alpha": 0.1, "width": 1.0, "density": 0.1}
    row |= {"round": 0, "accuracy": 0.9, "params": 1000, "madds": 5000, "bytes": 4000, "ms_image": 1.5, "ms_batch": 30}
    row |= {"train_images_per_s": 100, "peak_memory": 10**9, "train_seconds": 3.5, "skipped": 0, "version": "0.1.0"}
    row |= {"config": CONFIG.to_dict(), "machine": {"cores": 2, "torch": "2"}}
    row["history"] = [{"epoch": 1, "loss": 0.5, "test_accuracy": 0.9, "step": 5}]
    point = {"step": 1, "seconds": 1.5, "cpu_seconds": 1.5, "density": 0.1, "accuracy": 0.5, "loss": 1.0}
    dense = {**row, "run": "dense-r0", "method": "dense", "alpha": 1.0, "density": 1.0}
    thin = {**row, "run": "thin-0.3-r0", "method": "thin", "width": 0.3, "density": 1.0}
    curve = {"curve": [point, {**point, "step": 9, "density": 1.0}]}
    files = [[row, dense, thin], [{**row, **curve, "method": "from-0.1-every-5"}, {**dense, **curve}]]
    path = folder / results.FILE
    logging.getLogger("gossamer").setLevel(logging.ERROR)

    def once() -> str:
        rows = rng.choice(files)
        at = rng.randrange(len(rows))
        lines = [mutate.dumped(r if i != at else mutate.of_json(rng, r)) for i, r in enumerate(rows)]
        content = b"\n".join(lines)
        path.write_bytes(mutate.of_bytes(rng, content) if rng.random() < 0.2 else content)
        try:
            if report:
                job.show(folder)
            else:
                results.summarise(results.finished(folder))
        except (ValueError, OSError) as error:
            return refusal(error)
        finally:
            shutil.rmtree(folder / "figures", ignore_errors=True)
        return "accepted"

    return once


# -- data --------------------------------------------------------------------------------------------------------------


def picture(rng: random.Random, folder: Path) -> Once:
    """Image files of every format that a folder of images may hold."""
    from PIL import Image

    pixels = np.arange(40 * 30 * 3, dtype=np.uint32).reshape(40, 30, 3)
    colour, grey = Image.fromarray((pixels % 251).astype(np.uint8)), Image.fromarray(pixels[..., 0].astype(np.uint16))
    wholes = []
    for image, kinds in (
        (colour, ("PNG", "JPEG", "TIFF", "WEBP", "PPM", "BMP", "GIF")),
        (grey, ("PNG", "TIFF", "PPM")),
    ):
        for kind in kinds:
            content = io.BytesIO()
            image.save(content, format=kind)
            wholes.append(content.getvalue())
    path = folder / "picture.png"

    def once() -> str:
        path.write_bytes(mutate.of_bytes(rng, rng.choice(wholes)))
        channels = rng.choice((1, 3))
        try:
            found = pictures.read_picture(path, (channels, 8, 8), 10)
        except pictures.UNREADABLE as error:
            return refusal(error)
        assert found.shape == (channels, 8, 8)
        return "accepted"

    return once


def arrays(rng: random.Random, folder: Path) -> Once:
    """.npz files: bytes of the archive, and members that claim what they do not hold."""
    images, labels = np.arange(6 * 64, dtype=np.uint8).reshape(6, 8, 8), np.array([0, 1, 2, 0, 1, 2])
    parts = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    path = folder / "set.npz"
    wholes = []
    for write in (np.savez, np.savez_compressed):
        write(path, **parts)
        wholes.append(path.read_bytes())

    def once() -> str:
        if rng.random() < 0.5:
            path.write_bytes(mutate.of_bytes(rng, rng.choice(wholes)))
        else:
            _write_archive(rng, path, parts)
        try:
            found = sources.npz(path)
        except (ValueError, OSError) as error:
            return refusal(error, path)
        assert (found[0].dtype, len(found[0])) == (np.uint8, len(found[1]))
        return "accepted"

    return once


def _write_archive(rng: random.Random, path: Path, parts: dict[str, np.ndarray]) -> None:
    """A sound archive in which the bytes of one member are changed."""
    import zipfile

    wrong = rng.choice(list(parts))
    with zipfile.ZipFile(path, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, array in parts.items():
            content = io.BytesIO()
            np.save(content, array)
            member = content.getvalue()
            if name == wrong and rng.random() < 0.5:
                member = member.replace(
                    b"(6", rng.choice((b"(10000000000000", b"(-6", b"(" * 500 + b"6", b"(6.0", b"(True"))
                )
            elif name == wrong:
                member = mutate.of_bytes(rng, member)
            archive.writestr(f"{name}.npy", member)


KINDS: dict[str, Callable[[random.Random, Path], Once]] = {
    "model": model,
    "checkpoint": saved_state,
    "run folder": run_folder,
    "result lines": result_lines,
    "picture": picture,
    "npz": arrays,
}
"""Kinds of files: name -> what prepares one and returns what hands it in."""
