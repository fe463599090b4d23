"""What a model costs: params and multiply-adds, by layer and in total, as the paper counts them (Table 1, footnote 1)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from gossamer.graph.tracing import Call, Inputs, Trace, trace


@dataclass(frozen=True)
class LayerCost:
    """One convolution or linear layer. `params` are its weights, `madds` its multiply-adds for one image."""

    name: str
    kind: str  # "conv" | "linear"
    params: int
    madds: int
    bias: int
    output: tuple[int, ...]  # of one image
    density: float
    classifier: bool


@dataclass(frozen=True)
class Cost:
    """`params` and `madds` of the convolutions, classifier left out; everything else beside them.

    Weights count once however often a layer runs, multiply-adds every time; both are of live connections only.
    """

    params: int
    madds: int
    linear_params: int  # of linear layers that are not the classifier
    linear_madds: int
    classifier_params: int
    classifier_madds: int
    biases: int
    norms: int  # weights and biases of normalisation layers, and whatever else is learnt
    layers: list[LayerCost] = field(repr=False)

    def __str__(self) -> str:
        lines = [f"{'layer':<40} {'kind':<7} {'params':>13} {'madds':>16} {'density':>8}  output"]
        for layer in self.layers:
            kind = "class." if layer.classifier else layer.kind
            size = "x".join(map(str, layer.output))
            lines.append(
                f"{layer.name:<40} {kind:<7} {layer.params:>13,} {layer.madds:>16,} {layer.density:>8.4g}  {size}"
            )
        lines.append(f"{'convolutions, classifier left out':<48} {self.params:>13,} {self.madds:>16,}")
        if self.linear_params:
            lines.append(f"{'hidden linear layers':<48} {self.linear_params:>13,} {self.linear_madds:>16,}")
        lines.append(f"{'classifier':<48} {self.classifier_params:>13,} {self.classifier_madds:>16,}")
        lines.append(f"{'biases':<48} {self.biases:>13,}\n{'normalisation and other':<48} {self.norms:>13,}")
        return "\n".join(lines)


def count(model: nn.Module, example_inputs: Inputs | None = None) -> Cost:
    """Params and multiply-adds of any model, without computing or allocating anything.

    `example_inputs` is the (channels, height, width) of one image, or tensors whose shapes are used; by default the
    model's own `input_shape`. The classifier is the layer whose output, at most pooled or activated, is the model's:
    the paper leaves it out.
    """
    if example_inputs is None:
        example_inputs = getattr(model, "input_shape", None)
        if example_inputs is None:
            raise ValueError("count needs the (channels, height, width) of an image: this model has no input_shape")
    recorded = trace(model, example_inputs)
    modules = dict(model.named_modules(remove_duplicate=False))
    images = recorded.inputs[0].shape[0] if recorded.inputs[0].dim() in (2, 4) else 1
    last = set(_classifiers(recorded))
    costs: dict[str, LayerCost] = {}
    for call in recorded.calls:
        weight, bias = layer_weights(recorded, call)
        if weight is None:
            continue
        label = recorded.parameter(weight) or f"{call.module}.weight".lstrip(".")
        name = label.rpartition(".")[0] or label
        positions = call.output.numel() // weight.shape[0] // images
        if call.operator.namespace == "gossamer":
            positions = call.output.shape[2] * call.output.shape[3] * call.output.shape[0] // images
        before = costs.get(name)
        costs[name] = LayerCost(
            name,
            "linear" if weight.dim() == 2 else "conv",
            weight.numel(),
            weight.numel() * positions + (before.madds if before else 0),
            bias.numel() if bias is not None else 0,
            tuple(call.output.shape[1:]),
            _density(modules.get(name)),
            id(call) in last,
        )
    return _total(list(costs.values()), sum(p.numel() for p in model.parameters()))


def layer_weights(recorded: Trace, call: Call) -> tuple[Tensor | None, Tensor | None]:
    """(weight, bias) when the call is a convolution or a linear layer, else (None, None)."""
    name = call.name
    if name in ("aten.convolution", "aten.linear"):
        return call.args[1], call.args[2] if len(call.args) > 2 else None
    if name == "gossamer.sparse_conv2d":
        return call.args[1], None
    if name in ("aten.addmm", "aten.mm"):
        matrix = call.args[2 if name == "aten.addmm" else 1]
        source = _transposed(recorded, matrix)
        return source, call.args[0] if name == "aten.addmm" and source is not None else None
    return None, None


def _transposed(recorded: Trace, matrix: Tensor) -> Tensor | None:
    for call in recorded.calls:
        if call.name in ("aten.t", "aten.transpose", "aten.permute") and call.output is matrix:
            return call.args[0] if recorded.parameter(call.args[0]) else None
    return None


def _classifiers(recorded: Trace) -> Iterable[int]:
    """The layer behind each [n, classes] output, if exactly one layer is: walk back through what is not a layer."""
    makers: dict[int, Call] = {}
    for call in recorded.calls:
        for output in call.outputs:
            makers.setdefault(id(output), call)
    for output in recorded.outputs:
        if output.dim() != 2:
            continue
        found, waiting, seen = [], [output], set()
        while waiting:
            maker = makers.get(id(waiting.pop()))
            if maker is None or id(maker) in seen:
                continue
            seen.add(id(maker))
            if layer_weights(recorded, maker)[0] is not None:
                found.append(maker)
            elif "norm" in maker.name:
                found.clear()
                break
            else:
                waiting.extend(maker.inputs)
        if len(found) == 1:
            yield id(found[0])


def _density(module: Any) -> float:
    connectivity = getattr(module, "connectivity", None)
    return connectivity.density if connectivity is not None else 1.0


def _total(layers: list[LayerCost], learnt: int) -> Cost:
    def of(kind: str, classifier: bool = False) -> tuple[int, int]:
        chosen = [la for la in layers if la.classifier == classifier and (classifier or la.kind == kind)]
        return sum(la.params for la in chosen), sum(la.madds for la in chosen)

    convolutions, linear, classifier = of("conv"), of("linear"), of("", True)
    biases = sum(la.bias for la in layers)
    weights = convolutions[0] + linear[0] + classifier[0]
    return Cost(*convolutions, *linear, *classifier, biases, learnt - weights - biases, layers)
