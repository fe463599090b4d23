"""`docs/program.md` in Python: runs what was emitted in an arena full of NaN, and looks at every border it is promised."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import interpreter
import numpy as np
import torch
from torch import Tensor

from gossamer.engine.ir import Activation, Operation, Shape, Value

Program = dict[str, Any]


def run(program: Program, tensors: Mapping[str, np.ndarray], *inputs: Tensor) -> list[Tensor]:
    """The outputs for one image each, without the batch."""
    machine = _Machine(program, tensors)
    for port, x in zip(program["inputs"], inputs, strict=True):
        assert list(x.shape) == port["shape"]
        machine.write(port["value"], x.reshape(machine.shape(port["value"])))
    for operation in program["operations"]:
        given = [machine.read(v) for v in operation["inputs"]]
        machine.write(operation["output"], interpreter.step(*machine.step(operation, given)))
    return [machine.read(p["value"]).reshape(p["shape"]) for p in program["outputs"]]


class _Machine:
    def __init__(self, program: Program, tensors: Mapping[str, np.ndarray]) -> None:
        self.values, self.tensors = program["values"], tensors
        self.arena = torch.full((program["arena"],), torch.nan)
        self.constants = {v["tensor"] for v in self.values if "tensor" in v} | {p["value"] for p in program["inputs"]}

    def shape(self, number: int) -> list[int]:
        return self.values[number]["shape"]

    def _place(self, number: int) -> tuple[Tensor, Tensor]:
        """A value's planes with all their gaps [c, plane], and the zeros before them."""
        value, first, (c, h, w) = self.values[number], 0, self.shape(number)
        if "of" in value:
            assert value["of"] < number
            first, value = value["channel"], self.values[value["of"]]
            assert value["shape"][1:] == [h, w]
            assert first + c <= value["shape"][0]
        offset, pitch, plane, head = (value[k] for k in ("offset", "pitch", "plane", "head"))
        assert offset % 16 == 0
        assert offset >= head
        assert pitch >= w
        assert plane >= h * pitch
        assert plane % 16 == 0 or (h == w == plane == 1)
        assert offset + value["shape"][0] * plane <= len(self.arena)
        planes = self.arena[offset : offset + value["shape"][0] * plane].view(-1, plane)[first : first + c]
        return planes, self.arena[offset - head : offset] if first == 0 else self.arena[:0]

    def _inside(self, number: int, planes: Tensor) -> Tensor:
        value = self.values[number]
        pitch = (self.values[value["of"]] if "of" in value else value)["pitch"]
        c, h, w = self.shape(number)
        return planes[:, : h * pitch].view(c, h, pitch)[:, :, :w]

    def read(self, number: int) -> Tensor:
        if "tensor" in self.values[number]:
            return torch.from_numpy(self.tensors[self.values[number]["tensor"]]).reshape(self.shape(number))
        planes, head = self._place(number)
        inside = self._inside(number, planes).clone()
        border = planes.clone()
        self._inside(number, border).zero_()
        assert not border.any()  # NaN is true
        assert not head.any()
        return inside

    def write(self, number: int, x: Tensor) -> None:
        planes, head = self._place(number)
        planes.zero_()
        head.zero_()
        self._inside(number, planes).copy_(x)

    def step(self, written: Mapping[str, Any], given: list[Tensor]) -> tuple[Operation, dict[Value, Tensor]]:
        """The operation that a program's entry stands for, and the values it reads."""
        attributes = dict(written)
        names = attributes.pop("tensors", {})
        tensors = {role: self.tensors[name] for role, name in names.items()}
        activation = attributes.pop("activation", None)
        if activation is not None:
            parameters = {k: v for k, v in activation.items() if k != "function"}
            activation = Activation(activation["function"], tuple(parameters.items()))
        for key in ("inputs", "output", "name"):
            attributes.pop(key)
        if "indptr" in tensors:
            tensors |= _by_output(attributes.pop("block"), tensors["indptr"], tensors["indices"])
        inputs = tuple(Value(str(i), Shape(*x.shape)) for i, x in enumerate(given))
        output = Value("output", Shape(*self.shape(written["output"])))
        operation = Operation(attributes.pop("kind"), inputs, output, attributes, tensors, activation)
        return operation, dict(zip(inputs, given, strict=True))


def _by_output(block: int, indptr: np.ndarray, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Rows for each output, from those for each block."""
    rows = [indices[a:b] for a, b in pairwise(indptr) for _ in range(block)]
    counts = np.cumsum([0, *(len(r) for r in rows)])
    return {"indptr": counts.astype(np.int32), "indices": np.concatenate(rows).astype(np.int32)}
