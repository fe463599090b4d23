"""The native half of the engine: every kind of operation against PyTorch, in programs written by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from engine.programs import Builder, one
from gossamer.runtime import Program
from instruction_sets import every_lesser_one, pass_the_tests


def run(file: bytes, *inputs: torch.Tensor, threads: int = 1) -> torch.Tensor:
    return torch.from_numpy(Program(file, threads)(*(x.numpy() for x in inputs)))


def agree(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert got.shape == want.shape
    assert torch.isfinite(got).all()
    assert (got - want).abs().max() <= tolerance * max(1.0, want.abs().max())


def seeded(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def conv_attributes(
    kernel: tuple[int, int], stride: Any = (1, 1), padding: Any = (0, 0), dilation: Any = (1, 1)
) -> dict[str, Any]:
    return {
        "kernel": list(kernel),
        "stride": list(stride),
        "padding": [padding[0], padding[1], padding[0], padding[1]],
        "dilation": list(dilation),
    }


CONVOLUTIONS = [
    # inputs, outputs, size, kernel, stride, padding, dilation, groups
    (3, 8, (9, 11), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (8, 7, (17, 17), (1, 1), (1, 1), (0, 0), (1, 1), 1),
    (4, 8, (17, 17), (1, 7), (1, 1), (0, 3), (1, 1), 1),
    (4, 8, (17, 17), (7, 1), (1, 1), (3, 0), (1, 1), 1),
    (4, 6, (7, 7), (5, 5), (1, 1), (2, 2), (1, 1), 2),
    (6, 6, (14, 14), (3, 3), (1, 1), (1, 1), (1, 1), 6),
    (6, 12, (15, 13), (3, 3), (2, 2), (1, 1), (1, 1), 6),
    (3, 8, (33, 31), (7, 7), (2, 2), (3, 3), (1, 1), 1),
    (5, 4, (13, 13), (1, 1), (2, 2), (0, 0), (1, 1), 1),
    (4, 4, (16, 18), (3, 3), (1, 1), (2, 2), (2, 2), 1),
    (4, 5, (11, 9), (2, 3), (3, 2), (0, 1), (1, 2), 1),
    (12, 16, (3, 3), (3, 3), (1, 1), (0, 0), (1, 1), 1),
    (12, 16, (1, 1), (1, 1), (1, 1), (0, 0), (1, 1), 1),
    (2, 3, (40, 40), (3, 3), (1, 1), (1, 1), (1, 1), 1),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("border", [(0, 0, 0, 0), (3, 3, 3, 1), (3, 3, 0, 0), (1, 1, 2, 2)])
def test_dense_convolution(case: Any, border: tuple[int, int, int, int]) -> None:
    inputs, outputs, size, kernel, stride, padding, dilation, groups = case
    x, weight, bias = seeded(2, inputs, *size), seeded(outputs, inputs // groups, *kernel), seeded(outputs)
    want = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    gap, rows, out_gap, out_rows = border
    file = one(
        "conv",
        [(inputs, *size)],
        tuple(want.shape[1:]),
        {"weight": weight, "bias": bias},
        gap,
        rows,
        out_gap,
        out_rows,
        groups=groups,
        **conv_attributes(kernel, stride, padding, dilation),
    )
    alone = run(file, x)
    agree(alone, want)
    assert torch.equal(alone, run(file, x, threads=2))


def sparse_weights(inputs: int, outputs: int, block: int, kernel: tuple[int, int], density: float) -> Any:
    random = np.random.default_rng(inputs + outputs)
    rows = [np.flatnonzero(random.random(inputs) < density) for _ in range(outputs // block)]
    indptr, indices = np.cumsum([0, *map(len, rows)]), np.concatenate(rows)
    weight = random.standard_normal((block * len(indices), *kernel)).astype(np.float32)
    dense = np.zeros((outputs, inputs, *kernel), np.float32)
    at = 0
    for output in range(outputs):
        heard = rows[output // block]
        dense[output, heard] = weight[at : at + len(heard)]
        at += len(heard)
    return {"weight": weight, "indptr": indptr, "indices": indices}, torch.from_numpy(dense)


@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("size", [(7, 7), (9, 45)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (1, 7)])
@pytest.mark.parametrize("how", ["before", "after", None])
def test_sparse_convolution_with_residual_and_activation(block: int, size: Any, kernel: Any, how: str | None) -> None:
    tensors, dense = sparse_weights(9, 8, block, kernel, 0.4)
    bias, padding = seeded(8), (kernel[0] // 2, kernel[1] // 2)
    x, other = seeded(2, 9, *size), seeded(2, 8, *size)
    sums = F.conv2d(x, dense, bias, padding=padding)
    want = {"before": (sums + other).relu(), "after": sums.relu() + other, None: sums.clamp(0, 6)}[how]
    for border, out_border in itertools.product([(3, 3), (0, 0)], [(3, 3), (0, 2)]):
        builder = Builder()
        values = [builder.input(builder.value(9, *size, gap=border[0], rows=border[1]))]
        if how:
            values.append(builder.input(builder.value(8, *size, gap=2)))
        attributes: dict[str, Any] = {
            "activation": {"function": "relu"} if how else {"function": "clamp", "min": 0, "max": 6}
        }
        if how:
            attributes["residual"] = how
        out = builder.value(8, *size, gap=out_border[0], rows=out_border[1])
        builder.add(
            "conv",
            values,
            out,
            {**tensors, "bias": bias},
            block=block,
            **conv_attributes(kernel, padding=padding),
            **attributes,
        )
        builder.output(out)
        for threads in (1, 2):
            agree(run(builder.file(), x, *([other] if how else []), threads=threads), want)


def test_borders_stay_zero_and_slices_join() -> None:
    """Two convolutions write halves of one value, in the wrong order; a third reads the whole through its border."""
    x, first, second, third = seeded(2, 4, 9, 9), seeded(4, 4, 1, 1), seeded(4, 4, 3, 3), seeded(5, 8, 3, 3)
    builder = Builder()
    source = builder.input(builder.value(4, 9, 9, gap=1, rows=1))
    joined = builder.value(8, 9, 9, gap=1, rows=1)
    halves = [builder.slice(joined, 0, 4), builder.slice(joined, 4, 4)]
    sigmoid = {"activation": {"function": "sigmoid"}}  # not zero at zero: borders must not show it
    builder.add("conv", [source], halves[1], {"weight": second}, **conv_attributes((3, 3), padding=(1, 1)), **sigmoid)
    late = builder.add(
        "conv", [halves[1]], builder.value(5, 9, 9), {"weight": third[:, :4]}, **conv_attributes((3, 3), padding=(1, 1))
    )
    builder.add("conv", [source], halves[0], {"weight": first}, **conv_attributes((1, 1)), **sigmoid)
    out = builder.add(
        "conv", [joined], builder.value(5, 9, 9), {"weight": third}, **conv_attributes((3, 3), padding=(1, 1))
    )
    builder.output(late), builder.output(out)
    a, b = F.conv2d(x, first).sigmoid(), F.conv2d(x, second, padding=1).sigmoid()
    want = F.conv2d(b, third[:, :4], padding=1), F.conv2d(torch.cat([a, b], 1), third, padding=1)
    for threads in (1, 2):
        program = Program(builder.file(), threads)
        for _ in range(2):  # the arena holds the first run's numbers then
            for got, expected in zip(program(x.numpy()), want, strict=True):
                agree(torch.from_numpy(got), expected)


ACTIVATIONS = [
    ({"function": "relu"}, F.relu),
    ({"function": "clamp", "max": 0.5}, lambda v: v.clamp(max=0.5)),
    ({"function": "leaky_relu", "slope": 0.1}, lambda v: F.leaky_relu(v, 0.1)),
    ({"function": "elu", "alpha": 1.5}, lambda v: F.elu(v, 1.5)),
    ({"function": "elu", "alpha": 1.6732632423543772, "scale": 1.0507009873554805}, F.selu),
    ({"function": "elu", "alpha": 2.0, "rate": 0.5}, lambda v: F.celu(v, 2.0)),
    ({"function": "sigmoid"}, torch.sigmoid),
    ({"function": "tanh"}, torch.tanh),
    ({"function": "silu"}, F.silu),
    ({"function": "gelu"}, F.gelu),
    ({"function": "gelu_tanh"}, lambda v: F.gelu(v, approximate="tanh")),
    ({"function": "hardsigmoid"}, F.hardsigmoid),
    ({"function": "hardswish"}, F.hardswish),
    ({"function": "softplus", "beta": 2, "threshold": 3}, lambda v: F.softplus(v, 2, 3)),
    ({"function": "mish"}, F.mish),
    ({"function": "exp"}, torch.exp),
    ({"function": "abs"}, torch.abs),
    ({"function": "neg"}, torch.neg),
    ({"function": "square"}, torch.square),
    ({"function": "erf"}, torch.erf),
    ({"function": "sin"}, torch.sin),
    ({"function": "cos"}, torch.cos),
    ({"function": "floor"}, torch.floor),
    ({"function": "softsign"}, F.softsign),
    ({"function": "logsigmoid"}, F.logsigmoid),
]


@pytest.mark.parametrize(
    ("activation", "function"), ACTIVATIONS, ids=lambda a: a["function"] if isinstance(a, dict) else ""
)
def test_activations(activation: Any, function: Any) -> None:
    x = torch.linspace(-20, 8, 4 * 3 * 37).reshape(4, 3, 1, 37)
    agree(run(one("affine", [(3, 1, 37)], (3, 1, 37), out_gap=2, activation=activation), x), function(x))


@pytest.mark.parametrize(
    ("name", "function"),
    [("log", torch.log), ("sqrt", torch.sqrt), ("rsqrt", torch.rsqrt), ("reciprocal", torch.reciprocal)],
)
def test_activations_of_positive_numbers(name: str, function: Any) -> None:
    x = torch.linspace(0.1, 8, 36).reshape(1, 3, 3, 4)
    agree(run(one("affine", [(3, 3, 4)], (3, 3, 4), activation={"function": name}), x), function(x))


def test_affine_and_in_place() -> None:
    x, scale, shift = seeded(2, 5, 6, 7), seeded(5), seeded(5)
    builder = Builder()
    source = builder.input(builder.value(5, 6, 7))
    middle = builder.add("affine", [source], builder.value(5, 6, 7, gap=1, rows=1), {"scale": scale, "shift": shift})
    out = builder.add(
        "binary", [middle, builder.constant(np.ones((5, 1, 1)))], builder.same_place(middle), function="add"
    )
    builder.output(out)
    agree(run(builder.file(), x), x * scale.view(5, 1, 1) + shift.view(5, 1, 1) + 1)


BINARY = [
    ("add", torch.add),
    ("sub", torch.sub),
    ("mul", torch.mul),
    ("div", torch.div),
    ("maximum", torch.maximum),
    ("minimum", torch.minimum),
    ("prelu", lambda a, b: torch.where(a > 0, a, a * b)),
]


@pytest.mark.parametrize(("name", "function"), BINARY, ids=[name for name, _ in BINARY])
@pytest.mark.parametrize(
    "shapes", [((4, 5, 6), (4, 5, 6)), ((4, 5, 6), (4, 1, 1)), ((1, 5, 1), (4, 1, 6)), ((1, 1, 1), (4, 5, 6))]
)
def test_binary(name: str, function: Any, shapes: Any) -> None:
    a, b = seeded(2, *shapes[0]), seeded(2, *shapes[1]) + 5
    agree(
        run(one("binary", list(shapes), (4, 5, 6), gap=1, out_gap=1, out_rows=1, function=name), a, b), function(a, b)
    )


@pytest.mark.parametrize("size", [(8, 9), (35, 35), (3, 4)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "ceil", "dilation"),
    [
        ((3, 3), (2, 2), (1, 1), False, (1, 1)),
        ((3, 3), (1, 1), (1, 1), False, (1, 1)),
        ((2, 2), (2, 2), (0, 0), True, (1, 1)),
        ((3, 2), (3, 1), (1, 0), True, (1, 1)),
        ((3, 3), (2, 2), (0, 0), True, (1, 1)),
        ((2, 2), (1, 1), (0, 0), False, (2, 1)),
        ((5, 5), (3, 3), (2, 2), True, (1, 1)),
    ],
)
def test_pools(size: Any, kernel: Any, stride: Any, padding: Any, ceil: bool, dilation: Any) -> None:
    if any(s + 2 * p < (k - 1) * d + 1 for s, p, k, d in zip(size, padding, kernel, dilation, strict=True)):
        return
    x = seeded(2, 3, *size)
    window = conv_attributes(kernel, stride, padding, dilation)
    want = F.max_pool2d(x, kernel, stride, padding, dilation, ceil)
    agree(
        run(
            one("pool", [(3, *size)], tuple(want.shape[1:]), gap=1, out_gap=1, out_rows=1, function="max", **window), x
        ),
        want,
    )
    if dilation != (1, 1):
        return
    for count, divisor in ((True, None), (False, None), (False, 7)):
        want = F.avg_pool2d(x, kernel, stride, padding, ceil, count, divisor)
        extra = {"divisor": divisor} if divisor else {}
        file = one(
            "pool", [(3, *size)], tuple(want.shape[1:]), function="average", count_padding=count, **extra, **window
        )
        agree(run(file, x, threads=2), want)


@pytest.mark.parametrize("gap", [0, 1, 2])
@pytest.mark.parametrize("activation", [{"function": "clamp", "min": 0, "max": 6}, {"function": "sigmoid"}])
def test_pools_with_shift_and_activation(gap: int, activation: dict[str, Any]) -> None:
    x, shift = seeded(2, 3, 7, 9), seeded(3)
    after = torch.sigmoid if activation["function"] == "sigmoid" else F.relu6
    for name, count in (("max", False), ("average", False), ("average", True)):
        pooled = F.max_pool2d(x, 3, 1, 1) if name == "max" else F.avg_pool2d(x, 3, 1, 1, count_include_pad=count)
        attributes = {"function": name, "count_padding": count, "activation": activation}
        window = conv_attributes((3, 3), padding=(1, 1))
        file = one("pool", [(3, 7, 9)], (3, 7, 9), {"shift": shift}, gap, gap, gap, 1, **attributes, **window)
        agree(run(file, x, threads=2), after(pooled + shift.view(3, 1, 1)))


@pytest.mark.parametrize("out", [(1, 1), (3, 2), (7, 9), (10, 4)])
def test_adaptive_pools(out: Any) -> None:
    x = seeded(2, 3, 7, 9)
    agree(
        run(one("adaptive_pool", [(3, 7, 9)], (3, *out), function="average", out_gap=1), x),
        F.adaptive_avg_pool2d(x, out),
    )
    agree(run(one("adaptive_pool", [(3, 7, 9)], (3, *out), function="max"), x), F.adaptive_max_pool2d(x, out))


@pytest.mark.parametrize("axes", [[1, 2], [0], [2], [0, 1, 2], [1]])
def test_reductions(axes: list[int]) -> None:
    x = seeded(2, 5, 6, 37)
    out = tuple(1 if i in axes else size for i, size in enumerate((5, 6, 37)))
    dims = [a + 1 for a in axes]
    for name, function in (("mean", torch.mean), ("sum", torch.sum), ("max", torch.amax), ("min", torch.amin)):
        want = function(x, dim=dims, keepdim=True)
        agree(run(one("reduce", [(5, 6, 37)], out, gap=1, function=name, axes=axes), x, threads=2), want)


def test_norms() -> None:
    x, scale, shift = seeded(2, 6, 5, 20) + 3, seeded(6), seeded(6)
    parameters = {"scale": scale, "shift": shift}
    for groups in (1, 2, 6):
        file = one(
            "norm",
            [(6, 5, 20)],
            (6, 5, 20),
            parameters,
            out_gap=1,
            out_rows=1,
            over="group",
            groups=groups,
            epsilon=1e-5,
        )
        agree(run(file, x, threads=2), F.group_norm(x, groups, scale, shift, 1e-5))
    want = F.layer_norm(x.permute(0, 2, 3, 1), (6,), scale, shift, 1e-6).permute(0, 3, 1, 2)
    agree(
        run(one("norm", [(6, 5, 20)], (6, 5, 20), parameters, out_gap=1, over="channel", epsilon=1e-6), x, threads=2),
        want,
    )
    wide = {"scale": seeded(20), "shift": seeded(20)}
    want = F.layer_norm(x, (20,), wide["scale"], wide["shift"], 1e-5)
    agree(run(one("norm", [(6, 5, 20)], (6, 5, 20), wide, over="width", epsilon=1e-5), x), want)
    agree(
        run(one("norm", [(6, 5, 20)], (6, 5, 20), over="width", epsilon=1e-5, center=False), x),
        F.rms_norm(x, (20,), eps=1e-5),
    )


def test_softmax() -> None:
    x = 10 * seeded(2, 5, 6, 21)
    for axis, log in itertools.product((0, 1, 2), (False, True)):
        want = (F.log_softmax if log else F.softmax)(x, axis + 1)
        agree(run(one("softmax", [(5, 6, 21)], (5, 6, 21), gap=1, out_gap=2, axis=axis, log=log), x, threads=2), want)


def test_linear() -> None:
    x, weight, bias = seeded(3, 4, 5, 6), seeded(11, 120), seeded(11)
    tensors, relu = {"weight": weight, "bias": bias}, {"function": "relu"}
    want = F.linear(x.flatten(1), weight, bias).relu().view(3, 1, 1, 11)
    for gap, threads in itertools.product((0, 1), (1, 2)):
        agree(run(one("linear", [(4, 5, 6)], (1, 1, 11), tensors, gap=gap, activation=relu), x, threads=threads), want)
    rows = {"weight": seeded(11, 6), "bias": bias}
    agree(
        run(one("linear", [(4, 5, 6)], (4, 5, 11), rows, gap=1, out_gap=1), x, threads=2),
        F.linear(x, rows["weight"], bias),
    )
    other = seeded(3, 1, 1, 11)
    want = F.linear(x.flatten(1), weight).view(3, 1, 1, 11).relu() + other
    agree(
        run(
            one("linear", [(4, 5, 6), (1, 1, 11)], (1, 1, 11), {"weight": weight}, activation=relu, residual="after"),
            x,
            other,
        ),
        want,
    )


def test_views() -> None:
    x = seeded(2, 6, 5, 4)
    shuffled = x.view(2, 2, 3, 5, 4).transpose(1, 2).reshape(2, 6, 5, 4)
    agree(
        run(one("copy", [(6, 5, 4)], (6, 5, 4), gap=1, out_gap=2, sizes=[3, 2, 20], strides=[20, 60, 1], start=0), x),
        shuffled,
    )
    agree(run(one("copy", [(6, 5, 4)], (5, 4, 6), sizes=[20, 6], strides=[1, 20], start=0), x), x.permute(0, 2, 3, 1))
    agree(run(one("copy", [(6, 5, 4)], (1, 1, 120), gap=1, sizes=[120], strides=[1], start=0), x), x.view(2, 1, 1, 120))
    agree(run(one("copy", [(6, 5, 4)], (6, 5, 4), sizes=[30, 4], strides=[4, -1], start=3), x), x.flip(3))
    agree(
        run(one("copy", [(6, 5, 4)], (6, 3, 7), sizes=[6, 3, 7], strides=[20, 8, 0], start=1), x),
        x[:, :, ::2, 1:2].expand(2, 6, 3, 7),
    )
    agree(
        run(
            one("copy", [(4, 5, 3)], (1, 10, 6), sizes=[1, 5, 2, 3, 2], strides=[0, 3, 30, 1, 15], start=0),
            x[:, :4, :, :3].contiguous(),
        ),
        F.pixel_shuffle(x[:, :4, :, :3], 2),
    )


def test_selections() -> None:
    x = seeded(2, 3, 4, 5)
    up = {"rows": np.arange(8) // 2, "columns": np.arange(10) // 2}
    agree(
        run(one("select", [(3, 4, 5)], (3, 8, 10), up, gap=1, out_gap=1, out_rows=1), x),
        F.interpolate(x, scale_factor=2),
    )
    pad = {"rows": np.r_[-1, 0:4, -1, -1], "columns": np.r_[-1, -1, 0:5, -1]}
    agree(run(one("select", [(3, 4, 5)], (3, 7, 8), pad, fill=1.5), x), F.pad(x, (2, 1, 1, 2), value=1.5))
    agree(
        run(one("select", [(3, 4, 5)], (4, 4, 5), {"channels": np.array([2, 0, -1, 1])}), x),
        torch.cat([x[:, [2, 0]], torch.zeros(2, 1, 4, 5), x[:, [1]]], 1),
    )


def test_resampling() -> None:
    x = seeded(2, 3, 4, 5)
    for size in ((8, 10), (3, 9)):
        tensors: dict[str, np.ndarray] = {}
        for index, weight, out, length in (
            ("rows", "row_weights", size[0], 4),
            ("columns", "column_weights", size[1], 5),
        ):
            at = np.maximum((np.arange(out) + 0.5) * length / out - 0.5, 0)
            low = at.astype(int)
            tensors[index] = np.stack([low, np.minimum(low + 1, length - 1)], 1)
            tensors[weight] = np.stack([1 - (at - low), at - low], 1)
        want = F.interpolate(x, size, mode="bilinear")
        agree(run(one("resample", [(3, 4, 5)], (3, *size), tensors, gap=1, out_gap=1), x, threads=2), want)


@pytest.mark.parametrize("transpose", list(itertools.product((False, True), repeat=2)))
def test_products(transpose: tuple[bool, bool]) -> None:
    a, b = seeded(2, 3, 4, 21), seeded(2, 3, 21, 6)
    want = 0.5 * a @ b
    given = [v.transpose(2, 3).contiguous() if t else v for v, t in zip((a, b), transpose, strict=True)]
    shapes = [tuple(v.shape[1:]) for v in given]
    file = one(
        "matmul", shapes, (3, 4, 6), gap=1, out_gap=1, transpose_a=transpose[0], transpose_b=transpose[1], scale=0.5
    )
    agree(run(file, *given, threads=2), want)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_concatenations(axis: int) -> None:
    parts = [seeded(2, *(size if a == axis else 4 for a in range(3))) for size in (3, 1, 5)]
    out = tuple(9 if a == axis else 4 for a in range(3))
    agree(
        run(one("concat", [tuple(p.shape[1:]) for p in parts], out, gap=1, out_gap=1, axis=axis), *parts, threads=2),
        torch.cat(parts, axis + 1),
    )


@every_lesser_one
def test_lesser_instruction_sets(isa: str) -> None:
    names = "dense_convolution and border1 or activations or adaptive or norms or softmax or linear or products or slices_join"
    pass_the_tests(isa, __file__, names)
