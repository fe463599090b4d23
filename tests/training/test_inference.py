"""What a finished run gives: its accuracy again, and the classes of pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gossamer import data
from gossamer.training.config import TrainConfig
from gossamer.training.inference import evaluate, predict
from gossamer.training.run_folder import Result
from gossamer.training.trainer import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A thinned and sparsified network that has seen the digits for a while, and its result."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = TrainConfig(epochs=4, batch_size=128, width=0.5, density=0.5, threads=1)
    return folder, train(config, folder, progress=False)


def test_evaluate_finds_the_accuracy_of_training(run: tuple[Path, Result]) -> None:
    folder, result = run
    found = evaluate(folder)
    assert found["accuracy"] == result.accuracy
    assert found["loss"] == pytest.approx(result.history[-1]["test_loss"])
    assert found["images"] == 360
    json.dumps(found)


def test_predict_agrees_with_the_accuracy(run: tuple[Path, Result], tmp_path: Path) -> None:
    """Every test image written as a PNG file: as many predictions are right as the result says."""
    folder, result = run
    images, labels = next(iter(data.load("digits").test.test_batches(360)))
    paths = [tmp_path / f"{i}.png" for i in range(360)]
    for path, image in zip(paths, images.numpy(), strict=True):
        Image.fromarray(image[0]).save(path)
    predictions = predict(folder, paths, top=3)
    right = [p.classes[0][0] == str(label) for p, label in zip(predictions, labels.tolist(), strict=True)]
    assert np.mean(right) == pytest.approx(result.accuracy, abs=1 / 360)
    for prediction in predictions:
        shares = [share for _, share in prediction.classes]
        assert len(shares) == 3
        assert shares == sorted(shares, reverse=True)
        assert 0 < sum(shares) <= 1 + 1e-6


def test_predict_takes_pictures_of_any_size_and_colour(run: tuple[Path, Result], tmp_path: Path) -> None:
    Image.fromarray(np.full((90, 160, 3), 200, np.uint8)).save(tmp_path / "wide.jpg")
    (prediction,) = predict(run[0], [tmp_path / "wide.jpg"])
    assert prediction.image == str(tmp_path / "wide.jpg")
    assert len(prediction.classes) == 5


def test_what_cannot_be_predicted_is_named(run: tuple[Path, Result], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no picture .*none\.png"):
        predict(run[0], [tmp_path / "none.png"])
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png cannot be read as a picture"):
        predict(run[0], [tmp_path / "text.png"])


def test_folders_without_a_trained_model(tmp_path: Path, config: TrainConfig, run: tuple[Path, Result]) -> None:
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        evaluate(tmp_path)
    (tmp_path / "config.json").write_text((run[0] / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match="holds no trained model yet"):
        evaluate(tmp_path)
    (tmp_path / "config.json").write_text('{"config": {"depth": 3}, "data": {}}')
    with pytest.raises(ValueError, match=r"config\.json is damaged or from another version: .*depth"):
        predict(tmp_path, [])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        predict(tmp_path, [])


def test_a_data_set_that_changed_is_noticed(tmp_path: Path, config: TrainConfig) -> None:
    def write(classes: int) -> None:
        images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
        labels = np.arange(20) % classes
        np.savez(tmp_path / "set.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)

    write(4)
    train(replace(config, data=str(tmp_path / "set.npz"), epochs=1), tmp_path / "run", progress=False)
    write(5)
    with pytest.raises(ValueError, match="has other classes or images now"):
        evaluate(tmp_path / "run", trust=True)
