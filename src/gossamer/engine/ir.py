"""What a program computes, as a graph: values that are planes of one image, operations that make each value once.

The kinds of operations and their attributes are those of `docs/program.md`, and one more, `slice` (channels `first` onwards
of its input), which costs nothing in a program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np


class Shape(NamedTuple):
    """Channels, rows and columns of one image's planes. A vector of k numbers is k channels of one pixel."""

    c: int
    h: int
    w: int

    def __str__(self) -> str:
        return f"{self.c}x{self.h}x{self.w}"

    @property
    def size(self) -> int:
        return self.c * self.h * self.w


@dataclass(frozen=True, eq=False)
class Value:
    """The planes one operation makes, float32, for each image of a batch."""

    name: str
    shape: Shape

    def __str__(self) -> str:
        return f"{self.name}[{self.shape}]"


@dataclass(frozen=True)
class Activation:
    """A function of one number with its parameters: Activation("clamp", (("min", 0.0), ("max", 6.0)))."""

    function: str
    parameters: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        given = ", ".join(f"{name} {value:g}" for name, value in self.parameters)
        return f"{self.function}({given})" if given else self.function


@dataclass(frozen=True, eq=False)
class Operation:
    """One step: `output` from `inputs`, with plain `attributes` and `tensors` (weights). `layer` is the module it came from.

    An `activation`, where there is one, is applied to what the operation itself computes.
    """

    kind: str
    inputs: tuple[Value, ...]
    output: Value
    attributes: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)
    activation: Activation | None = None
    layer: str = ""

    def __str__(self) -> str:
        given = [v.name for v in self.inputs]
        given += [f"{k} {v}" for k, v in self.attributes.items()]
        given += [f"{k} {'x'.join(map(str, v.shape))}" for k, v in self.tensors.items()]
        after = f", {self.activation}" if self.activation else ""
        where = f"  # {self.layer}" if self.layer else ""
        return f"{self.output} = {self.kind}({', '.join(given)}){after}{where}"

    def but(self, attributes: Mapping[str, Any] | None = None, **fields: Any) -> Operation:
        """The same but for these fields; `attributes` come beside those there are."""
        return replace(self, attributes={**self.attributes, **(attributes or {})}, **fields)


@dataclass(frozen=True)
class Port:
    """A value that the caller gives or gets, and the shape of its tensor without the batch."""

    name: str
    value: Value
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """Operations in an order that makes every value before it is read. Nothing in a graph mixes the images of a batch.

    `constants` are values that nobody makes. `structure` says how the outputs become what the model returned.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    operations: tuple[Operation, ...]
    constants: Mapping[Value, np.ndarray] = field(default_factory=dict)
    structure: Any = None

    def __str__(self) -> str:
        given, returned = (", ".join(f"{p.name}: {p.value}" for p in side) for side in (self.inputs, self.outputs))
        return "\n".join([f"given {given}", *map(str, self.operations), f"returned {returned}"])

    def readers(self) -> dict[Value, int]:
        """How often each value is read; the caller reads each output."""
        count = dict.fromkeys((*(p.value for p in self.inputs), *self.constants), 0)
        count.update(dict.fromkeys((o.output for o in self.operations), 0))
        for value in (*(v for o in self.operations for v in o.inputs), *(p.value for p in self.outputs)):
            count[value] += 1
        return count

    def makers(self) -> dict[Value, Operation]:
        """The operation that makes each value that is neither given nor constant."""
        return {operation.output: operation for operation in self.operations}

    def rewritten(self, operations: Iterable[Operation], renamed: Mapping[Value, Value] | None = None) -> Graph:
        """The graph with other operations, in which the values that `renamed` names are read as others."""
        renamed = renamed or {}

        def now(value: Value) -> Value:
            while value in renamed:
                value = renamed[value]
            return value

        steps = tuple(replace(o, inputs=tuple(map(now, o.inputs))) for o in operations)
        return replace(self, operations=steps, outputs=tuple(replace(p, value=now(p.value)) for p in self.outputs))


Pass = Callable[[Graph], Graph]


def madds(operation: Operation) -> int:
    """Multiply-adds of an operation on one image; 0 of those that are no product with a kernel or matrix."""
    if operation.kind == "conv":
        return operation.tensors["weight"].size * operation.output.shape.h * operation.output.shape.w
    if operation.kind == "linear":
        weight = operation.tensors["weight"]
        return weight.size * operation.output.shape.size // weight.shape[0]
    if operation.kind == "matmul":
        inner = operation.inputs[0].shape.h if operation.attributes.get("transpose_a") else operation.inputs[0].shape.w
        return operation.output.shape.size * inner
    return 0
