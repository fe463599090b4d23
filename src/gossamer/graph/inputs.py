"""Example inputs, as a user gives them: what a model is called with, and the tensors in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map_only

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""A tensor, the arguments in a tuple or list, keyword arguments in a dict, or the shape of one image.

Arguments may hold tensors, lists, dicts, numbers and None. Integers alone are a shape: up to three, such as (channels, height,
width), that of one example without its batch, four or more that of a whole batch.
"""


def arguments(
    given: Inputs, made: Callable[[Tensor | Sequence[int]], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments with what is `made` of each tensor, or of the shape where only that is given.

    Raises TypeError where there is no tensor and no shape.
    """
    if isinstance(given, Tensor):
        given = (given,)
    if isinstance(given, Sequence) and given and all(type(n) is int and n > 0 for n in given):
        return (made((1, *given) if len(given) < 4 else tuple(given)),), {}
    if isinstance(given, Mapping | list | tuple) and tensors(given):
        inputs = tree_map_only(Tensor, made, given)
        return ((), dict(inputs)) if isinstance(given, Mapping) else (tuple(inputs), {})
    raise TypeError(
        "example inputs must be a tensor, a tuple of arguments or a dict of keyword arguments with tensors among them, "
        f"or the (channels, height, width) of one image, got {given!r}"
    )


def tensors(value: Any) -> list[Tensor]:
    """The tensors inside lists, tuples, mappings and dataclasses, in their order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, f.name) for f in dataclasses.fields(value)]
    return [t for part in value for t in tensors(part)] if isinstance(value, list | tuple) else []
