"""Programs written by hand: the file of docs/program.md from a few lines."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

DTYPES = {np.dtype(np.float32): "F32", np.dtype(np.int32): "I32"}


def container(program: dict[str, Any] | str, tensors: dict[str, np.ndarray]) -> bytes:
    """A safetensors file with the program in its metadata."""
    text = program if isinstance(program, str) else json.dumps(program)
    header: dict[str, Any] = {"__metadata__": {"gossamer_program": text}}
    data = b""
    for name, tensor in tensors.items():
        raw = np.ascontiguousarray(tensor).tobytes()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + data


class Builder:
    """Collects values, operations and tensors; every value of the arena has a place of its own unless `offset` says where."""

    def __init__(self, batch: int = 4) -> None:
        self.batch = batch
        self.values: list[dict[str, Any]] = []
        self.operations: list[dict[str, Any]] = []
        self.inputs: list[dict[str, Any]] = []
        self.outputs: list[dict[str, Any]] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.arena = 0
        self.structure: Any = None

    def value(
        self, *shape: int, gap: int = 0, rows: int = 0, offset: int | None = None, plane: int | None = None
    ) -> int:
        """A value with `gap` zeros between its rows and `rows` rows of zeros between its planes."""
        channels, height, width = shape
        pitch = width + gap
        if plane is None:
            plane = -(-(height + rows) * pitch // 16) * 16
        head = rows * pitch + gap
        if offset is None:
            offset = -(-(self.arena + head) // 16) * 16
        self.arena = max(self.arena, offset + channels * plane)
        self.values.append({"shape": list(shape), "offset": offset, "pitch": pitch, "plane": plane, "head": head})
        return len(self.values) - 1

    def same_place(self, value: int) -> int:
        self.values.append(dict(self.values[value]))
        return len(self.values) - 1

    def slice(self, of: int, channel: int, channels: int) -> int:
        self.values.append({"shape": [channels, *self.values[of]["shape"][1:]], "of": of, "channel": channel})
        return len(self.values) - 1

    def constant(self, array: np.ndarray) -> int:
        self.values.append({"shape": list(array.shape), "tensor": self.tensor(array)})
        return len(self.values) - 1

    def tensor(self, array: Any) -> str:
        array = np.asarray(array)
        array = array.astype(np.int32 if array.dtype.kind in "iu" else np.float32)
        name = f"t{len(self.tensors)}"
        self.tensors[name] = array
        return name

    def input(self, value: int, shape: tuple[int, ...] | None = None, name: str = "") -> int:
        self.inputs.append(
            {
                "name": name or f"x{len(self.inputs)}",
                "value": value,
                "shape": list(shape or self.values[value]["shape"]),
            }
        )
        return value

    def output(self, value: int, shape: tuple[int, ...] | None = None) -> int:
        self.outputs.append(
            {"name": f"y{len(self.outputs)}", "value": value, "shape": list(shape or self.values[value]["shape"])}
        )
        return value

    def add(
        self, kind: str, inputs: list[int], output: int, tensors: dict[str, Any] | None = None, **attributes: Any
    ) -> int:
        """An operation; arrays in `tensors` become tensors of the file, None is left out."""
        self.operations.append(
            {"kind": kind, "inputs": inputs, "output": output, "name": f"{kind}{len(self.operations)}", **attributes}
        )
        if named := {role: self.tensor(array) for role, array in (tensors or {}).items() if array is not None}:
            self.operations[-1]["tensors"] = named
        return output

    def program(self) -> dict[str, Any]:
        return {
            "format": 1,
            "batch": self.batch,
            "arena": self.arena,
            "values": self.values,
            "operations": self.operations,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "structure": self.structure,
        }

    def file(self) -> bytes:
        return container(self.program(), self.tensors)


def one(
    kind: str,
    shapes: list[tuple[int, int, int]],
    out: tuple[int, int, int],
    tensors: dict[str, Any] | None = None,
    gap: int = 0,
    rows: int = 0,
    out_gap: int = 0,
    out_rows: int = 0,
    batch: int = 4,
    **attributes: Any,
) -> bytes:
    """The file of a program of one operation, whose inputs have this border and whose output has that."""
    builder = Builder(batch)
    inputs = [builder.input(builder.value(*shape, gap=gap, rows=rows)) for shape in shapes]
    builder.output(builder.add(kind, inputs, builder.value(*out, gap=out_gap, rows=out_rows), tensors, **attributes))
    return builder.file()
