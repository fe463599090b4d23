"""Runs a compiled network (docs/program.md) with NumPy and the shared library alone: no PyTorch, no compiler.

from gossamer import runtime
logits = runtime.load("net.gossamer")(images)
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Layer", "Port", "Profile", "Program", "library_path", "load"]

_ERROR_BYTES = 1024


class _Port(ctypes.Structure):
    """``gossamer_net_port`` of csrc/net/gossamer_net.h."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("rank", ctypes.c_int),
        ("shape", ctypes.c_int64 * 8),
        ("floats", ctypes.c_int64),
    ]


class _Operation(ctypes.Structure):
    """``gossamer_net_operation``."""

    _fields_ = [
        *((name, ctypes.c_char_p) for name in ("kind", "name", "kernel")),
        *((name, ctypes.c_int64) for name in ("madds", "bytes")),
    ]


def library_path() -> Path:
    """The shared library inside the installed package; an editable install rebuilds it here when csrc/ has changed."""
    try:
        native = importlib.import_module("gossamer._native")
    except ModuleNotFoundError as error:
        raise ImportError(
            "gossamer's native library is missing: this copy of gossamer was not built. Run `pip install .` (or "
            "`pip install -e .`) in its source tree, which needs CMake and a C++17 compiler."
        ) from error
    return Path(native.__path__[0]) / native.library


def _open_library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path()))
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    error: tuple[Any, Any] = (ctypes.c_char_p, size)
    library.gossamer_net_load.argtypes = [ctypes.c_char_p, size, size, ctypes.POINTER(pointer), *error]
    library.gossamer_net_state_new.argtypes = [pointer, ctypes.c_int, ctypes.POINTER(pointer), *error]
    library.gossamer_net_run.argtypes = [pointer, ctypes.c_int64, pointer, pointer, *error]
    library.gossamer_net_profile.argtypes = [pointer, ctypes.c_int64, pointer, pointer, pointer, *error]
    for name in ("free", "state_free", "batch", "inputs", "outputs", "operations"):
        getattr(library, f"gossamer_net_{name}").argtypes = [pointer]
    for name, kind in (("input", _Port), ("output", _Port), ("describe", _Operation)):
        getattr(library, f"gossamer_net_{name}").argtypes = [pointer, ctypes.c_int]
        getattr(library, f"gossamer_net_{name}").restype = kind
    for name in ("weight_bytes", "activation_bytes", "scratch_bytes"):
        getattr(library, f"gossamer_net_{name}").argtypes = [pointer]
        getattr(library, f"gossamer_net_{name}").restype = ctypes.c_int64
    return library


_library: ctypes.CDLL | None = None


def _native() -> ctypes.CDLL:
    global _library
    if _library is None:
        _library = _open_library()
    return _library


class Port(NamedTuple):
    """An input or output of a program: `shape` is one image's; arrays are [n, *shape]."""

    name: str
    shape: tuple[int, ...]


class Layer(NamedTuple):
    """One operation of a program, with the multiply-adds and the bytes (values and weights, each once) of one image."""

    kind: str
    name: str
    kernel: str
    madds: int
    bytes: int


@dataclass(frozen=True)
class Profile:
    """Seconds of each operation of a program for one call; printed, the longest first."""

    layers: tuple[Layer, ...]
    seconds: tuple[float, ...]
    images: int

    def __str__(self) -> str:
        whole = sum(self.seconds) or 1.0
        lines = [f"{1e3 * whole:.3f} ms for {self.images} image(s)", "      ms  share  GFLOP/s  GB/s  operation"]
        for seconds, layer in sorted(zip(self.seconds, self.layers, strict=True), key=lambda pair: -pair[0]):
            work = 2e-9 * layer.madds * self.images / seconds if seconds else 0.0
            traffic = 1e-9 * layer.bytes * self.images / seconds if seconds else 0.0
            what = f"{layer.kind} {layer.name}" + (f" ({layer.kernel})" if layer.kernel else "")
            lines.append(f"{1e3 * seconds:8.3f} {seconds / whole:6.1%} {work:8.1f} {traffic:5.1f}  {what}")
        return "\n".join(lines)


class Program:
    """A network compiled to one list of native operations; call it with arrays [n, *shape] of float32.

    Several threads may call one program at once. `threads` is how many threads one call uses; None: as many as the machine
    has. `memory_limit` bounds the bytes of weights, activations and scratch that a file may ask for; 0: 4 GiB.
    """

    def __init__(self, file: bytes, threads: int | None = None, memory_limit: int = 0) -> None:
        library = _native()
        self._net = ctypes.c_void_p()
        self._free: list[tuple[int, ctypes.c_void_p]] = []
        self._lock = threading.Lock()
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        if library.gossamer_net_load(file, len(file), memory_limit, ctypes.byref(self._net), error, _ERROR_BYTES):
            raise ValueError(f"this is not a program that can be run: {error.value.decode(errors='replace')}")
        self.file = file
        self.threads = threads
        self.batch: int = library.gossamer_net_batch(self._net)
        self.inputs = tuple(self._port("input", i) for i in range(library.gossamer_net_inputs(self._net)))
        self.outputs = tuple(self._port("output", i) for i in range(library.gossamer_net_outputs(self._net)))
        described = [
            library.gossamer_net_describe(self._net, i) for i in range(library.gossamer_net_operations(self._net))
        ]
        self.layers = tuple(
            Layer(op.kind.decode(), op.name.decode(), op.kernel.decode(), op.madds, op.bytes) for op in described
        )
        self.weight_bytes: int = library.gossamer_net_weight_bytes(self._net)
        self.activation_bytes: int = library.gossamer_net_activation_bytes(self._net)
        self.scratch_bytes: int = library.gossamer_net_scratch_bytes(self._net)
        header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
        self._structure = json.loads(header["__metadata__"]["gossamer_program"])["structure"]
        try:
            self._structured(list(self.outputs))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise ValueError("this is not a program that can be run: its structure does not fit its outputs") from None

    @classmethod
    def load(cls, path: str | os.PathLike[str], threads: int | None = None) -> Self:
        """The program in a file. ValueError: it is damaged or none; FileNotFoundError, OSError: it cannot be read."""
        try:
            return cls(Path(path).read_bytes(), threads)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the program's file, whole or not at all."""
        target = Path(os.path.realpath(path))
        temporary = target.with_name(f"{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            temporary.write_bytes(self.file)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def __call__(self, *arrays: Any, **named: Any) -> Any:
        """What the network returns, as arrays, for 1 to `batch` images; inputs in order or by name."""
        given, images = self._take(arrays, named)
        outputs = self._outputs(images)
        self._run(given, outputs, images, None)
        return self._structured(outputs)

    def profile(self, *arrays: Any, **named: Any) -> Profile:
        """Times every operation of one call (after one that is not timed)."""
        given, images = self._take(arrays, named)
        outputs = self._outputs(images)
        seconds = np.zeros(len(self.layers))
        self._run(given, outputs, images, None)
        self._run(given, outputs, images, seconds)
        return Profile(self.layers, tuple(seconds.tolist()), images)

    def __str__(self) -> str:
        ports = "; ".join(
            f"{name} " + ", ".join(f"{port.name} [n, {', '.join(map(str, port.shape))}]" for port in ports)
            for name, ports in (("inputs", self.inputs), ("outputs", self.outputs))
        )
        lines = [
            f"Program of {len(self.layers)} operations, batch up to {self.batch}: {ports}",
            f"weights {self.weight_bytes:,} bytes, activations {self.activation_bytes:,}, scratch {self.scratch_bytes:,}",
        ]
        for layer in self.layers:
            kernel = f" ({layer.kernel})" if layer.kernel else ""
            lines.append(f"  {layer.kind} {layer.name}{kernel}" + (f", {layer.madds:,} madds" if layer.madds else ""))
        return "\n".join(lines)

    def __del__(self) -> None:
        library = _library
        if library is None:
            return
        for _, state in getattr(self, "_free", []):
            library.gossamer_net_state_free(state)
        library.gossamer_net_free(getattr(self, "_net", None))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.file, self.threads)

    def _port(self, which: str, index: int) -> Port:
        port = getattr(_native(), f"gossamer_net_{which}")(self._net, index)
        return Port(port.name.decode(), tuple(port.shape[: port.rank]))

    def _take(self, arrays: Sequence[Any], named: dict[str, Any]) -> tuple[list[np.ndarray], int]:
        """The inputs in order, contiguous float32, and the number of images."""
        names = [port.name for port in self.inputs]
        if unknown := [name for name in named if name not in names[len(arrays) :]]:
            raise TypeError(f"the program has no further input named {unknown[0]!r}; its inputs are {', '.join(names)}")
        if len(arrays) + len(named) != len(names):
            raise TypeError(
                f"the program takes {len(names)} input(s) ({', '.join(names)}); {len(arrays) + len(named)} were given"
            )
        taken = [
            np.ascontiguousarray(a, dtype=np.float32) for a in [*arrays, *(named[n] for n in names[len(arrays) :])]
        ]
        for array, port in zip(taken, self.inputs, strict=True):
            if array.ndim != len(port.shape) + 1 or array.shape[1:] != port.shape:
                raise ValueError(
                    f"input {port.name} has shape [n, {', '.join(map(str, port.shape))}]; {list(array.shape)} was given"
                )
        images = len(taken[0])
        if any(len(array) != images for array in taken):
            raise ValueError(f"the inputs hold different numbers of images: {[len(array) for array in taken]}")
        if images > self.batch:
            raise ValueError(f"the program was compiled for batches up to {self.batch}; {images} images were given")
        return taken, images

    def _outputs(self, images: int) -> list[np.ndarray]:
        return [np.empty((images, *port.shape), np.float32) for port in self.outputs]

    def _run(
        self, inputs: list[np.ndarray], outputs: list[np.ndarray], images: int, seconds: np.ndarray | None
    ) -> None:
        if images == 0:
            return
        library = _native()
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        given, made = ((ctypes.c_void_p * len(a))(*(x.ctypes.data for x in a)) for a in (inputs, outputs))
        with self._state() as state:
            if seconds is None:
                status = library.gossamer_net_run(state, images, given, made, error, _ERROR_BYTES)
            else:
                status = library.gossamer_net_profile(
                    state, images, given, made, seconds.ctypes.data, error, _ERROR_BYTES
                )
        if status:
            raise RuntimeError(f"gossamer: {error.value.decode(errors='replace')}")

    def _default_threads(self) -> int:
        return os.cpu_count() or 1

    @contextmanager
    def _state(self) -> Iterator[ctypes.c_void_p]:
        """A state of this call's own, kept for later calls of any thread."""
        threads, state = self.threads or self._default_threads(), None
        with self._lock:
            for i, (of, kept) in enumerate(self._free):
                if of == threads:
                    state = kept
                    del self._free[i]
                    break
        if state is None:
            state = ctypes.c_void_p()
            error = ctypes.create_string_buffer(_ERROR_BYTES)
            if _native().gossamer_net_state_new(self._net, threads, ctypes.byref(state), error, _ERROR_BYTES):
                raise RuntimeError(f"gossamer: {error.value.decode(errors='replace')}")
        try:
            yield state
        finally:
            with self._lock:
                self._free.append((threads, state))

    def _structured(self, outputs: list[Any]) -> Any:
        if self._structure is None:
            return outputs[0] if len(outputs) == 1 else tuple(outputs)
        return _build(self._structure, outputs)


def _build(structure: Any, outputs: list[Any]) -> Any:
    ((kind, content),) = structure.items()
    if kind == "output":
        return outputs[content]
    if kind == "none":
        return None
    if kind == "dict":
        return {key: _build(item, outputs) for key, item in content.items()}
    items = [_build(item, outputs) for item in content]
    return tuple(items) if kind == "tuple" else items


def load(path: str | os.PathLike[str], threads: int | None = None) -> Program:
    """As `Program.load`."""
    return Program.load(path, threads)
