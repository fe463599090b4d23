"""From a PyTorch model to a graph, through `torch.export`."""

from __future__ import annotations

import copy
import logging
import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_map

import gossamer.kernels  # noqa: F401  (the operators of sparse layers)
from gossamer.engine.ir import Graph, Port, Value
from gossamer.engine.operators import TABLE
from gossamer.engine.views import Builder, MissingError, Seen, canonical, fresh
from gossamer.graph.tracing import trace

Inputs = Tensor | Sequence[Tensor] | Sequence[int] | Mapping[str, Tensor]


def capture(model: nn.Module, example_inputs: Inputs) -> Graph:
    """The evaluation of `model` on one image of the examples' shapes, as a graph.

    `example_inputs` is a tensor, several in a tuple or a dict of keyword arguments, or one image's (channels, height, width);
    their first dimension is the batch. The model is left as it was. Raises ValueError with one sentence that names the layer
    and the operator for what a program cannot do, and for a model that `torch.export` cannot take.
    """
    args, kwargs = _examples(example_inputs)
    evaluating = _evaluating_copy(model)
    graph = _Capture(_export(evaluating, args, kwargs)).graph()
    _check_batch(graph, evaluating, example_inputs)
    return graph


def _check_batch(graph: Graph, model: nn.Module, example_inputs: Inputs) -> None:
    """Raise where a batch is more than its images: a graph is of one, and would say something else."""
    batch = batch_of(example_inputs)
    if batch == 1:
        return
    whole = [tuple(t.shape) for t in trace(model, example_inputs).outputs]
    for shape, port in zip(whole, graph.outputs, strict=True):
        if shape != (batch, *port.shape):
            raise ValueError(
                f"the model mixes the images of a batch: {batch} give a tensor of shape {list(shape)}, and one gives "
                f"{[1, *port.shape]}; an example of one image makes a program for single images"
            )


# -- examples ----------------------------------------------------------------------------------------------------------


def batch_of(example_inputs: Inputs) -> int:
    """How many images the examples hold."""
    args, kwargs = _given(example_inputs)
    return next(iter([*args, *kwargs.values()])).shape[0]


def _given(example_inputs: Inputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Tensor] = {}
    if isinstance(example_inputs, Mapping):
        kwargs = dict(example_inputs)
    elif isinstance(example_inputs, Tensor):
        args = (example_inputs,)
    else:
        args = tuple(example_inputs)
        if args and all(isinstance(n, int) and n > 0 for n in args):
            args = (torch.zeros(1, *args) if len(args) < 4 else torch.zeros(args),)
    tensors = [*args, *kwargs.values()]
    if not tensors or not all(isinstance(t, Tensor) for t in tensors):
        raise TypeError(
            "example inputs must be a tensor, a tuple or dict of tensors, or the (channels, height, width) of one image, "
            f"got {example_inputs!r}"
        )
    return args, kwargs


def _examples(example_inputs: Inputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """One image of each example, without its content."""
    args, kwargs = _given(example_inputs)
    tensors = [*args, *kwargs.values()]
    if any(t.dim() < 2 or t.numel() == 0 for t in tensors) or len({t.shape[0] for t in tensors}) != 1:
        shapes = ", ".join(str(list(t.shape)) for t in tensors)
        raise ValueError(f"the inputs' first dimension must be one batch for all, got shapes {shapes}")
    wrong = next((t.dtype for t in tensors if t.dtype != torch.float32), None)
    if wrong is not None:
        raise ValueError(f"a program takes float32 inputs, got {wrong}")
    one = {id(t): torch.zeros(1, *t.shape[1:]) for t in tensors}
    return tuple(one[id(t)] for t in args), {name: one[id(t)] for name, t in kwargs.items()}


# -- export ------------------------------------------------------------------------------------------------------------


def _evaluating_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode with the same tensors, so that nothing that runs can touch the model itself."""
    state = [*model.parameters(), *model.buffers()]
    wrong = next((t for t in state if t.is_meta), None)
    if wrong is not None:
        raise ValueError("the model's weights are on the meta device: they have no values to compile")
    try:
        return copy.deepcopy(model, {id(t): t for t in state}).eval()
    except Exception as error:  # whatever a module keeps: a lock, a file, an activation with a gradient
        raise ValueError(f"the model cannot be copied: {str(error).splitlines()[0]}") from error


def _export(model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> torch.export.ExportedProgram:
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    args, kwargs = tree_map(lambda t: t.to(device), (args, kwargs))
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(model, args, kwargs)
    except Exception as error:  # whatever the model's own code or PyTorch raises
        shapes = ", ".join(str(list(t.shape)) for t in [*args, *kwargs.values()])
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"torch.export does not take this model on inputs of shape {shapes}: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch's own remarks are not for the reader of one sentence."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# -- from its graph to ours --------------------------------------------------------------------------------------------


class _Capture:
    """Walks over an exported graph; `known` holds what each node is: Seen, a constant tensor, or lists of these."""

    def __init__(self, exported: torch.export.ExportedProgram) -> None:
        self.exported = exported
        self.builder = Builder()
        self.known: dict[fx.Node, Any] = {}
        self.inputs: list[Port] = []
        nodes = list(exported.graph.nodes)
        self.last = {user: at for at, node in enumerate(nodes) for user in node.all_input_nodes}
        self.nodes = nodes

    def graph(self) -> Graph:
        constants = self._constants()
        for at, node in enumerate(self.nodes):
            if node.op == "placeholder":
                self.known[node] = constants[node.name] if node.name in constants else self._input(node)
            elif node.op == "get_attr":
                self.known[node] = operator.attrgetter(node.target)(self.exported.graph_module)
            elif node.op == "call_function":
                self.known[node] = self._call(node, at)
        outputs, structure = self._outputs()
        made = self.builder
        return Graph(tuple(self.inputs), tuple(outputs), tuple(made.operations), made.constants, structure)

    def _constants(self) -> dict[str, Any]:
        signature, exported = self.exported.graph_signature, self.exported
        state = {**exported.state_dict, **exported.constants}
        names = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        return {name: state[target].detach().cpu() for name, target in names.items()}

    def _input(self, node: fx.Node) -> Seen:
        shape = tuple(node.meta["val"].shape)
        value = self.builder.name(canonical(shape))
        self.inputs.append(Port(node.name, value, shape[1:]))
        return fresh(value, shape)

    def _outputs(self) -> tuple[list[Port], Any]:
        signature = self.exported.graph_signature
        if signature.buffers_to_mutate:
            changed = next(iter(signature.buffers_to_mutate.values()))
            raise ValueError(f"the model changes its buffer {changed!r} when it runs, and a program keeps no state")
        returned: Any = self.nodes[-1].args[0]
        flat = [self._known(n) for n in returned]
        ports: list[Port] = []
        leaves = [self._leaf(leaf, ports) for leaf in flat]
        if not ports:
            raise ValueError("the model returns no tensor that depends on its inputs")
        spec = self.exported.call_spec.out_spec
        structure = _structure(torch.utils._pytree.tree_unflatten(leaves, spec))
        return ports, structure

    def _leaf(self, leaf: Any, ports: list[Port]) -> Any:
        if leaf is None:
            return _Leaf(None)
        if not isinstance(leaf, Seen):
            raise ValueError(f"the model returns {type(leaf).__name__}s that do not depend on its inputs")
        if leaf.shape[:1] != (1,):
            raise ValueError(
                f"the model returns a tensor whose first dimension is not the batch: {list(leaf.shape)} for one image"
            )
        value = leaf.value if leaf.packed and leaf.whole else self.builder.planes(leaf)
        if value in [p.value for p in self.inputs] or value not in {o.output for o in self.builder.operations}:
            value = self.builder.emit("affine", [value], value.shape)
        ports.append(Port(f"output{len(ports)}" if ports else "output", value, leaf.shape[1:]))
        return _Leaf(len(ports) - 1)

    # -- one call ---------------------------------------------------------------------------------------------------------

    def _call(self, node: fx.Node, at: int) -> Any:
        target: Any = node.target
        given: Any = fx.node.map_aggregate((node.args, node.kwargs), self._known)
        args, kwargs = given
        if target is operator.getitem:
            return args[0][args[1]]
        leaves = tree_flatten((args, kwargs), is_leaf=lambda v: isinstance(v, Seen))[0]
        if not any(isinstance(v, Seen) for v in leaves):
            with torch.no_grad():
                return target(*args, **kwargs) if not str(target).startswith("aten._assert") else None
        name = _name(target)
        if name.startswith(("_assert", "sym_constrain")):
            return None
        self.builder.layer = _layer(node)
        values = _positional(target, args, kwargs)
        in_place = _is_in_place(target)
        handler = TABLE.get(name) or TABLE.get(name.split(".")[0])
        try:
            if handler is None:
                raise MissingError("")
            result = handler(self.builder, *values)
            if name == "contiguous" or (name == "reshape" and not _aliases(node)):
                result = result if _aliases(node) else result.detached()
            if in_place:
                result = self._written(node, values[0], result, at)
        except MissingError as reason:
            where = f"layer {self.builder.layer!r}" if self.builder.layer else "the model itself"
            raise ValueError(f"a program has no {name.split('.')[0]} {reason}".rstrip() + f" (in {where})") from None
        return result

    def _known(self, argument: Any) -> Any:
        return self.known[argument] if isinstance(argument, fx.Node) else argument

    def _written(self, node: fx.Node, old: Any, new: Seen, at: int) -> Seen:
        """What every tensor of a storage is after `old` was overwritten with `new`: those that are read later see it."""
        if not isinstance(old, Seen):
            raise MissingError("in place on a constant")
        new = Seen(new.value, new.view, old.storage)
        base: Any = None
        if old.whole and new.value.shape == old.value.shape and _same_view(new.view, old.view):
            base = new.value

        def after(known: Any) -> Any:
            nonlocal base
            if not isinstance(known, Seen) or known.storage != old.storage or known.value is new.value:
                return known
            if _same_view(known.view, old.view):
                return new
            if base is None:
                base = self._overwritten(old, new)
            return Seen(base, known.view, new.storage)

        for other, known in list(self.known.items()):
            if self.last.get(other, -1) > at:
                several = isinstance(known, (list, tuple))
                self.known[other] = type(known)(map(after, known)) if several else after(known)
        return new if base is None else Seen(base, old.view, old.storage)

    def _overwritten(self, old: Seen, new: Seen) -> Value:
        """The value that `old` looks at some channels of, with those of `new` instead."""
        c, h, w = old.value.shape
        first, rest = divmod(int(old.view.storage_offset()), h * w)
        channels, more = divmod(old.view.numel(), h * w)
        if not old.packed or rest or more:
            raise MissingError("in place on rows or columns of a tensor that is read again")
        b, end = self.builder, first + channels
        parts = [b.planes(new, (channels, h, w))]
        if first:
            parts.insert(0, b.emit("slice", [old.value], (first, h, w), {"first": 0}))
        if end < c:
            parts.append(b.emit("slice", [old.value], (c - end, h, w), {"first": end}))
        return b.emit("concat", parts, (c, h, w), {"axis": 0})


class _Leaf:
    """The number of an output, where it stood in what the model returned; none for None."""

    def __init__(self, number: int | None) -> None:
        self.number = number


def _structure(returned: Any) -> Any:
    if isinstance(returned, _Leaf):
        return {"none": None} if returned.number is None else {"output": returned.number}
    if isinstance(returned, Mapping):
        return {"dict": {str(k): _structure(v) for k, v in returned.items()}}
    if isinstance(returned, list):
        return {"list": [_structure(v) for v in returned]}
    if isinstance(returned, tuple):
        return {"tuple": [_structure(v) for v in returned]}
    raise ValueError(f"a program returns tensors, tuples, lists and dicts, and the model a {type(returned).__name__}")


def _name(target: Any) -> str:
    """`add.Tensor` for aten.add_.Tensor; without the overload where it is the default one."""
    space, name, overload = str(target).split(".")
    name = name[:-1] if name.endswith("_") else name
    name = name if space == "aten" else f"{space}.{name}"
    return name if overload == "default" else f"{name}.{overload}"


def _is_in_place(target: Any) -> bool:
    first = target._schema.arguments[:1]
    return bool(first) and first[0].alias_info is not None and first[0].alias_info.is_write


def _layer(node: fx.Node) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0] if stack else ""


def _positional(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """All arguments in the order of the schema, those not given by their defaults."""
    values = list(args)
    for argument in target._schema.arguments[len(args) :]:
        values.append(kwargs.get(argument.name, argument.default_value))
    return values


def _aliases(node: fx.Node) -> bool:
    """Whether PyTorch's own result shares the memory of the input."""
    given, made = node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    if _name(node.target) == "contiguous":
        return bool(given.is_contiguous())
    try:
        given.view(made.shape)
    except (RuntimeError, ValueError):
        return False
    return True


def _same_view(one: Tensor, two: Tensor) -> bool:
    return (one.shape, one.stride(), one.storage_offset()) == (two.shape, two.stride(), two.storage_offset())
