"""Which call of a trace is a layer, with which weight: asked by accounting, propagation and whoever times layers."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from gossamer.graph.tracing import Call, Trace

# Where an operator has its input, its weight and its bias.
_CONVOLUTIONS: dict[str, tuple[int, int, int | None]] = {
    "aten.convolution": (0, 1, 2),
    "gossamer.sparse_conv2d": (0, 1, None),
}
_PRODUCTS: dict[str, tuple[int, int, int | None]] = {
    "aten.addmm": (1, 2, 0),
    "aten.mm": (0, 1, None),
    "aten.linear": (0, 1, 2),
    "aten.baddbmm": (1, 2, 0),
    "aten.bmm": (0, 1, None),
}
_SAME_VALUES = frozenset(
    """_to_copy _unsafe_view alias clone contiguous detach expand permute reshape squeeze t transpose unsqueeze
    view""".split()
)
_PARTS = frozenset("narrow select slice split split_with_sizes unbind unsafe_split unsafe_split_with_sizes".split())


@dataclass(frozen=True)
class Use:
    """One call of a convolution ("conv") or of a product with a weight ("linear").

    `weight` is the parameter itself where the operator multiplies with one, however it lies in memory, or with a part of
    one; else what the model computed from its parameters. `whole` says that it is the parameter as the layer stores it:
    outputs first, all of it.
    """

    call: Call
    kind: str
    name: str  # of the module whose weight it is
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    whole: bool
    learnt: dict[int, Tensor]  # the parameters that the weight is made of, by identity

    @property
    def sparse(self) -> bool:
        return self.call.operator.namespace == "gossamer"

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution."""
        return self.call.name == "aten.convolution" and bool(self.call.args[6])

    @property
    def groups(self) -> int:
        position = 7 if self.sparse else 8
        return self.call.args[position] if self.kind == "conv" and len(self.call.args) > position else 1


@dataclass
class Uses:
    """All uses of a trace, in the order of computation, and `weights`: the tensors, by identity, that are views of a
    layer's weight on their way into the operator (a transposition, say), each with its parameter."""

    calls: dict[int, Use] = field(default_factory=dict)  # by the identity of the call
    weights: dict[int, Tensor] = field(default_factory=dict)

    def __getitem__(self, call: Call) -> Use:
        return self.calls[id(call)]

    def get(self, call: Call) -> Use | None:
        return self.calls.get(id(call))

    @classmethod
    def of(cls, trace: Trace) -> Uses:
        uses, origins = cls(), _Origins(trace)
        for call in trace.calls:
            if call.name in _CONVOLUTIONS or call.name in _PRODUCTS:
                origins.note_use(uses, call)
            origins.follow(call)
        return uses


def madds(call: Call) -> int:
    """The multiply-adds of a call by PyTorch's own FLOP formulas; 0 for what multiplies no tensors with each other."""
    if call.name == "aten._scaled_dot_product_flash_attention_for_cpu":
        return int(sdpa_flop_count(*(t.shape for t in call.args[:3]))) // 2
    formula = flop_registry.get(call.operator.overloadpacket)
    return int(formula(*call.args, **call.kwargs, out_val=call.output)) // 2 if formula is not None else 0


@dataclass(frozen=True)
class _View:
    """A tensor that holds what a parameter holds: seen through `base`, all of it or a part, a matrix turned or not."""

    parameter: Tensor
    base: Tensor | None
    whole: bool
    turned: bool


class _Origins:
    """What tensors are made of: data of the inputs, or parameters alone, and then which view of which one."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.data = {id(t) for t in trace.inputs}
        self.views: dict[int, _View] = {}
        self.parts: dict[int, dict[int, Tensor]] = {}  # the parameters that tensors without data are made of

    def follow(self, call: Call) -> None:
        inputs = call.inputs
        if any(id(t) in self.data for t in inputs):
            self.data.update(id(t) for t in call.outputs)
        elif made_of := {key: t for tensor in inputs for key, t in self.learnt(tensor).items()}:
            self.parts.update((id(t), made_of) for t in call.outputs)
        name = call.name.partition(".")[2]
        if inputs and (name in _SAME_VALUES or name in _PARTS):
            base = self.view(inputs[0])
            for output in call.outputs if base is not None else ():
                assert base is not None
                whole, turned = base.whole and name in _SAME_VALUES, base.turned != _turns(call)
                self.views.setdefault(id(output), _View(base.parameter, inputs[0], whole, turned))

    def learnt(self, tensor: Tensor) -> dict[int, Tensor]:
        """The parameters that a tensor is made of, by identity; none where data went into it."""
        if id(tensor) in self.data:
            return {}
        return {id(tensor): tensor} if id(tensor) in self.trace.learnt else self.parts.get(id(tensor), {})

    def view(self, tensor: Tensor) -> _View | None:
        """What view of which parameter this is."""
        if self.trace.parameter(tensor) is not None:
            return _View(tensor, None, whole=True, turned=False)
        return self.views.get(id(tensor))

    def note_use(self, uses: Uses, call: Call) -> None:
        places = _CONVOLUTIONS.get(call.name) or _PRODUCTS[call.name]
        left, right = call.args[places[0]], call.args[places[1]]
        bias = call.args[places[2]] if places[2] is not None and len(call.args) > places[2] else None
        convolution = call.name in _CONVOLUTIONS
        operand = right if convolution else self._weight(left, right)
        if operand is None:
            return
        view = self.view(operand)
        label = (view and self.trace.parameter(view.parameter)) or f"{call.module}.weight".lstrip(".")
        outputs_first = convolution or (
            operand is right and view is not None and view.turned != (call.name == "aten.linear")
        )
        uses.calls[id(call)] = Use(
            call,
            "conv" if convolution else "linear",
            label.rpartition(".")[0],
            left if operand is right else right,
            view.parameter if view is not None else operand,
            bias,
            view is not None and view.whole and outputs_first,
            self.learnt(operand),
        )
        while (view := self.views.get(id(operand))) is not None and view.base is not None:
            uses.weights[id(operand)] = view.parameter
            operand = view.base

    def _weight(self, left: Tensor, right: Tensor) -> Tensor | None:
        """Which factor is a weight: a parameter of several axes, or the only one that no data went into."""
        for factor in (right, left):
            if (view := self.view(factor)) is not None and view.parameter.dim() > 1:
                return factor
        fixed = [factor for factor in (right, left) if id(factor) not in self.data]
        return fixed[0] if len(fixed) == 1 else None


def _turns(call: Call) -> bool:
    """Whether the call exchanges the two axes of a matrix."""
    name = call.name.partition(".")[2]
    if name not in ("t", "transpose", "permute") or call.args[0].dim() != 2:
        return False
    if name == "permute":
        return [a % 2 for a in call.args[1]] == [1, 0]
    return name == "t" or (call.args[1] - call.args[2]) % 2 == 1
