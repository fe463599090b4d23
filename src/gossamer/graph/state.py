"""Whatever a model holds: left as it was while the model runs only to be watched (`untouched`), or copied (`copied`)."""

from __future__ import annotations

import copy
import functools
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

_PLAIN = (str, bytes, int, float, complex, type, ModuleType, type(None))
_CONTAINERS = (dict, list, set, deque, CellType)
_LOCKS: dict[type, Any] = {type(make()): make for make in (threading.Lock, threading.RLock)}


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, also of a model that holds results of a forward pass (copied without their graph) or locks (made anew).

    Raises ValueError for what else cannot be copied.
    """
    memo: dict[int, Any] = {}
    for value in _held(model):
        if isinstance(value, Tensor) and not value.is_leaf:
            memo[id(value)] = value.detach().clone()
        elif type(value) in _LOCKS:
            memo[id(value)] = _LOCKS[type(value)]()
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"cannot copy this model, because of something that it holds: {error}") from error


@contextmanager
def untouched(model: nn.Module, stand_ins: Mapping[int, Tensor]) -> Iterator[None]:
    """Within the context tensors of the model are replaced by their `stand_ins` (by identity), wherever it keeps them.

    Afterwards every attribute, list, dict and set that the model, its modules, hooks and other objects hold is what it
    was: parameters and buffers, caches, counters, modes, hooks.
    """
    saved = [(value, _content(value)) for value in _held(model) if isinstance(value, _CONTAINERS)]
    try:
        for container, content in saved:
            if isinstance(container, dict):
                container.update({key: stand_ins[id(v)] for key, v in content if id(v) in stand_ins})
            elif isinstance(container, list):
                container[:] = [stand_ins.get(id(v), v) for v in content]
        yield
    finally:
        for container, content in saved:
            _restore(container, content)


def _held(model: nn.Module) -> list[Any]:
    """Everything that the model holds, directly or not, each once: modules and other objects, their attributes, what is in
    containers, and what functions, such as hooks, close over."""
    found: dict[int, Any] = {}
    waiting: list[Any] = [model]
    while waiting:
        value = waiting.pop()
        if isinstance(value, _PLAIN) or id(value) in found:
            continue
        found[id(value)] = value
        if isinstance(value, Tensor):
            continue
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (tuple, *_CONTAINERS)):
            waiting += _content(value)
        elif isinstance(value, MethodType):
            waiting += (value.__self__, value.__func__)
        elif isinstance(value, functools.partial):
            waiting += (value.func, value.args, value.keywords)
        elif isinstance(value, FunctionType):
            waiting += (value.__closure__, value.__defaults__, value.__kwdefaults__)
        if isinstance(own := getattr(value, "__dict__", None), dict):
            waiting.append(own)
    return list(found.values())


def _content(container: Any) -> list[Any]:
    if isinstance(container, CellType):
        try:
            return [container.cell_contents]
        except ValueError:  # a variable that has no value yet
            return []
    return list(container.items()) if isinstance(container, dict) else list(container)


def _restore(container: Any, content: list[Any]) -> None:
    now, before = _content(container), content
    if isinstance(container, dict):
        now, before = ([part for pair in pairs for part in pair] for pairs in (now, before))
    if len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True)):
        return
    if isinstance(container, CellType):
        if content:
            container.cell_contents = content[0]
        else:
            del container.cell_contents
        return
    container.clear()
    if isinstance(container, list | deque):
        container.extend(content)
    else:
        container.update(content)
