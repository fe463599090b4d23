"""What a model computes, as the list of PyTorch operators it calls: run once on tensors without data."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from gossamer.graph.inputs import Inputs, arguments, tensors
from gossamer.graph.state import untouched

__all__ = ["Call", "Inputs", "Trace", "trace"]


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
        return tensors([*self.args, self.kwargs])

    @property
    def outputs(self) -> list[Tensor]:
        return tensors(self.output)


@dataclass(frozen=True)
class Trace:
    """The operator calls of one forward pass. Tensors are known by identity; `parameters` names those of the model."""

    calls: list[Call]
    inputs: list[Tensor]
    outputs: list[Tensor]
    parameters: dict[int, str] = field(repr=False)
    learnt: frozenset[int] = field(repr=False)  # which of these are parameters, not buffers
    alive: list[Tensor] = field(repr=False)  # keeps every identity unique while the trace lives

    def parameter(self, tensor: Tensor) -> str | None:
        """The name of the model's parameter or buffer that this tensor is."""
        return self.parameters.get(id(tensor))


def trace(model: nn.Module, example_inputs: Inputs, training: bool = False, times: int = 1) -> Trace:
    """Record one forward pass, without allocating or computing anything.

    `example_inputs` is a tensor, the model's arguments in a tuple, its keyword arguments in a dict, or the (channels,
    height, width) of one image. With `training` the pass is one of training, in batches of two (so auxiliary heads are
    seen); with `times` the first axes longer than one are so many times as long. Attention and recurrent layers are
    recorded as the products they consist of.

    Raises ValueError when the model does not run on such inputs or cannot be run without data, with the reason. The
    model is left as it was, bit for bit, whatever its code keeps.
    """
    _check_traceable(model)
    real = dict((*model.named_parameters(), *model.named_buffers()))
    with FakeTensorMode(allow_non_fake_inputs=True) as fakes, torch.no_grad():
        stand_ins: dict[int, Tensor] = {}
        names: dict[int, str] = {}
        for name, tensor in real.items():
            fake = stand_ins.setdefault(id(tensor), fakes.from_tensor(tensor))
            names.setdefault(id(fake), name)
        learnt = frozenset(id(stand_ins[id(p)]) for p in model.parameters())
        device = next((t.device for t in real.values()), torch.device("cpu"))
        own = next((t.dtype for t in real.values() if t.is_floating_point()), torch.get_default_dtype())

        def like(given: Tensor | Sequence[int]) -> Tensor:
            shape, dtype = (given.shape, given.dtype) if isinstance(given, Tensor) else (given, own)
            first = shape[0] if shape else 1
            length = times * first if first > 1 else 2 if training else first
            return torch.empty((length, *shape[1:]) if shape else (), dtype=dtype, device=device)

        args, kwargs = arguments(example_inputs, like)
        inputs = tensors([*args, kwargs])
        recorder = _Recorder(stand_ins)
        try:
            with untouched(model, stand_ins), _plainly(model), _named(model, recorder.stack), recorder:
                model.train(training)
                output = model(*args, **kwargs)
        except Exception as error:  # whatever the model's own code raises, the reader needs the shapes it happened with
            raise _refusal(error, recorder.stack[-1][0], inputs) from error
    return Trace(recorder.calls, inputs, tensors(output), names, learnt, [*stand_ins.values(), *inputs])


def _check_traceable(model: nn.Module) -> None:
    for name, module in model.named_modules():
        here = repr(name) if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"cannot trace {here}: it is compiled by torch.jit; trace the nn.Module it was made from")
        if any(is_lazy(t) for t in (*module._parameters.values(), *module._buffers.values())):
            raise ValueError(
                f"cannot trace {here}: {type(module).__name__} gets its shape from data; run the model once on an input first"
            )


def _refusal(error: Exception, module: str, inputs: list[Tensor]) -> ValueError:
    """Why a model could not be traced."""
    where = f" in {module!r}" if module else ""
    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        return ValueError(
            f"the model's code{where} depends on the values of its data ({error.func}: an `if` on a tensor, .item(), "
            "a result whose size they decide), and it is traced without any"
        )
    shapes = ", ".join(str(list(t.shape)) for t in inputs)
    return ValueError(f"the model does not run on inputs of shape {shapes}{where}: {error}")


class _Recorder(TorchDispatchMode):
    def __init__(self, stand_ins: dict[int, Tensor]) -> None:
        super().__init__()
        self.stand_ins = stand_ins  # a model may reach its own tensors in ways in which they could not be replaced
        self.calls: list[Call] = []
        self.stack: list[tuple[str, tuple[Any, ...]]] = [("", ())]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Tensor, lambda t: self.stand_ins.get(id(t), t), (args, kwargs or {}))
        output = func(*args, **kwargs)
        if tensors(output):
            self.calls.append(Call(func, args, kwargs, output, *self.stack[-1]))
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


@contextmanager
def _plainly(model: nn.Module) -> Iterator[None]:
    """As the operators that a model is written in, not as the fused ones that stand for several: attention, recurrent layers
    and compiled modules. What PyTorch logs about operators that fail is said by the exception."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled, torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    with ExitStack() as stack:
        if any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            _set(logger, True, False, False)
            yield
        finally:
            _set(logger, *before)


def _set(logger: logging.Logger, silent: bool, fast_attention: bool, mkldnn: bool) -> None:
    logger.disabled = silent
    torch.backends.mha.set_fastpath_enabled(fast_attention)
    torch._C._set_mkldnn_enabled(mkldnn)  # torch.backends.mkldnn.flags would set, and warn of, much else
