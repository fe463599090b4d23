"""Where every value of a program lies: alone in the arena with its border of zeros, or as channels of another value.

Three steps, each a function: which values are channels of others (`alias`), what pitch and border each of the rest has
(`frames`), and at what offset it lies, so that no two that live at once overlap (`arrange`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gossamer.engine.ir import Graph, Operation, Shape, Value

LINE = 16  # floats that places and planes are a multiple of: a cache line, and the widest vector
CLOSE, RETRIES = 1.02, 24  # an arena this near to what lives at once will do; tries of each order
WAYS = 1024  # floats apart at which planes would meet in the same few lines of the first cache


@dataclass(frozen=True)
class Part:
    """Channels of another value, from `first` on."""

    of: Value
    first: int


@dataclass(frozen=True)
class Frame:
    """How the planes of a value lie: floats from row to row, from plane to plane, and of zeros before the first."""

    pitch: int
    plane: int
    head: int

    def size(self, shape: Shape) -> int:
        return self.head + shape.c * self.plane


@dataclass(frozen=True)
class Layout:
    """A whole program in memory. `places` are offsets of the first element; parts have neither frame nor place."""

    graph: Graph
    parts: dict[Value, Part]
    frames: dict[Value, Frame]
    places: dict[Value, int]
    arena: int
    alive: int  # the floats of the largest set of values that live at once


def lay_out(graph: Graph) -> Layout:
    """Memory for a simplified graph, whose concatenations and slices turn into parts where they can."""
    graph, parts = alias(graph)
    found = frames(graph, parts)
    lives = lifetimes(graph, parts)
    shared = in_place(graph, parts, found, lives)
    blocks: dict[Value, Block] = {}
    for value in found:
        first, last = lives[value]
        owner = _root(shared, value)
        if owner in blocks:
            first, last = min(first, blocks[owner].first), max(last, blocks[owner].last)
        blocks[owner] = Block(_ceil(found[value].head, LINE) + value.shape.c * found[value].plane, first, last)
    offsets = arrange(list(blocks.values()))
    start = dict(zip(blocks, offsets, strict=True))
    places = {v: start[_root(shared, v)] + _ceil(f.head, LINE) for v, f in found.items()}
    arena = max((o + b.size for o, b in zip(offsets, blocks.values(), strict=True)), default=0)
    return Layout(graph, parts, found, places, arena, alive_at_once(blocks.values()))


# -- concatenations and slices -----------------------------------------------------------------------------------------


def alias(graph: Graph) -> tuple[Graph, dict[Value, Part]]:
    """The graph without concatenations and slices of channels that are nothing but parts, and those parts.

    What a concatenation joins is made in its place right away, if it lies nowhere else; the rest is copied there. The longest
    concatenation comes last and is asked first, so that one which is the beginning of another costs nothing either.
    """
    makers = graph.makers()
    apart = {p.value for p in graph.inputs} | set(graph.constants)
    parts: dict[Value, Part] = {}
    for o in graph.operations:
        if o.kind == "slice" and o.inputs[0] not in graph.constants:
            parts[o.output] = Part(o.inputs[0], o.attributes["first"])
    copies: dict[Operation, list[Operation]] = {}
    gone: set[Operation] = {makers[v] for v in parts}
    for o in reversed(graph.operations):
        if o.kind != "concat" or o.attributes["axis"] != 0:
            continue
        places = [_resolved(parts, v) for v in o.inputs]
        if o.output not in parts and _consecutive(places, [v.shape.c for v in o.inputs]):
            parts[o.output] = places[0]
            gone.add(o)
            continue
        free = [v not in parts and v not in apart and o.inputs.count(v) == 1 for v in o.inputs]
        if not any(free):
            continue
        first, copies[o] = 0, []
        for value, is_free in zip(o.inputs, free, strict=True):
            target = value if is_free else Value(f"{o.output.name}_{first}", value.shape)
            parts[target] = Part(o.output, first)
            first += value.shape.c
            if not is_free:
                copies[o].append(Operation("affine", (value,), target, layer=o.layer))
    operations: list[Operation] = []
    for o in graph.operations:
        operations += copies.get(o, [] if o in gone else [o])
    resolved = {v: _resolved(parts, v) for v in parts}
    return graph.rewritten(operations), resolved


def _resolved(parts: dict[Value, Part], value: Value) -> Part:
    """Where a value lies at last: in one that is no part of another."""
    first = 0
    while value in parts:
        first += parts[value].first
        value = parts[value].of
    return Part(value, first)


def _consecutive(places: Sequence[Part], channels: Sequence[int]) -> bool:
    """Whether places lie one after the other in one value."""
    at = places[0].first
    for place, c in zip(places, channels, strict=True):
        if place.of is not places[0].of or place.first != at:
            return False
        at += c
    return True


# -- borders -----------------------------------------------------------------------------------------------------------


def frames(graph: Graph, parts: dict[Value, Part]) -> dict[Value, Frame]:
    """The frame of each value that is no part: the border that convolutions want around it, and one pitch for those that
    convolutions, sums and elementwise functions connect, so that these run along whole planes instead of row by row."""
    made = [*(p.value for p in graph.inputs), *(o.output for o in graph.operations)]
    roots = list(dict.fromkeys(parts[v].of if v in parts else v for v in made))
    same = {v: v for v in roots}
    gap, below, before = dict.fromkeys(roots, 0), dict.fromkeys(roots, 0), dict.fromkeys(roots, (0, 0))

    def root(value: Value) -> Value:
        return parts[value].of if value in parts else value

    for o in graph.operations:
        read = [root(v) for v in o.inputs if v not in graph.constants]
        output = root(o.output)
        if _along_planes(o) and read and o.inputs[0].shape[1:] != (1, 1):
            top, left, bottom, right = o.attributes["padding"]
            source = read[0]
            gap[source] = max(gap[source], left, right)
            below[source] = max(below[source], top, bottom)
            before[source] = max(before[source][0], top), max(before[source][1], left)
            if output.shape[1:] != (1, 1):
                _join(same, source, output)
        elif o.kind == "conv" and output.shape[1:] != (1, 1):
            gap[output] = max(gap[output], _phase_gap(o))
        if o.kind in ("conv", "affine", "binary"):
            for value in read[1:] if o.kind == "conv" else read:
                if value.shape[1:] == output.shape[1:] != (1, 1):
                    _join(same, value, output)
    pitch: dict[Value, int] = {}
    for value in roots:
        group = _root(same, value)
        pitch[group] = max(pitch.get(group, 0), value.shape.w + gap[value])
    return {v: _frame(v.shape, pitch[_root(same, v)], below[v], before[v]) for v in roots}


def _phase_gap(conv: Operation) -> int:
    """The columns that a strided convolution, whose source is split into phases, reads past each row of a phase."""
    stride, left = conv.attributes["stride"][1], conv.attributes["padding"][1]
    reach = (conv.attributes["kernel"][1] - 1) * conv.attributes["dilation"][1]
    return (reach - left) // stride - -left // stride


def _along_planes(o: Operation) -> bool:
    """Whether an operation can run along whole planes, if its source has the border it wants."""
    averages = o.kind == "pool" and o.attributes["function"] == "average"
    return (o.kind == "conv" or averages) and list(o.attributes["stride"]) == [1, 1]


def _frame(shape: Shape, pitch: int, below: int, before: tuple[int, int]) -> Frame:
    if shape[1:] == (1, 1):
        return Frame(1, 1, 0)
    plane = _ceil((shape.h + below) * pitch, LINE)
    plane += LINE if plane % WAYS == 0 else 0
    return Frame(pitch, plane, before[0] * pitch + before[1])


# -- lifetimes and offsets ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Floats that are taken from step `first` to step `last`, both included."""

    size: int
    first: int
    last: int

    def meets(self, other: Block) -> bool:
        return self.first <= other.last and other.first <= self.last


def lifetimes(graph: Graph, parts: dict[Value, Part]) -> dict[Value, tuple[int, int]]:
    """From which step to which each value that is no part is needed, its parts included."""
    lives: dict[Value, tuple[int, int]] = {}

    def touch(value: Value, step: int) -> None:
        if value in graph.constants:
            return
        value = parts[value].of if value in parts else value
        first, last = lives.get(value, (step, step))
        lives[value] = min(first, step), max(last, step)

    for port in graph.inputs:
        touch(port.value, -1)
    for step, o in enumerate(graph.operations):
        for value in (*o.inputs, o.output):
            touch(value, step)
    for port in graph.outputs:
        touch(port.value, len(graph.operations))
    return lives


def in_place(
    graph: Graph, parts: dict[Value, Part], found: dict[Value, Frame], lives: dict[Value, tuple[int, int]]
) -> dict[Value, Value]:
    """Which value is written over which: an elementwise result over an operand that is read there for the last time."""
    shared = {v: v for v in found}
    whole = set(found) - {p.of for p in parts.values()} - {p.value for p in graph.inputs}
    for step, o in enumerate(graph.operations):
        operands = {"affine": o.inputs, "binary": o.inputs, "conv": o.inputs[1:]}.get(o.kind, ())
        for value in operands:
            if value not in whole or o.output not in whole or (o.kind == "conv" and value is o.inputs[0]):
                continue
            alike = value.shape == o.output.shape and found[value] == found[o.output]
            if alike and lives[value][1] == step:
                _join(shared, value, o.output)
                break
    return shared


def arrange(blocks: Sequence[Block]) -> list[int]:
    """Offsets at which blocks that live at once do not overlap: the best of a few orders, each block in the gap it fits best.

    Of an order that leaves holes, what ends highest is placed first in the next try.
    """
    orders = (
        sorted(range(len(blocks)), key=lambda i: (-blocks[i].size, blocks[i].first)),
        sorted(range(len(blocks)), key=lambda i: (-blocks[i].size * (blocks[i].last - blocks[i].first + 1), i)),
        sorted(range(len(blocks)), key=lambda i: (blocks[i].first, -blocks[i].size)),
        sorted(range(len(blocks)), key=lambda i: (-blocks[i].last, -blocks[i].size)),
    )
    least = alive_at_once(blocks)
    best: tuple[int, list[int]] | None = None
    for order in orders:
        for _ in range(RETRIES):
            offsets = _greedy(blocks, order)
            ends = [o + b.size for o, b in zip(offsets, blocks, strict=True)]
            end = max(ends, default=0)
            if best is None or end < best[0]:
                best = end, offsets
            if best[0] <= CLOSE * least:
                return best[1]
            highest = ends.index(end)
            order.remove(highest)
            order.insert(0, highest)
    assert best is not None
    return best[1]


def _greedy(blocks: Sequence[Block], order: Sequence[int]) -> list[int]:
    offsets = [0] * len(blocks)
    placed: list[int] = []
    for i in order:
        size = _ceil(blocks[i].size, LINE)
        at = 0
        best: tuple[int, int] | None = None
        for j in sorted((j for j in placed if blocks[j].meets(blocks[i])), key=lambda j: offsets[j]):
            room = offsets[j] - at
            if room >= size and (best is None or room < best[0]):
                best = room, at
            at = max(at, offsets[j] + _ceil(blocks[j].size, LINE))
        offsets[i] = at if best is None else best[1]
        placed.append(i)
    return offsets


def alive_at_once(blocks: Iterable[Block]) -> int:
    """The floats of the largest set of blocks that live at the same time: no arena can be smaller."""
    changes: dict[int, int] = {}
    for block in blocks:
        changes[block.first] = changes.get(block.first, 0) + block.size
        changes[block.last + 1] = changes.get(block.last + 1, 0) - block.size
    now = most = 0
    for step in sorted(changes):
        now += changes[step]
        most = max(most, now)
    return most


def _root(same: dict[Value, Value], value: Value) -> Value:
    while same[value] is not value:
        same[value] = same[same[value]]
        value = same[value]
    return value


def _join(same: dict[Value, Value], one: Value, two: Value) -> None:
    same[_root(same, two)] = _root(same, one)


def _ceil(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
