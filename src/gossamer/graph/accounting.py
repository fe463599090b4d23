"""What a model costs: params and multiply-adds, by layer and in total, as the paper counts them (Table 1, footnote 1)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from gossamer.graph.tracing import Call, Inputs, Trace, trace
from gossamer.graph.uses import Use, Uses, madds
from gossamer.layers import SparseConv2d


@dataclass(frozen=True)
class LayerCost:
    """One module with weights: a convolution, linear or recurrent layer. `params` are its weights, `madds` its multiply-adds
    for one image."""

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
    product_madds: int  # of products of two activations, as in attention: no weights
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
        if self.product_madds:
            lines.append(f"{'products of activations':<48} {'':>13} {self.product_madds:>16,}")
        lines.append(f"{'classifier':<48} {self.classifier_params:>13,} {self.classifier_madds:>16,}")
        lines.append(f"{'biases':<48} {self.biases:>13,}\n{'normalisation and other':<48} {self.norms:>13,}")
        return "\n".join(lines)


def count(model: nn.Module, example_inputs: Inputs | None = None) -> Cost:
    """Params and multiply-adds of any model, without computing or allocating anything.

    `example_inputs` is the (channels, height, width) of one image, a tensor, or the model's arguments in a tuple or a dict;
    by default the model's own `input_shape`. Multiply-adds are those of one example, by PyTorch's own FLOP formulas:
    where the tensors among the inputs that are longer than one along their first axis are equally long there, and twice
    that length makes the model do the same operations twice as large (or no larger), it is the batch; else the inputs
    are one example. The classifier is the layer whose output, at most pooled or activated, is the model's: the paper
    leaves it out.
    """
    if example_inputs is None:
        example_inputs = getattr(model, "input_shape", None)
        if example_inputs is None:
            raise ValueError("count needs the (channels, height, width) of an image: this model has no input_shape")
    recorded = trace(model, example_inputs)
    uses = Uses.of(recorded)
    work = _work(recorded, model, example_inputs)
    modules = dict(model.named_modules(remove_duplicate=False))
    last = {id(uses.calls[call].weight) for call in _classifiers(recorded, uses)}
    layers: dict[tuple[str, bool], list[Use]] = {}
    for use in uses.calls.values():
        layers.setdefault((use.name, id(use.weight) in last), []).append(use)
    counted: set[int] = set()
    costs = [
        _cost(
            name or recorded.parameter(calls[0].weight) or "weight", classifier, calls, work, modules.get(name), counted
        )
        for (name, classifier), calls in layers.items()
    ]
    products = sum(done for call, done in work.items() if call not in uses.calls)
    return _total(costs, sum(p.numel() for p in model.parameters()), products)


def _work(recorded: Trace, model: nn.Module, example_inputs: Inputs) -> dict[int, int]:
    """The multiply-adds of each call, by identity, for one example."""
    work = {id(call): done for call in recorded.calls if (done := madds(call))}
    sizes = {t.shape[0] for t in recorded.inputs if t.dim()} - {1}
    if len(sizes) != 1:
        return work
    try:
        twice = [done for call in trace(model, example_inputs, times=2).calls if (done := madds(call))]
    except ValueError:
        return work
    growth = [after - before for after, before in zip(twice, work.values(), strict=False)]
    if len(twice) != len(work) or any(more not in (0, done) for more, done in zip(growth, work.values(), strict=True)):
        return work
    return {call: done // max(sizes) if more else done for (call, done), more in zip(work.items(), growth, strict=True)}


def _cost(
    name: str, classifier: bool, uses: list[Use], work: dict[int, int], module: nn.Module | None, counted: set[int]
) -> LayerCost:
    """All uses of the weights of one module; what was `counted` before is another module's."""
    params = 0
    for use in uses:  # a weight that is computed has no more params than numbers, nor than what it is computed from
        made_of = {key: t.numel() for key, t in use.learnt.items() if key not in counted}
        counted.update(made_of)
        params += sum(made_of.values()) if id(use.weight) in made_of else min(use.weight.numel(), sum(made_of.values()))
    vectors = {id(p): p.numel() for p in module.parameters(recurse=False) if p.dim() == 1} if module is not None else {}
    bias = sum(numel for key, numel in vectors.items() if key not in counted)
    counted.update(vectors)
    return LayerCost(
        name,
        uses[0].kind,
        params,
        sum(work.get(id(use.call), 0) for use in uses),
        bias,
        tuple(uses[-1].call.output.shape[1:]),
        module.density if isinstance(module, SparseConv2d) else 1.0,
        classifier,
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


def _total(layers: list[LayerCost], learnt: int, products: int) -> Cost:
    def of(kind: str, classifier: bool = False) -> tuple[int, int]:
        chosen = [la for la in layers if la.classifier == classifier and (classifier or la.kind == kind)]
        return sum(la.params for la in chosen), sum(la.madds for la in chosen)

    convolutions, linear, classifier = of("conv"), of("linear"), of("", True)
    biases = sum(la.bias for la in layers)
    weights = convolutions[0] + linear[0] + classifier[0]
    return Cost(*convolutions, *linear, *classifier, biases, learnt - weights - biases, products, layers)
