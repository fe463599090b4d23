"""Every operator that a program has, each in a module of its own, with the shapes it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer as gs

IMAGE = (6, 9, 8)


class Of(nn.Module):
    """A function as a module, with layers it may use."""

    def __init__(self, function: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs, *self.layers)


def _moved(layer: Any) -> Any:
    """Statistics and factors that are no identity."""
    for vector in (layer.weight, layer.bias, getattr(layer, "running_mean", None), getattr(layer, "running_var", None)):
        if vector is not None:
            nn.init.uniform_(vector, 0.5, 1.5)
    return layer


def _sparse(*args: Any, **kwargs: Any) -> gs.SparseConv2d:
    return gs.SparseConv2d(*args, **{"density": 0.4, **kwargs})


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        name: getattr(F, name)
        for name in """relu relu6 leaky_relu elu selu celu silu gelu hardsigmoid hardswish hardtanh softplus mish softsign
        logsigmoid tanhshrink""".split()
    },
    **{name: getattr(torch, name) for name in "sigmoid tanh exp abs neg square erf sin cos floor".split()},
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "log": lambda x: (x.abs() + 1).log(),
    "sqrt": lambda x: (x.abs() + 1).sqrt() + (x.square() + 1).rsqrt() + (x.abs() + 1).reciprocal() + 1 / (x.abs() + 2),
    "clamp": lambda x: x.clamp(-0.5, 0.7) + x.clamp(min=0.1) + x.clamp(max=0.2),
    "numbers": lambda x: (2 - x) * 3 / 4 + x**2 - 0.5 + torch.maximum(x, torch.tensor(0.0)),
    "x sigmoid": lambda x: x * torch.sigmoid(x) + F.hardsigmoid(x) * x,
    "relu6 gate": lambda x: x * F.relu6(x + 3) / 6,
    "softmax": lambda x: x.softmax(1) + x.softmax(2) + F.log_softmax(x, 3),
    "glu": lambda x: F.glu(x, 1),
    "channel constants": lambda x: (
        (x * torch.arange(6.0)[:, None, None] - torch.ones(6, 1, 1)) / torch.full((6, 1, 1), 2.0)
    ),
    "map constants": lambda x: x + torch.arange(72.0).view(9, 8) * x - torch.arange(8.0),
    "pow": lambda x: (x.abs() + 1) ** 1.5 + (x.abs() + 1) ** torch.arange(6.0)[:, None, None],
    "max pool": lambda x: F.max_pool2d(x, 3, 2, 1) + F.max_pool2d(x, (3, 1), (2, 2), (1, 0)),
    "max pool ceil": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "max pool dilated": lambda x: F.max_pool2d(x, 2, 1, dilation=2),
    "avg pool": lambda x: F.avg_pool2d(x, 3, 1, 1) + F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "avg pool ceil": lambda x: (F.avg_pool2d(x, 2, 2, ceil_mode=True), F.avg_pool2d(x, 3, 2, 1, ceil_mode=True)),  # type: ignore[dict-item]
    "avg pool ceil uncounted": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "avg pool divisor": lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5),
    "adaptive pool": lambda x: F.adaptive_avg_pool2d(x, (4, 3)) + F.adaptive_max_pool2d(x, (4, 3)),
    "global pool": lambda x: (
        F.adaptive_avg_pool2d(x, 1) + F.adaptive_max_pool2d(x, (1, 1)) + x.mean((2, 3), keepdim=True)
    ),
    "sums": lambda x: (
        x.sum(1, keepdim=True) + x.amax((1, 3), keepdim=True) - x.amin(2, keepdim=True) + x.max(3, True)[0]
    ),
    "variance": lambda x: x.std((2, 3)) + x.var((2, 3), unbiased=False) + torch.linalg.vector_norm(x, dim=(2, 3)),
    "cat": lambda x: torch.cat([x, x.relu(), x[:, :2], torch.ones(1, 1, 9, 8).expand(x.shape[0], -1, -1, -1)], 1),
    "cat of cats": lambda x: torch.cat(
        [torch.cat([x.relu(), x.exp()], 1).sigmoid(), torch.cat([x.tanh(), x.sin()], 1)], 1
    ),
    "cat rows": lambda x: torch.cat([torch.cat([x, x.relu()], 2), torch.cat([x.relu(), x], 2)], 3),
    "stack": lambda x: torch.stack([x.relu(), x], 2).sum(2) + torch.stack([x, x], 1).amax(1),
    "chunk": lambda x: torch.cat([part.relu() for part in x.chunk(2, 1)][::-1], 1),
    "split": lambda x: x.split([1, 2, 3], 1)[2] * x.split(2, 1)[1][:, :1],
    "slices": lambda x: x[:, 1:4, ::2, 1:-1] + x[:, 2:5, 0:9:2, 2:],
    "shuffle": lambda x: x.view(-1, 2, 3, 9, 8).transpose(1, 2).reshape(-1, 6, 9, 8).relu(),
    "channel shuffle": lambda x: F.channel_shuffle(x, 3),
    "pixel shuffle": lambda x: F.pixel_unshuffle(F.pixel_shuffle(torch.cat([x, x], 1), 2), 2),
    "permute": lambda x: x.permute(0, 2, 3, 1).relu().flatten(1, 2),
    "flatten": lambda x: x.relu().flatten(1).view(-1, 12, 36),
    "in place": lambda x: F.relu_(x.exp()).mul_(2).add_(x),
    "in place on a half": lambda x: (lambda y: (y[:, 1:3].relu_(), y)[1])(x + 0.1),
    "in place on chunks": lambda x: (lambda a, b: (a.relu_(), torch.cat([b, a], 1))[1])(*(x + 0.1).chunk(2, 1)),
    "written into": lambda x: (lambda y: (y[:, 2:4].copy_(x[:, :2]), y[:, 5:].fill_(3), y)[2])(x.sigmoid()),
    "in place through views": lambda x: (lambda y: (y.flatten(1).relu_(), y)[1])(x - 0.1),
    "upsample": lambda x: F.interpolate(x, scale_factor=2) + F.interpolate(x, size=(18, 16), mode="bilinear"),
    "upsample corners": lambda x: F.interpolate(x, size=(13, 16), mode="bilinear", align_corners=True),
    "upsample bicubic": lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic") + F.interpolate(x, size=(13, 12)),
    "upsample exact": lambda x: F.interpolate(x, size=(5, 16), mode="nearest-exact"),
    "pad": lambda x: (
        F.pad(x, (1, 2, 0, 3)) + F.pad(x, (1, 2, 0, 3), value=2.0) + F.pad(x, (2, 1, 1, 2), mode="reflect")
    ),
    "pad modes": lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate") + F.pad(x, (1, 1, 1, 1), mode="circular"),
    "pad channels": lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 3)),
    "flip": lambda x: x.flip(3) + x.roll(2, 1) + x[:, [5, 4, 3, 2, 1, 0]],
    "matmul": lambda x: x.flatten(2) @ x.flatten(2).transpose(1, 2) + (x @ x.transpose(2, 3)).sum((2, 3))[:, :, None],
    "attention": lambda x: F.scaled_dot_product_attention(x, x * 2, x + 1),
    "identity": lambda x: x,
    "dropout": lambda x: F.dropout(x, 0.5, training=False).contiguous() + x.clone(),
    "outputs": lambda x: {"a": x.relu(), "b": [x.mean((2, 3)), None, (x.sum(1),)]},  # type: ignore[dict-item]
}

_BLOCKS = (torch.arange(12).view(2, 6) % 5 > 1).repeat_interleave(4, 0).numpy()

LAYERS: dict[str, nn.Module] = {
    "conv": nn.Conv2d(6, 8, 3, padding=1),
    "conv of points": nn.Conv2d(6, 8, 1),
    "strided": nn.Conv2d(6, 8, (3, 5), stride=(2, 3), padding=(2, 1)),
    "dilated": nn.Conv2d(6, 8, 3, padding=2, dilation=2),
    "same": nn.Conv2d(6, 8, (5, 3), padding="same", dilation=2),
    "grouped": nn.Conv2d(6, 8, 3, groups=2, padding=1),
    "depthwise": nn.Conv2d(6, 12, 3, groups=6, stride=2, padding=1, bias=False),
    "reflecting": nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"),
    "sparse": _sparse(6, 8, 3, padding=1),
    "sparse strided": _sparse(6, 8, (1, 7), stride=2, padding=(0, 3), bias=False),
    "sparse full": _sparse(6, 8, 3, density=1.0),
    "sparse grouped": _sparse(6, 8, 3, groups=2, padding=1),
    "sparse same": _sparse(6, 8, 2, padding="same"),
    "blocks of 4": gs.SparseConv2d(6, 8, 3, padding=1, connectivity=gs.Connectivity.from_mask(_BLOCKS)),
    "transposed": nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1),
    "transposed grouped": nn.ConvTranspose2d(6, 4, 3, groups=2, dilation=2),
    "transposed apart": nn.ConvTranspose2d(6, 4, 2, stride=2),
    "batch norm": _moved(nn.BatchNorm2d(6)),
    "instance norm": _moved(nn.InstanceNorm2d(6, affine=True)),
    "group norm": _moved(nn.GroupNorm(3, 6)),
    "layer norm": _moved(nn.LayerNorm(8)),
    "layer norm of images": _moved(nn.LayerNorm([6, 9, 8])),
    "prelu": nn.PReLU(6),
    "conv, norm, relu": nn.Sequential(nn.Conv2d(6, 8, 3), _moved(nn.BatchNorm2d(8)), nn.ReLU()),
    "norm, conv": nn.Sequential(_moved(nn.BatchNorm2d(6)), nn.Conv2d(6, 8, 3, groups=2), nn.Hardswish()),
    "norm, padded conv": nn.Sequential(_moved(nn.BatchNorm2d(6)), nn.Conv2d(6, 8, 3, padding=1)),
    "norm, sparse conv": nn.Sequential(
        _moved(nn.BatchNorm2d(6)), _sparse(6, 8, 3), _moved(nn.BatchNorm2d(8)), nn.ReLU6()
    ),
    "norm, relu, conv": nn.Sequential(_moved(nn.BatchNorm2d(6)), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1)),
    "norm, linear": nn.Sequential(
        _moved(nn.BatchNorm2d(6)), nn.Flatten(), nn.Linear(432, 5), _moved(nn.BatchNorm1d(5))
    ),
    "norm after transposed": nn.Sequential(nn.ConvTranspose2d(6, 4, 2, stride=2), _moved(nn.BatchNorm2d(4)), nn.ReLU()),
    "average, points": nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(6, 3, 1), nn.ReLU()),
    "conv of everything": nn.Sequential(nn.Conv2d(6, 8, (9, 8)), _moved(nn.BatchNorm2d(8)), nn.ReLU(), nn.Flatten()),
    "padded conv": nn.Sequential(nn.ZeroPad2d((0, 1, 2, 1)), nn.Conv2d(6, 8, 3, stride=2)),
    "linear on rows": nn.Sequential(nn.Linear(8, 5), nn.GELU(), nn.Linear(5, 3)),
    "residual": Of(lambda x, f, g: (x + f(x).relu() + g(x)).relu(), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)),
    "shared": Of(lambda x, f: f(f(x) + x) + x, nn.Conv2d(6, 6, 3, padding=1)),
    "gate": Of(lambda x, f: x * f(x.mean((2, 3))).sigmoid()[:, :, None, None], nn.Linear(6, 6)),
    "channels last": Of(
        lambda x, n, f, g: x + g(F.gelu(f(n(x.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2) * 0.3,
        _moved(nn.LayerNorm(6)),
        nn.Linear(6, 10),
        nn.Linear(10, 6),
    ),
    "tokens": Of(
        lambda x, n, f: f(n(x.flatten(2).transpose(1, 2).contiguous())).softmax(-1),
        _moved(nn.LayerNorm(6)),
        nn.Linear(6, 4),
    ),
    "dense block": Of(
        lambda x, f, g, h: torch.cat([x.relu(), (y := f(x.relu())), g(torch.cat([x.relu(), y], 1))], 1) + h(x),
        nn.Conv2d(6, 3, 3, padding=1),
        nn.Conv2d(9, 3, 1),
        nn.Conv2d(6, 12, 1),
    ),
    "growing": Of(
        lambda x, f, g, h: h(torch.cat([x := x.relu(), y := f(x), g(torch.cat([x, y], 1))], 1)),
        nn.Conv2d(6, 3, 3, padding=1),
        nn.Conv2d(9, 3, 1),
        nn.Conv2d(12, 2, 3),
    ),
    "line": nn.Sequential(nn.Flatten(2), nn.Conv1d(6, 4, 3, padding=1, stride=2), _moved(nn.BatchNorm1d(4))),
}
ZOO: dict[str, nn.Module] = {**{name: Of(f) for name, f in FUNCTIONS.items()}, **LAYERS}
