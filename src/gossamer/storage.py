"""Models on disk: one safetensors file with packed weights and patterns, a size that grows with the density.

A pattern is stored as the gaps between the flat positions of its connections, in one or two bytes each: 3-6% of the
kernels of a 3x3 layer. Outputs that share their inputs (`Connectivity.block`) share the gaps.
Loading reads tensors and JSON, never code.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gossamer.connectivity import PATTERNS, Connectivity
from gossamer.layers import SparseConv2d, exchange_layers

_FORMAT = "gossamer"  # the one key of the metadata: safetensors writes several in any order
_VERSION = 1


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write every parameter and buffer of a model, atomically: an existing file stays whole until the new one is."""
    path = Path(path)
    sparse = _sparse_layers(model)
    tensors: dict[str, Tensor] = {}
    patterns: dict[str, dict[str, Any]] = {}
    derived = {f"{name}.{part}".lstrip(".") for name in sparse for part in ("indptr", "indices", "_extra_state")}
    for name, value in model.state_dict().items():
        if name not in derived:
            if not isinstance(value, Tensor):
                raise TypeError(f"cannot save {name!r}: only tensors can be stored, got {type(value).__name__}")
            tensors[name] = value.detach().cpu().contiguous()
    for name, layer in sparse.items():
        c = layer.connectivity
        tensors[f"{name}.gaps".lstrip(".")] = torch.from_numpy(pack(c.merged(c.block).positions))
        patterns[name] = {
            "channels": [c.in_channels, c.out_channels, c.groups],
            "connections": c.connections,
            "drawn": [c.pattern, c.seed, c.repaired],
        } | ({"block": c.block} if c.block > 1 else {})
    header = json.dumps({"version": _VERSION, "patterns": patterns}, separators=(",", ":"), sort_keys=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    os.close(handle)
    try:
        save_file(_untied(tensors), part, {_FORMAT: header})
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"could not write {path}: {error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


def load(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Restore a saved model exactly into a freshly built one of the same architecture, in place; returns it.

    A sparse layer takes over the stored pattern, whatever it had; a dense `nn.Conv2d` where the file has a sparse layer
    becomes sparse, and plain pooling and batch normalisation then become Gossamer's. Raises ValueError for a file that
    is truncated, foreign, or of another model, and leaves the model as it was.
    """
    state, patterns = read(path)
    replacements = {name: _prepared(model, name, c, path) for name, c in patterns.items()}
    for name in _sparse_layers(model):
        if name not in patterns:
            raise ValueError(f"{path} does not fit: it has no pattern for the sparse layer {name!r}")
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    for name, layer in replacements.items():
        for part, value in layer.state_dict(prefix=f"{name}.".lstrip(".")).items():
            expected[part] = tuple(value.shape)
    found = {name: tuple(value.shape) for name, value in state.items()}
    if found != expected:
        raise ValueError(f"{path} does not fit this model: {_difference(found, expected)}")
    for name, layer in replacements.items():
        if name:
            model.set_submodule(name, layer)
    if replacements:
        exchange_layers(model, inplace=True)
    target = replacements.get("", model)
    target.load_state_dict(state)
    return target


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Connectivity]]:
    """The state dict and the patterns by layer that a file holds."""
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            if _FORMAT not in metadata:
                raise ValueError(f"{path} was not written by gossamer.save")
            header = json.loads(metadata[_FORMAT])
            if header["version"] != _VERSION:
                raise ValueError(f"{path} has version {header['version']} of the format, this reads {_VERSION}")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        patterns = {}
        for name, entry in header["patterns"].items():
            prefix = f"{name}.".lstrip(".")
            (inputs, outputs, groups), (pattern, seed, repaired) = entry["channels"], entry["drawn"]
            block = entry.get("block", 1)  # outputs to a row of the stored pattern
            if block < 1 or outputs % block or entry["connections"] % block:
                raise ValueError(f"{path} has a damaged pattern: blocks of {block} among {outputs} outputs")
            positions = unpack(state.pop(f"{prefix}gaps").numpy(), entry["connections"] // block)
            rows = Connectivity.from_positions(inputs, outputs // block, positions, groups=groups)
            c = replace(rows.repeated(block), pattern=pattern, seed=seed, repaired=repaired)
            state[f"{prefix}indptr"] = torch.tensor(c.indptr)
            state[f"{prefix}indices"] = torch.tensor(c.indices)
            state[f"{prefix}_extra_state"] = torch.tensor([list(PATTERNS).index(pattern), seed, repaired])
            patterns[name] = c
        return state, patterns
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except (SafetensorError, json.JSONDecodeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error


def pack(positions: np.ndarray) -> np.ndarray:
    """Ascending positions as gaps in uint8 or uint16, whichever is smaller; the largest value means "add and go on"."""
    gaps = np.diff(positions, prepend=-1) - 1
    return min((_packed(gaps, dtype) for dtype in (np.uint8, np.uint16)), key=lambda packed: packed.nbytes)


def _packed(gaps: np.ndarray, dtype: type[np.unsignedinteger[Any]]) -> np.ndarray:
    escape = np.iinfo(dtype).max
    escapes = gaps // escape
    packed = np.full(len(gaps) + int(escapes.sum()), escape, dtype=dtype)
    packed[np.cumsum(escapes + 1) - 1] = gaps % escape
    return packed


def unpack(packed: np.ndarray, connections: int) -> np.ndarray:
    """The inverse of `pack`; ValueError when the number of positions is not the one expected."""
    escape = np.iinfo(packed.dtype).max
    ends = packed != escape
    totals = np.cumsum(packed.astype(np.int64))
    positions = totals[ends] + np.arange(int(ends.sum()))
    if len(positions) != connections or (len(ends) and not ends[-1]):
        raise ValueError(f"a damaged pattern: {len(positions)} connections where {connections} are expected")
    return positions


def _sparse_layers(model: nn.Module) -> dict[str, SparseConv2d]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, SparseConv2d)}


def _prepared(model: nn.Module, name: str, c: Connectivity, path: Any) -> SparseConv2d:
    """The layer that will hold a stored pattern, made from the one the model has at that place."""
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"{path} does not fit: it has a sparse layer {name!r}, this model has no such layer") from None
    if isinstance(layer, SparseConv2d):
        layer = layer.to_dense()
    if type(layer) is not nn.Conv2d:
        raise ValueError(f"{path} does not fit: {name!r} is sparse there, here it is a {type(layer).__name__}")
    try:
        return SparseConv2d.from_dense(layer, c)
    except ValueError as error:
        raise ValueError(f"{path} does not fit at layer {name!r}: {error}") from error


def _untied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share memory are written once for each name, as a state dict has them."""
    seen: set[int] = set()
    return {
        name: t.clone() if t.data_ptr() in seen or seen.add(t.data_ptr()) else t  # type: ignore[func-returns-value]
        for name, t in tensors.items()
    }


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"it lacks {name!r}"
        if name not in expected:
            return f"it has {name!r}, which this model has not"
        if found[name] != expected[name]:
            return f"{name!r} has shape {list(found[name])} in the file, {list(expected[name])} here"
    return "unknown difference"
