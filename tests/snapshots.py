"""Everything that a module holds, written down, so that two moments can be compared bit for bit."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Every attribute of every module by its path, shared modules at each of their places."""
    return {
        f"{name}.{key}": _frozen(value)
        for name, module in model.named_modules(remove_duplicate=False)
        for key, value in vars(module).items()
    }


def _frozen(value: Any) -> Any:
    if isinstance(value, Tensor):
        content = value.detach().numpy().tobytes()
        return type(value), id(value), value.requires_grad, value.shape, value._version, hash(content)
    if isinstance(value, dict):
        return id(value), [(key, _frozen(v)) for key, v in value.items()]
    if isinstance(value, list | tuple):
        return id(value), [_frozen(v) for v in value]
    if isinstance(value, set):
        return id(value), sorted(map(repr, value))
    return value if isinstance(value, int | float | str | None) else id(value)
