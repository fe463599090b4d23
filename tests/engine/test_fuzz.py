"""No file, however damaged, does more than raise one sentence: each is refused, or it is a program and runs."""

from __future__ import annotations

import numpy as np
import pytest

from engine.mutations import damaged, valid_files
from engine.programs import Builder, container, one
from gossamer.runtime import Program

COPY = {"kind": "copy", "name": "", "sizes": [108], "strides": [1], "start": 0}


def run(file: bytes) -> bool:
    """Whether it is a program."""
    try:
        program = Program(file, threads=2, memory_limit=1 << 26)
    except ValueError as error:
        sentence = str(error)
    else:
        program(*(np.ones((1, *port.shape), np.float32) for port in program.inputs))
        return True
    assert "\n" not in sentence
    assert len(sentence) < 600
    return False


def test_the_undamaged_files_run() -> None:
    assert all(run(file) for file in valid_files())


def test_damaged_files() -> None:
    ran = sum(run(file) for file in damaged(0, 1500))
    assert 50 < ran < 1200  # else the changes are too harmless or too coarse to find anything


@pytest.mark.parametrize(("change", "sentence"), [
    (lambda p: p.update(format=2), "format is 2"),
    (lambda p: p.update(batch=0), "'batch' = 0"),
    (lambda p: p.update(arena=2**30), "more than the limit"),
    (lambda p: p.update(extra=1), "unknown key 'extra'"),
    (lambda p: p["values"][1].update(offset=p["values"][1]["offset"] + 1), "multiple of 16"),
    (lambda p: p["values"][1].update(plane=32), "too small for its rows"),
    (lambda p: p["values"][1].update(pitch=2), "'pitch' = 2"),
    (lambda p: p["values"][1].update(offset=2**20), "does not lie in the arena"),
    (lambda p: p["values"][1].update(offset=p["values"][0]["offset"]), "live at the same time"),
    (lambda p: p["operations"].reverse(), "before it is written"),
    (lambda p: p["operations"].append(p["operations"][0]), "a second time"),
    (lambda p: p["operations"].append({**COPY, "inputs": [1], "output": 0}), "writes an input"),
    (lambda p: p["operations"][0].update(kind="eval"), "unknown kind 'eval'"),
    (lambda p: p["operations"][0].update(stride=[2, 1]), "another size"),
    (lambda p: p["operations"][0].update(inputs=[0, 99]), "'inputs' = 99"),
    (lambda p: p["operations"][0]["tensors"].update(weight="nothing"), "'nothing' that the file lacks"),
    (lambda p: p["operations"][0]["tensors"].pop("indptr"), "lacks its tensor 'indptr'"),
    (lambda p: p["outputs"].clear(), "has no output"),
    (lambda p: p.update(structure={"output": 7}), "structure"),
])  # fmt: skip
def test_the_sentence_names_what_is_wrong(change: object, sentence: str) -> None:
    builder = Builder()
    x = builder.input(builder.value(3, 6, 6, gap=1, rows=1))
    tensors = {"weight": np.ones((8, 3, 3)), "indptr": np.array([0, 2]), "indices": np.array([0, 2])}
    window = {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1, 1, 1], "dilation": [1, 1]}
    y = builder.add("conv", [x], builder.value(4, 6, 6), tensors, block=4, **window)
    builder.output(builder.add("affine", [y], builder.value(4, 6, 6)))
    program = builder.program()
    Program(container(program, builder.tensors))
    change(program)  # type: ignore[operator]
    with pytest.raises(ValueError, match=sentence):
        Program(container(program, builder.tensors), memory_limit=1 << 26)


def test_memory_that_a_file_merely_claims() -> None:
    """A convolution whose padded copy would take gigabytes, and a kernel of a billion taps without weights."""
    window = {"stride": [1, 1], "dilation": [1, 1]}
    far = {"kernel": [2, 2], "stride": [1, 1], "padding": [0, 0, 20000, 20000], "dilation": [20000, 20000]}
    with pytest.raises(ValueError, match="more memory than the limit"):
        Program(one("conv", [(1, 1, 1)], (1, 1, 1), {"weight": np.ones((1, 1, 2, 2))}, **far), memory_limit=1 << 26)
    none = {"weight": np.ones((0, 1, 1)), "indptr": np.zeros(2, int), "indices": np.zeros(0, int)}
    with pytest.raises(ValueError, match="kernel that is too large"):
        Program(
            one(
                "conv",
                [(1, 1, 1)],
                (1, 1, 1),
                none,
                kernel=[32768, 32768],
                padding=[16384, 16384, 16383, 16383],
                block=1,
                **window,
            )
        )
    for text in (
        "[" * 100000,
        '{"a": ' * 100000,
        "[" + "0," * 2000000 + "0]",
        '{"format": 1e999}',
        "nul",
        '{"a": 1, "a": 1}',
    ):
        with pytest.raises(ValueError, match=r"is not JSON|lacks|is not an object"):
            Program(container(text, {}))
