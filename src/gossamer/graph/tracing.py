"""What a model computes, as the list of PyTorch operators it calls: run once on tensors without data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Inputs = Tensor | Sequence[Tensor] | Sequence[int]


@dataclass(frozen=True)
class Call:
    """One operator call: what went in, what came out, and the name of the module it happened in."""

    operator: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    module: str
    given: tuple[Any, ...] = ()  # what that module was called with

    @property
    def name(self) -> str:
        """The operator without its overload: "aten.add"."""
        return str(self.operator.overloadpacket)

    @property
    def inputs(self) -> list[Tensor]:
        return [t for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)]

    @property
    def outputs(self) -> list[Tensor]:
        return [t for t in tree_leaves(self.output) if isinstance(t, Tensor)]


@dataclass(frozen=True)
class Trace:
    """The operator calls of one forward pass. Tensors are known by identity; `parameters` names those of the model."""

    calls: list[Call]
    inputs: list[Tensor]
    outputs: list[Tensor]
    parameters: dict[int, str] = field(repr=False)
    alive: list[Tensor] = field(repr=False)  # keeps every identity unique while the trace lives

    def parameter(self, tensor: Tensor) -> str | None:
        """The name of the model's parameter or buffer that this tensor is."""
        return self.parameters.get(id(tensor))


def trace(model: nn.Module, example_inputs: Inputs, training: bool = False) -> Trace:
    """Record one forward pass, without allocating or computing anything.

    `example_inputs` is a tensor, several in a tuple, or the (channels, height, width) of one image. With `training` the
    pass is one of training, batch of two (so auxiliary heads are seen). Raises ValueError when the model does not run
    on such inputs; the model is left as it was.
    """
    recorder = _Recorder()
    modes = {module: module.training for module in model.modules()}
    with FakeTensorMode(allow_non_fake_inputs=True) as fakes, torch.no_grad():
        state: dict[str, Tensor] = {
            name: fakes.from_tensor(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())
        }
        device = next((t.device for t in state.values()), torch.device("cpu"))
        own = next((t.dtype for t in state.values() if t.is_floating_point()), torch.get_default_dtype())
        inputs = [
            torch.empty((max(2, shape[0]), *shape[1:]) if training else shape, dtype=dtype, device=device)
            for shape, dtype in _shapes(example_inputs, own)
        ]
        try:
            model.train(training)
            with _named(model, recorder.stack), recorder:
                output = torch.func.functional_call(model, state, tuple(inputs))
        except Exception as error:  # whatever the model's own code raises, the reader needs the shapes it happened with
            shapes = ", ".join(str(list(t.shape)) for t in inputs)
            where = f" in {recorder.stack[-1][0]!r}" if recorder.stack[-1][0] else ""
            raise ValueError(f"the model does not run on inputs of shape {shapes}{where}: {error}") from error
        finally:
            for module, mode in modes.items():
                module.training = mode
    outputs = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
    names: dict[int, str] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), name)
    return Trace(recorder.calls, inputs, outputs, names, [*state.values(), *inputs])


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.stack: list[tuple[str, tuple[Any, ...]]] = [("", ())]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if any(isinstance(t, Tensor) for t in tree_leaves(output)):
            self.calls.append(Call(func, args, kwargs or {}, output, *self.stack[-1]))
        return output


@contextmanager
def _named(model: nn.Module, stack: list[tuple[str, tuple[Any, ...]]]) -> Iterator[None]:
    """Keep on `stack` the names and arguments of the modules whose forward is running."""
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda _, given, name=name: stack.append((name, given))))
        hooks.append(module.register_forward_hook(lambda *_: (stack.pop(), None)[1]))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _shapes(example_inputs: Inputs, default: torch.dtype) -> list[tuple[tuple[int, ...], torch.dtype]]:
    given: list[Any] = [example_inputs] if isinstance(example_inputs, Tensor) else list(example_inputs)
    if given and all(isinstance(t, Tensor) for t in given):
        return [(tuple(t.shape), t.dtype) for t in given]
    if given and all(isinstance(n, int) and n > 0 for n in given):
        return [((1, *given) if len(given) < 4 else tuple(given), default)]
    raise TypeError(
        "example inputs must be a tensor, a tuple of tensors, or the (channels, height, width) of one image, "
        f"got {example_inputs!r}"
    )
