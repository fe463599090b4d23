"""What a model costs: params and multiply-adds, by layer and in total, as the paper counts them (Table 1, footnote 1)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from gossamer.graph.tracing import Call, Inputs, Trace, trace
from gossamer.graph.uses import Use, Uses
from gossamer.layers import SparseConv2d


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
    uses = Uses.of(recorded)
    modules = dict(model.named_modules(remove_duplicate=False))
    images = recorded.inputs[0].shape[0] if recorded.inputs[0].dim() in (2, 4) else 1
    last = set(_classifiers(recorded, uses))
    layers: dict[str, list[Use]] = {}
    for use in uses.calls.values():
        layers.setdefault(use.name, []).append(use)
    costs = [_cost(recorded, name, calls, images, modules.get(name), last) for name, calls in layers.items()]
    return _total(costs, sum(p.numel() for p in model.parameters()))


def _cost(
    recorded: Trace, name: str, uses: list[Use], images: int, module: nn.Module | None, last: set[int]
) -> LayerCost:
    """All uses of the weights of one module."""
    weights = {id(use.weight): use.weight.numel() for use in uses}
    biases = {id(use.bias): use.bias.numel() for use in uses if use.bias is not None}
    return LayerCost(
        name or recorded.parameter(uses[0].weight) or "weight",
        uses[0].kind,
        sum(weights.values()),
        sum(use.madds for use in uses) // images,
        sum(biases.values()),
        tuple(uses[-1].call.output.shape[1:]),
        module.density if isinstance(module, SparseConv2d) else 1.0,
        any(id(use.call) in last for use in uses),
    )


def _classifiers(recorded: Trace, uses: Uses) -> Iterable[int]:
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
            if uses.get(maker) is not None:
                found.append(maker)
            elif "norm" in maker.name:
                found.clear()
                break
            else:
                waiting.extend(maker.inputs)
        if len(found) == 1:
            yield id(found[0])


def _total(layers: list[LayerCost], learnt: int) -> Cost:
    def of(kind: str, classifier: bool = False) -> tuple[int, int]:
        chosen = [la for la in layers if la.classifier == classifier and (classifier or la.kind == kind)]
        return sum(la.params for la in chosen), sum(la.madds for la in chosen)

    convolutions, linear, classifier = of("conv"), of("linear"), of("", True)
    biases = sum(la.bias for la in layers)
    weights = convolutions[0] + linear[0] + classifier[0]
    return Cost(*convolutions, *linear, *classifier, biases, learnt - weights - biases, layers)
