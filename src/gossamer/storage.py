"""Models on disk: one safetensors file with packed weights and patterns, a size that grows with the density.

A pattern is stored as the gaps between the flat positions of its connections, in one or two bytes each: 3-6% of the
kernels of a 3x3 layer; outputs that share their inputs (`Connectivity.block`) share the gaps. Loading reads tensors and
JSON, never code, and believes neither: what a file claims is compared with the model before anything of that size is made,
and its content with the digest it was saved with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DataParallel, DistributedDataParallel

from gossamer.connectivity import PATTERNS, Connectivity
from gossamer.files import is_count, parse_json, replacing
from gossamer.layers import SparseConv2d
from gossamer.surgery.reshape import reshape

_FORMAT = "gossamer"  # the one key of the metadata: safetensors writes several in any order
_VERSION = 2  # 1 had no digest and no groups
_DERIVED = ("indptr", "indices", "_extra_state")  # parts of a sparse layer's state that its stored pattern gives

Size = tuple[int, ...]


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write every parameter and buffer of a model, atomically: an existing file stays whole until the new one is.

    Names are those of the model itself, also when it is wrapped by DistributedDataParallel or `torch.compile`. Raises
    TypeError or ValueError for a model that holds what is no tensor, or has no values; OSError when it cannot be written.
    """
    model = _unwrapped(model)
    sparse = _places(model, SparseConv2d)
    tensors: dict[str, Tensor] = {}
    patterns: dict[str, dict[str, Any]] = {}
    derived = {_part(name, part) for name in sparse for part in _DERIVED}
    for name, value in _state(model).items():
        if name not in derived:
            if not isinstance(value, Tensor):
                raise TypeError(f"cannot save {name!r}: only tensors can be stored, got {type(value).__name__}")
            if value.is_meta:
                raise ValueError(f"cannot save {name!r}: it is on the meta device and has no values")
            tensors[name] = value.detach().cpu().contiguous()
    for name, layer in sparse.items():
        c = layer.connectivity
        tensors[_part(name, "gaps")] = torch.from_numpy(pack(c.merged(c.block).positions))
        patterns[name] = {
            "channels": [c.in_channels, c.out_channels, c.groups],
            "connections": c.connections,
            "drawn": [c.pattern, c.seed, c.repaired],
        } | ({"block": c.block} if c.block > 1 else {})
    groups = {name: conv.groups for name, conv in _places(model, _ConvNd).items() if conv.groups > 1}
    header = {"version": _VERSION, "patterns": patterns, "groups": groups}
    header["digest"] = digest(_canonical(header), tensors)
    with replacing(path) as part:
        try:
            save_file(_untied(tensors), part, {_FORMAT: _canonical(header)})
        except SafetensorError as error:
            raise OSError(str(error)) from error


def load(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Restore a saved model exactly into one of the same architecture, in place; returns it.

    A sparse layer stays the object it is and takes over the stored pattern; a dense `nn.Conv2d` where the file has a
    sparse layer becomes sparse, and plain pooling and batch normalisation then become Gossamer's. A model of full width
    takes the widths of a file that holds it thinned, as long as image channels and classes are the same. A model on the
    meta device gets its memory. Names may start with `module.` or hold `_orig_mod.`, in the file and in the model.

    Raises FileNotFoundError, or ValueError for a file that is truncated, damaged, foreign, or of another model, and
    leaves the model as it was.
    """
    root = _unwrapped(model)
    with _opened(path) as file:
        stored = _examined(file, path).named_like(root)
        fit = _Fit(root, stored)
        state, patterns = stored.content(file)
    fit.check_ties(state, patterns)
    layers = {fit.layers[name]: c for name, c in patterns.items()}
    target = reshape(root, layers, fit.sizes, fit.groups)
    complete = {name: state.get(_plain(name), value) for name, value in target.state_dict().items()}
    try:
        target.load_state_dict(complete)
    except RuntimeError as error:  # from a module with a way of loading of its own
        raise ValueError(f"{path} does not fit this model: {' '.join(str(error).split())}") from error
    return model if target is root else target


def digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """A fingerprint (SHA-256) of a text and of the names, types, shapes and values of tensors."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


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


# -- what a file holds, before any of it is believed -------------------------------------------------------------------

_TYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


@dataclass(frozen=True)
class _Pattern:
    """What a file says of the pattern of a sparse layer."""

    in_channels: int
    out_channels: int
    groups: int
    connections: int
    pattern: str
    seed: int
    repaired: int
    block: int  # outputs to a row of the stored gaps

    @classmethod
    def of(cls, entry: Any) -> _Pattern:
        (inputs, outputs, groups), (pattern, seed, repaired) = entry["channels"], entry["drawn"]
        numbers = (inputs, outputs, groups, entry["connections"], repaired)
        if not all(is_count(n) for n in numbers) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
            raise ValueError("a pattern whose numbers are none")
        if pattern not in tuple(PATTERNS):
            raise ValueError("a pattern that was drawn in an unknown way")
        block = entry.get("block", 1)
        if not is_count(block) or block < 1 or outputs % block or entry["connections"] % block:
            raise ValueError("a pattern whose blocks do not divide it")
        return cls(inputs, outputs, groups, entry["connections"], pattern, seed, repaired, block)

    def connectivity(self, gaps: Tensor) -> Connectivity:
        if gaps.dtype not in (torch.uint8, torch.uint16) or gaps.dim() != 1:
            raise ValueError("a damaged pattern: its gaps are no short numbers")
        rows = self.out_channels // self.block
        positions = unpack(gaps.numpy(), self.connections // self.block)
        if len(positions) and positions[-1] >= self.in_channels * rows:
            raise ValueError("a damaged pattern: it has connections of channels that there are not")
        c = Connectivity.from_positions(self.in_channels, rows, positions, groups=self.groups).repeated(self.block)
        return replace(c, pattern=self.pattern, seed=self.seed, repaired=self.repaired)


@dataclass(frozen=True)
class _Stored:
    """The names, sizes and types of the tensors of a file (by the name it has there), its patterns and groups."""

    path: Any
    header: dict[str, Any]
    keys: dict[str, str]  # name -> key in the file
    sizes: dict[str, Size]
    types: dict[str, str]
    patterns: dict[str, _Pattern]
    groups: dict[str, int] | None  # None: the version that did not store them

    def named_like(self, model: nn.Module) -> _Stored:
        """With the names of `model`, which may differ by what wrappers add."""
        prefix = "module."
        if not self.keys or not all(key.startswith(prefix) for key in self.keys):
            return self
        if any(name.startswith(prefix) for name in _state(model)):
            return self

        def bare(names: Mapping[str, Any]) -> dict[str, Any]:
            return {name.removeprefix(prefix): value for name, value in names.items()}

        patterns, groups = (
            {("" if n == "module" else n): v for n, v in bare(part or {}).items()}
            for part in (self.patterns, self.groups)
        )
        return _Stored(
            self.path,
            self.header,
            bare(self.keys),
            bare(self.sizes),
            bare(self.types),
            patterns,
            groups if self.groups is not None else None,
        )

    def content(self, file: Any) -> tuple[dict[str, Tensor], dict[str, Connectivity]]:
        """Tensors and patterns, after they are compared with the digest."""
        try:
            tensors = {key: file.get_tensor(key) for key in self.keys.values()}
            if "digest" in self.header:
                header = {name: value for name, value in self.header.items() if name != "digest"}
                if digest(_canonical(header), tensors) != self.header["digest"]:
                    raise ValueError("its content is not what was saved")
            state = {name: tensors[key] for name, key in self.keys.items()}
            patterns = {n: p.connectivity(state.pop(_part(n, "gaps"))) for n, p in self.patterns.items()}
        except Exception as error:  # what a damaged file can make of a reader is not known
            raise _damaged(self.path, error) from error
        return state, patterns


@contextlib.contextmanager
def _opened(path: Any) -> Iterator[Any]:
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        if not Path(path).is_file():
            raise ValueError("it is no regular file")
        file = safe_open(str(path), "pt")
    except Exception as error:
        raise _damaged(path, error) from error
    with file:
        yield file


def _examined(file: Any, path: Any) -> _Stored:
    """What the header of a file says, when it makes sense in itself."""
    metadata = file.metadata() or {}
    if _FORMAT not in metadata:
        raise ValueError(f"{path} was not written by gossamer.save")
    try:
        header = parse_json(metadata[_FORMAT])
        version = header["version"]
        if version not in (1, _VERSION) or isinstance(version, bool):
            raise _VersionError(f"{path} has version {version!r:.20} of the format, this reads 1 and {_VERSION}")
        keys, sizes, types = {}, {}, {}
        for key in file.keys():  # noqa: SIM118 - not a dict
            part = file.get_slice(key)
            keys[_plain(key)], sizes[_plain(key)], types[_plain(key)] = key, tuple(part.get_shape()), part.get_dtype()
        patterns = {_plain(name): _Pattern.of(entry) for name, entry in header["patterns"].items()}
        lacking = [name for name in patterns if _part(name, "gaps") not in keys]
        if lacking:
            raise ValueError(f"it lacks the pattern of {lacking[0]!r}")
        groups = None
        if version > 1:
            groups = {_plain(name): number for name, number in header["groups"].items()}
            if not all(is_count(number) for number in groups.values()) or not isinstance(header["digest"], str):
                raise ValueError("its header is not one of this version")
    except _VersionError:
        raise
    except Exception as error:  # lists in the place of mappings, and whatever else a file may say
        raise _damaged(path, error) from error
    return _Stored(path, header, keys, sizes, types, patterns, groups)


class _VersionError(ValueError):
    pass


def _damaged(path: Any, error: Exception) -> ValueError:
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return ValueError(f"{path} is damaged or not a safetensors file: {reason[:200]}")


# -- the model beside it -----------------------------------------------------------------------------------------------


class _Fit:
    """How a model must change to hold what a file holds. Raises ValueError when it is another model's."""

    def __init__(self, model: nn.Module, stored: _Stored) -> None:
        self.path = stored.path
        self.layers: dict[str, nn.Module] = {}  # by stored name, those that have a stored pattern
        self.sizes: dict[str, Size] = {}  # by the model's own names, what changes its size
        self.groups: dict[nn.Module, int] = {}
        self.model, self.stored = model, stored
        modules = {_plain(name): module for name, module in model.named_modules(remove_duplicate=False)}
        for name, pattern in stored.patterns.items():
            self.layers[name] = self._sparse(modules, name, pattern)
        drawn = {layer: stored.patterns[name] for name, layer in self.layers.items()}
        self._check_convolutions(modules, drawn)
        self._check_tensors(modules, drawn)

    def check_ties(self, state: Mapping[str, Tensor], patterns: Mapping[str, Connectivity]) -> None:
        """Raise when the model has one tensor or layer where the file has two that differ."""
        first: dict[tuple[Any, ...], str] = {}
        for name, value in _state(self.model).items():
            if name in state and isinstance(value, Tensor) and not value.is_meta and value.numel():
                other = first.setdefault((value.data_ptr(), value.shape, value.stride()), name)
                if other in state and not torch.equal(state[name], state[other]):
                    raise self._misfit(f"{name!r} and {other!r} are one here, and differ in the file")
        named: dict[nn.Module, str] = {}
        for name, layer in self.layers.items():
            other = named.setdefault(layer, name)
            if patterns[name] != patterns[other]:
                raise self._misfit(f"{name!r} and {other!r} are one layer here, and differ in the file")

    def _sparse(self, modules: Mapping[str, nn.Module], name: str, stored: _Pattern) -> nn.Module:
        """The layer that will take over a stored pattern."""
        layer = modules.get(name)
        if layer is None:
            raise self._misfit(f"it has a sparse layer {name!r}, this model has no such layer")
        if not isinstance(layer, SparseConv2d) and not _is_plain(layer):
            raise self._misfit(f"{name!r} is sparse there, here it is a {type(layer).__name__}")
        assert isinstance(layer, SparseConv2d | nn.Conv2d)
        there, here = (stored.in_channels, stored.out_channels), (layer.in_channels, layer.out_channels)
        if not (0 < there[0] <= here[0] and 0 < there[1] <= here[1]):
            raise self._misfit(f"{name!r} has {there[0]} -> {there[1]} channels there, {here[0]} -> {here[1]} here")
        if there == here and stored.groups != layer.groups:
            raise self._misfit(f"{name!r} has {stored.groups} groups there, {layer.groups} here")
        return layer

    def _check_convolutions(self, modules: Mapping[str, nn.Module], drawn: Mapping[nn.Module, _Pattern]) -> None:
        for name, layer in modules.items():
            if isinstance(layer, SparseConv2d) and layer not in drawn:
                raise self._misfit(f"it has no pattern for the sparse layer {name!r}")
            if isinstance(layer, _ConvNd):
                stored = self.stored.groups
                self.groups[layer] = layer.groups if stored is None else stored.get(name, 1)
        inputs = next((m for m in modules.values() if isinstance(m, _ConvNd | SparseConv2d)), None)
        classes = next((m for m in reversed(list(modules.values())) if isinstance(m, nn.Linear)), None)
        self.image, self.classes = inputs, classes  # what thinning leaves alone

    def _check_tensors(self, modules: Mapping[str, nn.Module], drawn: Mapping[nn.Module, _Pattern]) -> None:
        found, types = dict(self.stored.sizes), self.stored.types
        for name in self.stored.patterns:
            del found[_part(name, "gaps")]
        state = self.model.state_dict()
        for own, value in state.items():
            name = _plain(own)
            owner, _, part = name.rpartition(".")
            layer = modules.get(owner, self.model)
            if part in _DERIVED and layer in drawn:
                found.pop(name, None)  # version 1 has them for the second name of a tied layer
                continue
            if not isinstance(value, Tensor):
                raise self._misfit(f"{name!r} is no tensor here")
            if name not in found:
                raise self._misfit(f"it lacks {name!r}")
            size, here = found.pop(name), tuple(value.shape)
            if _TYPES.get(types[name]) != value.dtype:
                raise self._misfit(f"{name!r} is {types[name]} in the file, {value.dtype} here")
            if layer in drawn and part in ("weight", "bias"):
                pattern = drawn[layer]
                wanted: Size = (pattern.out_channels,)
                if part == "weight":
                    wanted = (pattern.connections, *layer.kernel_size)  # type: ignore[misc]
                if size != wanted:
                    raise self._differs(name, size, wanted)
                if layer is self.image and pattern.in_channels != layer.in_channels:
                    raise self._differs(name, size, here)
            elif size != here:
                self._check_thinner(name, layer, part, size, here)
                self.sizes[own] = size
            elif isinstance(layer, _ConvNd) and self.groups[layer] != layer.groups:
                raise self._misfit(f"{owner!r} has {self.groups[layer]} groups there, {layer.groups} here")
        if found:
            raise self._misfit(f"it has {min(found)!r}, which this model has not")
        kept = {id(value) for value in state.values()}
        for name, buffer in self.model.named_buffers():
            if buffer.is_meta and name not in state and id(buffer) not in kept:
                raise self._misfit(f"{name!r} is on the meta device here, and models do not store it")

    def _check_thinner(self, name: str, layer: nn.Module, part: str, size: Size, here: Size) -> None:
        """Raise unless thinning can have made a tensor of this size."""
        if len(size) != len(here) or not size or any(not 0 < a <= b for a, b in zip(size, here, strict=True)):
            raise self._differs(name, size, here)
        if layer is self.classes and size[0] != here[0]:
            raise self._differs(name, size, here)
        if isinstance(layer, _ConvNd) and part == "weight":
            groups = self.groups[layer]
            inputs = size[0] if layer.transposed else size[1] * groups
            outputs = size[1] * groups if layer.transposed else size[0]
            fits = groups > 0 and inputs % groups == outputs % groups == 0 and size[2:] == here[2:]
            if not fits or inputs > layer.in_channels or outputs > layer.out_channels:
                raise self._differs(name, size, here)
            if layer is self.image and inputs != layer.in_channels:
                raise self._differs(name, size, here)

    def _differs(self, name: str, size: Sequence[int], here: Sequence[int]) -> ValueError:
        return self._misfit(f"{name!r} has shape {list(size)} in the file, {list(here)} here")

    def _misfit(self, reason: str) -> ValueError:
        return ValueError(f"{self.path} does not fit this model: {reason}")


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is a convolution that can become sparse."""
    computes = isinstance(layer, nn.Conv2d) and type(layer).forward is nn.Conv2d.forward
    return computes and type(layer.weight) is nn.Parameter


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of DistributedDataParallel, DataParallel and `torch.compile`."""
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        else:
            return model


def _plain(name: str) -> str:
    """A name without what `torch.compile` adds to it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod") if "_orig_mod" in name else name


def _part(layer: str, part: str) -> str:
    return f"{layer}.{part}".lstrip(".")


def _state(model: nn.Module) -> dict[str, Any]:
    return {_plain(name): value for name, value in model.state_dict().items()}


def _places(model: nn.Module, kind: type) -> dict[str, Any]:
    """The layers of a kind by every name they have."""
    named = model.named_modules(remove_duplicate=False)
    return {_plain(name): layer for name, layer in named if isinstance(layer, kind)}


def _canonical(header: Mapping[str, Any]) -> str:
    return json.dumps(header, separators=(",", ":"), sort_keys=True)


def _untied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share memory are written once for each name, as a state dict has them."""
    seen: set[int] = set()
    return {
        name: t.clone() if t.data_ptr() in seen or seen.add(t.data_ptr()) else t  # type: ignore[func-returns-value]
        for name, t in tensors.items()
    }
