"""The command line as a user meets it: help at once, one sentence for a wrong request, and exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gossamer.cli import main
from gossamer.cli.networks import Info

COMMANDS = (
    *(
        "demo",
        "train",
        "evaluate",
        "predict",
        "sweep",
        "grow",
        "report",
        "paper",
        "count",
        "symmetry",
        "bench",
        "compile",
    ),
    "info",
)


def gossamer(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gossamer", *arguments], capture_output=True, text=True, check=False, **options
    )


def refusal(*arguments: str) -> str:
    """What a refused command says: exactly one line on stderr, exit code 2, and no traceback."""
    ended = gossamer(*arguments)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith("gossamer: ")
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_loads_nothing_heavy(command: str) -> None:
    program = (
        "import sys\nfrom gossamer.cli import main\n"
        "try:\n    main([sys.argv[1], '--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'plotly', 'torchvision'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, command], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert re.search(rf"Examples?:\s+gossamer {command}", ended.stdout)


def test_the_list_of_commands_is_whole() -> None:
    listed = re.search(r"{([\w,]+)}", gossamer("--help").stdout)
    assert listed is not None
    assert sorted(COMMANDS) == sorted(listed[1].split(","))


def test_a_wrong_option_is_named_with_the_nearest_one() -> None:
    line = refusal("train", "mnist", "--out", "x", "--densty", "0.1")
    assert "--densty" in line
    assert "--density" in line


def test_a_missing_option_is_named() -> None:
    assert "--out" in refusal("train", "mnist")


def test_a_wrong_command_is_named() -> None:
    assert "foo" in refusal("foo")


def test_a_wrong_choice_names_the_right_ones() -> None:
    line = refusal("sweep", "mnist", "--out", "x", "--pattern", "striped")
    assert "balanced" in line
    assert "uniform" in line


def test_a_wrong_number_is_named() -> None:
    assert "'0.1,a'" in refusal("sweep", "mnist", "--out", "x", "--densities", "0.1,a")


def test_an_impossible_density_says_what_is_possible() -> None:
    assert "'auto'" in refusal("train", "mnist", "--out", "x", "--block", "3")
    assert "at most 1" in refusal("train", "mnist", "--out", "x", "--density", "3")


def test_a_wrong_model_lists_those_there_are(tmp_path: Path) -> None:
    line = refusal("train", "minst", "--out", str(tmp_path / "run"), "--epochs", "1")
    assert "'minst'" in line
    assert "inception_v3" in line


def test_a_wrong_data_set_lists_those_there_are(tmp_path: Path) -> None:
    line = refusal("train", "mnist", "--data", "dgits", "--out", str(tmp_path / "run"))
    assert "'dgits'" in line
    assert "digits" in line


@pytest.mark.parametrize("command", ["report", "evaluate"])
def test_a_folder_that_is_no_run_is_named(command: str, tmp_path: Path) -> None:
    assert str(tmp_path / "none") in refusal(command, str(tmp_path / "none"))


def test_an_unknown_experiment_lists_those_there_are() -> None:
    line = refusal("paper", "figure9")
    assert "figure2" in line
    assert "table1" in line


@pytest.mark.parametrize("variable", ["GOSSAMER_ISA", "GOSSAMER_PATH"])
def test_a_wrong_environment_variable_is_named(variable: str) -> None:
    ended = gossamer("info", env={**os.environ, variable: "nonsense"})
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"gossamer: {variable}=nonsense is not")
    assert ended.stderr.count("\n") == 1


def test_paper_lists_every_figure_and_table() -> None:
    ended = gossamer("paper")
    assert ended.returncode == 0
    for name in ("figure2", "figure3", "figure4", "figure5", "figure6", "table1"):
        assert re.search(rf"^{name}$", ended.stdout, re.MULTILINE)


def test_count_prints_json_of_the_paper_network() -> None:
    ended = gossamer("count", "mnist", "--json")
    assert ended.returncode == 0, ended.stderr
    cost = json.loads(ended.stdout)
    assert cost["params"] == 1_657_632
    assert sum(layer["params"] for layer in cost["layers"] if not layer["classifier"]) == cost["params"]


def test_count_refuses_a_shape_that_is_none() -> None:
    assert "3,224,224" in refusal("count", "mnist", "--input", "28x28")


def test_train_evaluate_and_predict_one_network(tmp_path: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    run, picture = tmp_path / "run", tmp_path / "digit.png"
    options = ["--density", "0.2", "--block", "auto", "--epochs", "3", "--threads", "1", "--out", str(run)]
    trained = gossamer("train", "mnist", "--data", "digits", *options)
    assert trained.returncode == 0, trained.stderr
    evaluated = gossamer("evaluate", str(run), "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    accuracy = json.loads(evaluated.stdout)["accuracy"]
    assert accuracy == json.loads((run / "result.json").read_text())["accuracy"]
    assert accuracy > 0.8
    assert json.loads((run / "result.json").read_text())["config"]["block"] == "auto"
    digits = load_digits()
    Image.fromarray((digits.images[0] * 255 / 16).astype("uint8")).save(picture)
    predicted = gossamer("predict", str(run), str(picture), "--json")
    assert predicted.returncode == 0, predicted.stderr
    (first,) = json.loads(predicted.stdout)
    assert first["image"] == str(picture)
    assert first["classes"][0][0] == str(digits.target[0])
    assert "already holds a run" in refusal("train", "mnist", "--data", "digits", *options)


def test_ctrl_c_ends_with_130_and_says_what_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "gossamer",
        "train",
        "mnist",
        "--epochs",
        "500",
        "--threads",
        "1",
        "--out",
        str(out),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        limit = time.monotonic() + 60
        while not (out / "checkpoint.pt").exists() and time.monotonic() < limit:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130, complaint
    assert "Traceback" not in complaint
    assert "--resume" in complaint
    assert str(out) in complaint


def test_a_run_that_diverges_ends_with_1_and_one_sentence(tmp_path: Path) -> None:
    ended = gossamer(
        "train", "mnist", "--lr", "1e30", "--epochs", "2", "--threads", "1", "--out", str(tmp_path / "run")
    )
    assert ended.returncode == 1, ended.stderr
    (line,) = ended.stderr.strip().splitlines()
    assert "not a number at step" in line
    assert "learning rate" in line


def test_what_nobody_foresaw_is_one_line_and_the_traceback_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unforeseen = "this should not have happened"
    errors = [
        (RuntimeError("one\ntwo"), 1, f"{unforeseen}: RuntimeError: one two (GOSSAMER_TRACEBACK=1 shows"),
        (RecursionError(), 1, f"{unforeseen}: RecursionError (GOSSAMER_TRACEBACK=1 shows"),
        (MemoryError(), 1, "there is not enough memory for this"),
        (ValueError("first\nsecond"), 2, "first second"),
        (KeyError("x"), 1, "KeyError: 'x'"),
    ]
    for error, code, text in errors:

        def fail(self: Info, error: Exception = error) -> int:
            raise error

        monkeypatch.setattr(Info, "run", fail)
        assert main(["info"]) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("gossamer: ")
        assert text in line
    monkeypatch.setenv("GOSSAMER_TRACEBACK", "1")
    with pytest.raises(KeyError):
        main(["info"])


def test_evaluate_and_predict_run_code_of_a_folder_only_when_told_to(tmp_path: Path) -> None:
    data = {"name": "x", "classes": ["a"], "image_shape": [1, 8, 8], "mean": [0.0], "std": [1.0], "shorter_side": 0}
    (tmp_path / "config.json").write_text(json.dumps({"config": {"model": "evilmod:f"}, "data": data}))
    (tmp_path / "evilmod.py").write_text("print('it ran')")
    for command in (["evaluate", str(tmp_path)], ["predict", str(tmp_path), "x.png"]):
        ended = gossamer(*command, cwd=tmp_path)
        assert ended.returncode == 2
        assert ended.stdout == ""
        assert "'evilmod:f'" in ended.stderr
        assert "--trust" in ended.stderr


def test_a_closed_pipe_is_no_error() -> None:
    program = f"{sys.executable} -m gossamer --help | head -c 1; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False, env={**os.environ})
    assert "Traceback" not in ended.stderr
