"""Damaged program files: small valid ones that hold every kind of operation, and random changes to them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from engine.programs import Builder

CONV = {"stride": [1, 1], "dilation": [1, 1]}
NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    15,
    16,
    17,
    255,
    65535,
    2**28,
    2**30,
    2**31,
    -(2**31),
    2**32,
    2**40,
    2**53,
    -(2**53),
    2**63 - 1,
    0.5,
    1e300,
)


def valid_files() -> list[bytes]:
    """Programs of a few hundred floats that together use every kind of operation, slices, constants and places in place."""
    return [_convolutional(), _rows(), _joined()]


def _convolutional() -> bytes:
    builder, numbers = Builder(2), np.random.default_rng(0)
    x = builder.input(builder.value(3, 8, 8, gap=1, rows=1))
    sparse = {
        "weight": numbers.normal(size=(8, 3, 3)),
        "indptr": np.array([0, 2]),
        "indices": np.array([0, 2]),
        "bias": np.zeros(4),
    }
    a = builder.value(4, 8, 8, gap=1, rows=1)
    relu = {"function": "relu"}
    builder.add("conv", [x], a, sparse, kernel=[3, 3], padding=[1, 1, 1, 1], block=4, activation=relu, **CONV)
    b = builder.value(4, 8, 8, gap=1, rows=1)
    depthwise = {"weight": numbers.normal(size=(4, 1, 3, 3))}
    builder.add("conv", [a, a], b, depthwise, kernel=[3, 3], padding=[1, 1, 1, 1], groups=4, residual="after", **CONV)
    c = builder.add("affine", [b], builder.same_place(b), {"scale": np.ones(4)}, activation={"function": "silu"})
    strided = {"weight": numbers.normal(size=(6, 4, 3, 3))}
    d = builder.value(6, 4, 4)
    builder.add("conv", [c], d, strided, kernel=[3, 3], padding=[1, 1, 1, 1], stride=[2, 2], dilation=[1, 1])
    window = {"kernel": [2, 2], "stride": [2, 2], "padding": [0, 0, 0, 0], "dilation": [1, 1]}
    e = builder.add("pool", [d], builder.value(6, 2, 2), function="max", **window)
    f = builder.add("pool", [d], builder.value(6, 2, 2), function="average", count_padding=True, **window)
    g = builder.add("binary", [e, f], builder.value(6, 2, 2), function="add")
    h = builder.add("adaptive_pool", [g], builder.value(6, 1, 1, plane=1), function="average")
    builder.output(builder.add("linear", [h], builder.value(1, 1, 5), {"weight": numbers.normal(size=(5, 6))}), (5,))
    return builder.file()


def _rows() -> bytes:
    builder, numbers = Builder(1), np.random.default_rng(1)
    x = builder.input(builder.value(2, 4, 6))
    scale = {"scale": np.ones(2)}
    a = builder.add("norm", [x], builder.value(2, 4, 6, gap=1), scale, over="group", groups=2, epsilon=1e-5)
    b = builder.add("norm", [a], builder.value(2, 4, 6), scale, over="channel", epsilon=1e-5)
    c = builder.add("norm", [b], builder.value(2, 4, 6), over="width", epsilon=1e-5, center=False)
    d = builder.add("softmax", [c], builder.value(2, 4, 6), axis=1, log=True)
    e = builder.add("matmul", [d, c], builder.value(2, 4, 4), transpose_b=True, scale=0.5)
    f = builder.add("linear", [e], builder.value(2, 4, 3), {"weight": numbers.normal(size=(3, 4)), "bias": np.zeros(3)})
    g = builder.add("reduce", [f], builder.value(2, 1, 3), function="mean", axes=[1])
    h = builder.add("binary", [g, builder.constant(np.ones((2, 1, 1)))], builder.value(2, 1, 3), function="mul")
    builder.output(builder.add("copy", [h], builder.value(1, 3, 2), sizes=[3, 2], strides=[1, 3], start=0))
    builder.structure = {"dict": {"a": {"output": 0}}}
    return builder.file()


def _joined() -> bytes:
    builder = Builder(1)
    x = builder.input(builder.value(4, 3, 4))
    joined = builder.value(4, 6, 8, gap=1, rows=1)
    halves = [builder.slice(joined, i, 2) for i in (0, 2)]
    doubled = {"rows": np.arange(6) // 2, "columns": np.arange(8) // 2, "channels": np.array([1, -1])}
    builder.add("select", [x], halves[1], doubled, fill=1.0)
    rows = {"rows": np.arange(12).reshape(6, 2) // 5, "row_weights": np.full((6, 2), 0.5)}
    columns = {"columns": np.arange(16).reshape(8, 2) // 5, "column_weights": np.full((8, 2), 0.5)}
    half = builder.slice(x, 1, 2)
    builder.add("resample", [half], halves[0], rows | columns)
    twice = builder.add("concat", [joined, halves[0]], builder.value(6, 6, 8), axis=0)
    builder.output(
        builder.add("copy", [twice], builder.value(6, 6, 8), sizes=[3, 2, 48], strides=[48, 144, 1], start=0)
    )
    builder.output(halves[1])
    return builder.file()


def damaged(seed: int, count: int) -> Iterator[bytes]:
    """`count` files, each a valid one changed in one to three ways."""
    chance, files = random.Random(seed), valid_files()
    for _ in range(count):
        file = chance.choice(files)
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            file = chance.choice(CHANGES)(file, chance)
        yield file


def _bytes(file: bytes, chance: random.Random) -> bytes:
    changed = bytearray(file)
    for _ in range(chance.choice((1, 1, 4))):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _length(file: bytes, chance: random.Random) -> bytes:
    return chance.choice(
        (
            file[: chance.randrange(len(file) + 1)],
            file + bytes(chance.randrange(1, 9)),
            file[chance.randrange(len(file) + 1) :],
        )
    )


def _header_length(file: bytes, chance: random.Random) -> bytes:
    return (chance.choice((0, 1, 2**63, 2**64 - 1, 2**32, len(file), len(file) - 8, len(file) - 7))).to_bytes(
        8, "little"
    ) + file[8:]


def _split(file: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(file[:8], "little")
    return json.loads(file[8 : 8 + length]), file[8 + length :]


def _join(header: Any, data: bytes) -> bytes:
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + data


def _container(file: bytes, chance: random.Random) -> bytes:
    try:
        header, data = _split(file)
    except (ValueError, RecursionError):
        return _bytes(file, chance)
    return _join(_edited(header, chance), data)


def _metadata(file: bytes, chance: random.Random) -> bytes:
    try:
        header, data = _split(file)
        program = json.loads(header["__metadata__"]["gossamer_program"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return _bytes(file, chance)
    header["__metadata__"]["gossamer_program"] = json.dumps(_edited(program, chance))
    return _join(header, data)


def _tensor_data(file: bytes, chance: random.Random) -> bytes:
    """Other numbers in one element of a tensor: indices out of range, numbers that are none."""
    length = int.from_bytes(file[:8], "little") + 8
    if length + 4 > len(file):
        return file
    at = length + 4 * chance.randrange((len(file) - length) // 4)
    return (
        file[:at]
        + chance.choice(
            (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\x80\x7f", bytes(4), b"\5\0\0\0")
        )
        + file[at + 4 :]
    )


def _edited(json_value: Any, chance: random.Random) -> Any:
    """One random place of it changed: a number, a word, an entry gone, moved, copied or of another type."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in items:
            places.append((node, key))
            walk(child)

    walk(json_value)
    if not places:
        return json_value
    node, key = chance.choice(places)
    old = node[key]
    if isinstance(old, bool) or not isinstance(old, int | float) or chance.random() < 0.15:
        action = chance.randrange(6)
        if action == 0:
            del node[key]
        elif action == 1:
            node[key] = chance.choice((None, [], {}, "", "x", True, 0, -1, [[[]]], {"a": 1}))
        elif action == 2 and isinstance(old, list) and len(old) > 1:
            chance.shuffle(old)
        elif action == 3 and isinstance(old, list) and old:
            old.append(old[chance.randrange(len(old))])
        elif action == 4:
            other, at = chance.choice(places)
            if isinstance(other, dict) == isinstance(node, dict) and (
                at in other if isinstance(other, dict) else at < len(other)
            ):
                node[key] = json.loads(json.dumps(other[at]))
        elif isinstance(node, dict):
            node[f"{key}x"] = old
    else:
        node[key] = chance.choice(
            (*NUMBERS, old + 1, old - 1, old * 2, old // 2, chance.randrange(64), 16 * chance.randrange(64), -old)
        )
    return json_value


CHANGES = (
    _bytes,
    _length,
    _header_length,
    _container,
    _metadata,
    _metadata,
    _metadata,
    _metadata,
    _metadata,
    _metadata,
    _tensor_data,
)
