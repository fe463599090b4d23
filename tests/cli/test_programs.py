"""gossamer compile: a file that the runtime loads and that computes what the network does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gossamer import runtime
from gossamer.cli import main
from gossamer.experiments.networks import untrained
from gossamer.training.config import TrainConfig
from gossamer.training.inference import load_trained
from gossamer.training.trainer import train

SMALL = ("--density", "0.1", "--input", "1,28,28")


def test_a_network_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "net.gossamer"
    assert main(["compile", "mnist", *SMALL, "--batch", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"program: {out}, {out.stat().st_size:,} bytes" in printed
    model, shape = untrained(TrainConfig(model="mnist", density=0.1, block="auto"), (1, 28, 28))
    images = torch.randn(2, *shape)
    with torch.no_grad():
        expected = model.eval()(images).numpy()
    np.testing.assert_allclose(runtime.load(out)(images.numpy()), expected, atol=1e-4 * abs(expected).max())


def test_a_trained_network(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "net.gossamer"
    train(
        TrainConfig(model="mnist", data="digits", image_size=8, density=0.2, epochs=1, batch_size=128, threads=1), run
    )
    assert main(["compile", str(run), "--out", str(out)]) == 0
    model, description = load_trained(run)
    image = torch.randn(1, *description.image_shape)
    with torch.no_grad():
        expected = model(image).numpy()
    np.testing.assert_allclose(runtime.load(out)(image.numpy()), expected, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nosuch"], "nosuch"),
        (["mnist", "--batch", "0"], "batch is 0; it must be at least 1"),
        (["{folder}", "--density", "0.1"], "--density and --input are of a MODEL"),
    ],
)
def test_wrong_requests(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [a.replace("{folder}", str(tmp_path)) for a in arguments]
    assert main(["compile", *given, "--out", str(tmp_path / "x")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
