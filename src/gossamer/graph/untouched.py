"""A model that runs only to be watched stays as it was, whatever its own code writes down while it runs."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

_NO_STATE = (Tensor, str, bytes, int, float, complex, type, ModuleType, type(None))
_MISSING = object()


@contextmanager
def untouched(model: nn.Module, stand_ins: Mapping[int, Tensor]) -> Iterator[None]:
    """Within the context tensors of the model are replaced by their `stand_ins` (by identity), wherever it keeps them.

    Afterwards every attribute, list, dict and set that the model, its modules, hooks and other objects hold is what it
    was: parameters and buffers, caches, counters, modes, hooks.
    """
    saved = _reachable(model)
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


def _reachable(model: nn.Module) -> list[tuple[Any, list[Any]]]:
    """All containers that the model holds, directly or not, with what is in them."""
    saved: list[tuple[Any, list[Any]]] = []
    seen: dict[int, Any] = {}  # keeps every identity unique meanwhile
    waiting: list[Any] = [model]
    while waiting:
        value = waiting.pop()
        if isinstance(value, _NO_STATE) or id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, dict):
            saved.append((value, list(value.items())))
            waiting += value.values()
        elif isinstance(value, list | set | deque):
            saved.append((value, list(value)))
            waiting += value
        elif isinstance(value, CellType):
            saved.append((value, [_content(value)]))
            waiting.append(_content(value))
        elif isinstance(value, tuple):
            waiting += value
        elif isinstance(value, MethodType):
            waiting += (value.__self__, value.__func__)
        elif isinstance(value, functools.partial):
            waiting += (value.func, value.args, value.keywords)
        elif isinstance(value, FunctionType):
            waiting += (value.__closure__, value.__defaults__, value.__kwdefaults__)
        if isinstance(own := getattr(value, "__dict__", None), dict):
            waiting.append(own)
    return saved


def _restore(container: Any, content: list[Any]) -> None:
    if isinstance(container, CellType):
        if _content(container) is not content[0]:
            container.cell_contents = content[0]
        return
    now = list(container.items()) if isinstance(container, dict) else list(container)
    flat = [part for pair in now for part in pair] if isinstance(container, dict) else now
    before = [part for pair in content for part in pair] if isinstance(container, dict) else content
    if len(flat) != len(before) or any(a is not b for a, b in zip(flat, before, strict=True)):
        container.clear()
        container.extend(content) if isinstance(container, list | deque) else container.update(content)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return _MISSING
