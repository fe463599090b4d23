"""A graph in memory, written as `docs/program.md` says: plain dictionaries and tensors, for whoever writes the file."""

from __future__ import annotations

from typing import Any

import numpy as np

from gossamer.engine.ir import Activation, Operation, Value
from gossamer.engine.memory import Layout

FORMAT = 1
_CONV = ("kernel", "stride", "padding", "dilation")


def emit(layout: Layout, batch: int = 1) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(program, tensors): the JSON of a program for batches up to `batch`, and the arrays it names."""
    graph = layout.graph
    tensors: dict[str, np.ndarray] = {}
    made = [*(p.value for p in graph.inputs), *(o.output for o in graph.operations)]
    roots = [*layout.frames, *graph.constants]
    order = [*roots, *(v for v in made if v in layout.parts)]
    # slices that nobody makes are read only, and come last
    read = (v for o in graph.operations for v in o.inputs)
    returned = (p.value for p in graph.outputs)
    order = list(dict.fromkeys([*order, *read, *returned]))
    number = {v: i for i, v in enumerate(order)}
    for value, array in graph.constants.items():
        tensors[value.name] = array
    program = {
        "format": FORMAT,
        "batch": batch,
        "arena": layout.arena,
        "values": [_value(layout, v, number) for v in order],
        "operations": [_operation(o, i, number, tensors) for i, o in enumerate(graph.operations)],
        "inputs": [{"name": p.name, "value": number[p.value], "shape": list(p.shape) or [1]} for p in graph.inputs],
        "outputs": [{"name": p.name, "value": number[p.value], "shape": list(p.shape) or [1]} for p in graph.outputs],
        "structure": graph.structure,
    }
    return program, tensors


def _value(layout: Layout, value: Value, number: dict[Value, int]) -> dict[str, Any]:
    shape = list(value.shape)
    if value in layout.graph.constants:
        return {"shape": shape, "tensor": value.name}
    if value in layout.parts:
        part = layout.parts[value]
        return {"shape": shape, "of": number[part.of], "channel": part.first}
    frame = layout.frames[value]
    return {
        "shape": shape,
        "offset": layout.places[value],
        "pitch": frame.pitch,
        "plane": frame.plane,
        "head": frame.head,
    }


def _operation(o: Operation, at: int, number: dict[Value, int], tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    attributes, arrays = dict(o.attributes), dict(o.tensors)
    if o.kind == "conv":
        attributes, arrays = _conv(o)
    written: dict[str, Any] = {"kind": o.kind, "inputs": [number[v] for v in o.inputs], "output": number[o.output]}
    written |= {"name": o.layer or o.kind, **attributes}
    if o.activation is not None:
        written["activation"] = _activation(o.activation)
    if arrays:
        written["tensors"] = {role: f"{at}.{role}" for role in arrays}
        tensors.update({f"{at}.{role}": np.ascontiguousarray(array) for role, array in arrays.items()})
    return written


def _activation(activation: Activation) -> dict[str, Any]:
    return {"function": activation.function, **dict(activation.parameters)}


def _conv(o: Operation) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Attributes and tensors of a convolution: dense with every connection, else in blocks as large as the rows allow."""
    attributes, arrays = dict(o.attributes), dict(o.tensors)
    if "indices" not in arrays:
        return attributes, arrays
    outputs, inputs = o.output.shape.c, o.inputs[0].shape.c
    indptr, indices, weight = (arrays.pop(k) for k in ("indptr", "indices", "weight"))
    if len(indices) == outputs * inputs:
        return {**attributes, "groups": 1}, {"weight": weight.reshape(outputs, inputs, *weight.shape[1:]), **arrays}
    block = block_of(indptr, indices)
    firsts = [indices[indptr[o] : indptr[o + 1]] for o in range(0, outputs, block)]
    rows = np.concatenate([[0], np.cumsum([len(row) for row in firsts])]).astype(np.int32)
    shared = np.concatenate(firsts) if firsts else indices
    return {**attributes, "block": block}, {
        "weight": weight,
        "indptr": rows,
        "indices": shared.astype(np.int32),
        **arrays,
    }


def block_of(indptr: np.ndarray, indices: np.ndarray) -> int:
    """The most consecutive outputs, of 4, 2 and 1, that all listen to the same inputs."""
    outputs = len(indptr) - 1
    rows = [indices[indptr[o] : indptr[o + 1]] for o in range(outputs)]
    for block in (4, 2):
        if outputs % block == 0 and all(
            np.array_equal(rows[o], rows[o + i]) for o in range(0, outputs, block) for i in range(1, block)
        ):
            return block
    return 1
