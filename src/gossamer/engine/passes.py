"""What makes a captured graph fast: small functions from graph to graph that each know one rule.

Operations move only towards the end, to the place of one they swallow, so that what they read is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from gossamer.engine.ir import Activation, Graph, Operation, Pass, Value

Rule = Callable[[Operation, Operation], "Operation | None"]


def simplify(graph: Graph) -> Graph:
    """Every pass, until none finds more to do."""
    before = -1
    while len(graph.operations) != before:
        before = len(graph.operations)
        for one in PASSES:
            graph = one(graph)
    return graph


def drop_dead(graph: Graph) -> Graph:
    """Without what nobody reads."""
    needed = {p.value for p in graph.outputs}
    kept: list[Operation] = []
    for operation in reversed(graph.operations):
        if operation.output in needed:
            needed.update(operation.inputs)
            kept.append(operation)
    constants = {v: array for v, array in graph.constants.items() if v in needed}
    return Graph(graph.inputs, graph.outputs, tuple(reversed(kept)), constants, graph.structure)


def drop_identities(graph: Graph) -> Graph:
    """Without affine functions that are the identity, and slices of everything."""
    returned = {p.value for p in graph.outputs}
    given = {p.value for p in graph.inputs} | set(graph.constants)
    kept, renamed = [], {}
    for o in graph.operations:
        identity = o.kind == "affine" and not o.tensors and o.activation is None
        identity = identity or (o.kind == "slice" and o.output.shape == o.inputs[0].shape)
        if identity and not (o.output in returned and o.inputs[0] in given):
            renamed[o.output] = o.inputs[0]
        else:
            kept.append(o)
    return graph.rewritten(kept, renamed)


def into_maker(kind: str, rule: Rule) -> Pass:
    """A pass in which an operation of `kind` is swallowed by the one that makes its first input, where nobody else reads that.

    `rule` gives what does both, or None where it cannot be.
    """

    def one(graph: Graph) -> Graph:
        readers, makers = graph.readers(), graph.makers()
        kept: list[Operation] = []
        for operation in graph.operations:
            maker = makers.get(operation.inputs[0])
            joint = None
            if operation.kind == kind and maker is not None and readers[maker.output] == 1:
                joint = rule(maker, operation)
            if joint is not None and maker is not None:
                makers[joint.output] = joint
                kept.remove(maker)
                operation = joint
            kept.append(operation)
        return graph.rewritten(kept)

    return one


# -- affine functions and activations ----------------------------------------------------------------------------------


def absorb(maker: Operation, affine: Operation) -> Operation | None:
    """A scale, shift or activation after a convolution, linear layer, normalisation, pooling, sum or affine function."""
    if maker.activation is not None or maker.kind not in ("conv", "linear", "norm", "pool", "affine", "binary"):
        return None
    if len(maker.inputs) == 2 and affine.activation is not None and maker.attributes.get("residual") == "after":
        return None
    tensors: Mapping[str, np.ndarray] | None = maker.tensors
    if affine.tensors:
        tensors = _scaled(maker, affine.tensors)
    if tensors is None:
        return None
    return maker.but(output=affine.output, tensors=tensors, activation=affine.activation)


def _scaled(maker: Operation, line: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """The tensors with which an operation computes its result times `scale` plus `shift`, one for each output channel."""
    c = maker.output.shape.c
    scale, shift = line.get("scale", np.ones(c, np.float32)), line.get("shift", np.zeros(c, np.float32))
    if len(maker.inputs) == 2 or (maker.kind == "norm" and maker.attributes["over"] == "width"):
        return None
    if maker.kind in ("norm", "affine"):
        own = maker.tensors.get("scale"), maker.tensors.get("shift")
        return {
            "scale": scale if own[0] is None else own[0] * scale,
            "shift": shift if own[1] is None else own[1] * scale + shift,
        }
    if maker.kind == "pool":
        own_shift = maker.tensors.get("shift", np.float32(0))
        return None if "scale" in line else {"shift": own_shift + shift}
    weight = maker.tensors["weight"]
    outputs = len(maker.tensors["indptr"]) - 1 if "indptr" in maker.tensors else len(weight)
    if outputs != c:  # a linear layer on rows: all its outputs lie in one channel, or in a vector
        if c != 1:
            return None
        scale, shift = (np.full(outputs, v[0], np.float32) for v in (scale, shift))
    factor = np.repeat(scale, np.diff(maker.tensors["indptr"])) if "indptr" in maker.tensors else scale
    bias = maker.tensors.get("bias", np.float32(0)) * scale + shift
    return {**maker.tensors, "weight": weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), "bias": bias}


def spread(maker: Operation, reader: Operation) -> Operation | None:
    """A scale and shift before a convolution or linear layer, which its kernels and bias take; but no padding is shifted."""
    if maker.kind != "affine" or maker.activation is not None or not maker.tensors:
        return None
    shift = maker.tensors.get("shift")
    if reader.kind == "conv" and any(reader.attributes["padding"]) and shift is not None and shift.any():
        return None
    if maker.inputs[0] in reader.inputs[1:] or maker.output in reader.inputs[1:]:
        return None
    scale = maker.tensors.get("scale", np.ones(maker.output.shape.c, np.float32))
    shift = np.zeros_like(scale) if shift is None else shift
    weight = reader.tensors["weight"]
    if reader.kind == "linear":
        if weight.shape[1] != maker.output.shape.size:
            return None
        each = maker.output.shape.h * maker.output.shape.w
        scale, shift = np.repeat(scale, each), np.repeat(shift, each)
        added = weight @ shift
        weight = weight * scale
    else:
        scale, shift = (_by_kernel(v, reader) for v in (scale, shift))
        tail = tuple(range(scale.ndim, weight.ndim))
        added = _summed(weight.sum(tail) * shift, reader)
        weight = weight * np.expand_dims(scale, tail)
    bias = reader.tensors.get("bias", np.float32(0)) + added
    inputs = (maker.inputs[0], *reader.inputs[1:])
    return reader.but(inputs=inputs, tensors={**reader.tensors, "weight": weight, "bias": bias.astype(np.float32)})


def _by_kernel(vector: np.ndarray, conv: Operation) -> np.ndarray:
    """What each kernel's input has in `vector`: [e] or [o, i]."""
    if "indices" in conv.tensors:
        return vector[conv.tensors["indices"]]
    outputs, each = conv.tensors["weight"].shape[:2]
    groups = conv.attributes["groups"]
    return np.repeat(vector.reshape(groups, each), outputs // groups, axis=0)


def _summed(kernels: np.ndarray, conv: Operation) -> np.ndarray:
    """The sum over each output's kernels."""
    if "indices" not in conv.tensors:
        return kernels.sum(1)
    rows = np.repeat(np.arange(conv.output.shape.c), np.diff(conv.tensors["indptr"]))
    return np.bincount(rows, kernels, conv.output.shape.c).astype(np.float32)


def known_products(graph: Graph) -> Graph:
    """x * sigmoid(x) is silu, x * hardsigmoid(x) hardswish."""
    makers = graph.makers()
    names = {"sigmoid": "silu", "hardsigmoid": "hardswish"}
    kept = []
    for o in graph.operations:
        if o.kind == "binary" and o.attributes["function"] == "mul" and o.activation is None:
            for x, y in (o.inputs, o.inputs[::-1]):
                gate = makers.get(y)
                if (
                    gate is None
                    or gate.kind != "affine"
                    or gate.tensors
                    or gate.inputs != (x,)
                    or gate.activation is None
                ):
                    continue
                if gate.activation.function in names:
                    function = Activation(names[gate.activation.function])
                    o = Operation("affine", (x,), o.output, activation=function, layer=o.layer)
                    break
        kept.append(o)
    return graph.rewritten(kept)


# -- sums --------------------------------------------------------------------------------------------------------------


def add_in_store(graph: Graph) -> Graph:
    """A sum of two activations is computed where the later of them is stored by a convolution or linear layer."""
    readers, makers = graph.readers(), graph.makers()
    place = {o.output: at for at, o in enumerate(graph.operations)}
    kept: list[Operation] = []
    for o in graph.operations:
        if o.kind == "binary" and o.attributes["function"] == "add":
            for value in sorted(o.inputs, key=lambda v: -place.get(v, -1)):
                maker = makers.get(value)
                joint = None if maker is None or readers[value] != 1 else _with_residual(maker, o)
                if joint is not None and maker is not None:
                    makers[joint.output] = joint
                    kept.remove(maker)
                    o = joint
                    break
        kept.append(o)
    return graph.rewritten(kept)


def _with_residual(maker: Operation, total: Operation) -> Operation | None:
    if maker.kind not in ("conv", "linear") or len(maker.inputs) != 1:
        return None
    other = total.inputs[1] if total.inputs[0] is maker.output else total.inputs[0]
    if other.shape != maker.output.shape or (maker.activation is not None and total.activation is not None):
        return None
    where = "before" if maker.activation is None else "after"
    activation = maker.activation or total.activation
    inputs = (*maker.inputs, other)
    return maker.but({"residual": where}, inputs=inputs, output=total.output, activation=activation)


# -- padding -----------------------------------------------------------------------------------------------------------


def pad_in_reader(graph: Graph) -> Graph:
    """Zeros around an image are the padding of the convolutions that read it."""
    makers = graph.makers()
    kept = []
    for o in graph.operations:
        maker = makers.get(o.inputs[0]) if o.kind == "conv" else None
        sides = None if maker is None else zeros_around(maker)
        if maker is not None and sides is not None and maker.output not in o.inputs[1:]:
            padding = [p + q for p, q in zip(o.attributes["padding"], sides, strict=True)]
            o = o.but({"padding": padding}, inputs=(maker.inputs[0], *o.inputs[1:]))
        kept.append(o)
    return graph.rewritten(kept)


def zeros_around(select: Operation) -> list[int] | None:
    """[top, left, bottom, right] of a `select` that only puts zeros around the image."""
    if select.kind != "select" or "channels" in select.tensors or select.attributes.get("fill", 0.0) != 0:
        return None
    before, after = [], []
    for role, size in (("rows", select.inputs[0].shape.h), ("columns", select.inputs[0].shape.w)):
        places = select.tensors.get(role, np.arange(size))
        inside = np.flatnonzero(places >= 0)
        if len(inside) != size or not np.array_equal(places[inside[0] : inside[-1] + 1], np.arange(size)):
            return None
        before.append(int(inside[0]))
        after.append(int(len(places) - 1 - inside[-1]))
    return [*before, *after]


def whole_windows(graph: Graph) -> Graph:
    """A dense convolution whose one window is its whole source is a linear layer."""
    return graph.rewritten(_as_linear(o) if _sees_all(o) else o for o in graph.operations)


def _sees_all(o: Operation) -> bool:
    if o.kind != "conv" or "indices" in o.tensors or o.attributes["groups"] != 1 or any(o.attributes["padding"]):
        return False
    return o.output.shape[1:] == (1, 1) and tuple(o.attributes["kernel"]) == o.inputs[0].shape[1:] != (1, 1)


def _as_linear(conv: Operation) -> Operation:
    weight = conv.tensors["weight"]
    kept = {k: v for k, v in conv.attributes.items() if k == "residual"}
    tensors = {**conv.tensors, "weight": weight.reshape(len(weight), -1)}
    return Operation("linear", conv.inputs, conv.output, kept, tensors, conv.activation, conv.layer)


# -- order -------------------------------------------------------------------------------------------------------------


def points_before_average(graph: Graph) -> Graph:
    """A 1x1 convolution to fewer channels goes before the average pooling it reads: both are linear and act on different axes,
    so that fewer planes are pooled. The bias stays behind, since windows at the edge hold less than one."""
    readers, makers = graph.readers(), graph.makers()
    kept: list[Operation] = []
    for o in graph.operations:
        pool = makers.get(o.inputs[0])
        if pool is None or readers[pool.output] != 1 or not _averages_after(o, pool):
            kept.append(o)
            continue
        kept.remove(pool)
        thin = Value(f"{o.output.name}p", pool.inputs[0].shape._replace(c=o.output.shape.c))
        mean = Value(f"{o.output.name}m", o.output.shape)
        points = o.but(inputs=pool.inputs, output=thin, activation=None)
        points = points.but(tensors={k: v for k, v in o.tensors.items() if k != "bias"})
        shift = {"shift": o.tensors["bias"]} if "bias" in o.tensors else {}
        after = Operation("affine", (mean,), o.output, {}, shift, o.activation, o.layer)
        kept += [points, pool.but(inputs=(thin,), output=mean), after]
    return graph.rewritten(kept)


def _averages_after(conv: Operation, pool: Operation) -> bool:
    if conv.kind != "conv" or pool.kind != "pool" or len(conv.inputs) != 1 or pool.attributes["function"] != "average":
        return False
    plain = {"kernel": [1, 1], "stride": [1, 1], "padding": [0, 0, 0, 0]}
    if any(list(conv.attributes[k]) != v for k, v in plain.items()):
        return False
    grid = pool.attributes["stride"] == [1, 1]
    return grid and 2 * conv.output.shape.c <= pool.output.shape.c


PASSES: tuple[Pass, ...] = (
    drop_identities,
    known_products,
    into_maker("affine", absorb),
    add_in_store,
    into_maker("affine", absorb),
    into_maker("conv", spread),
    into_maker("linear", spread),
    pad_in_reader,
    whole_windows,
    points_before_average,
    into_maker("affine", absorb),
    drop_dead,
)
