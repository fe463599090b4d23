"""The native CPU kernels behind the three operators.

`csrc/` builds one shared library, ``libgossamer``, that knows neither Python nor PyTorch. This module finds it inside the
installed package, calls it through ctypes with the tensors' addresses and PyTorch's thread count, and registers the result
for the dispatcher's CPU key. What the library does not cover (any type but float32) and what PyTorch's dense convolution
does faster goes to `gossamer.kernels.dense`; `choose_path` is that rule, and `use_path` (or the environment variable
GOSSAMER_PATH) overrides it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gossamer.kernels import dense

__all__ = [
    "asked_path",
    "choose_path",
    "info",
    "kernel_name",
    "register",
    "sparse_conv2d",
    "sparse_conv2d_input_grad",
    "sparse_conv2d_weight_grad",
    "takes",
    "use_path",
]

LIMITS = {
    "1x1": {"forward": 0.4, "input_grad": 0.4, "weight_grad": 0.4},
    "larger": {"forward": 0.5, "input_grad": 0.4, "weight_grad": 0.4},
}
"""Density from which PyTorch's dense convolution is taken, by kernel size and pass (measured: docs/kernels.md)."""

_PATHS = ("auto", "native", "dense")
_path = os.environ.get("GOSSAMER_PATH", "auto")


class _Conv(ctypes.Structure):
    """``gossamer_conv`` of csrc/gossamer.h."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("batch", "in_channels", "in_h", "in_w", "out_channels", "kernel_h", "kernel_w"),
            *("stride_h", "stride_w", "pad_h", "pad_w", "dil_h", "dil_w"),
        )
    ] + [("indptr", ctypes.c_void_p), ("indices", ctypes.c_void_p)]


def _find_library() -> Path:
    """The shared library inside the installed package; an editable install rebuilds it here when csrc/ has changed."""
    try:
        native = importlib.import_module("gossamer._native")
    except ModuleNotFoundError as error:
        raise ImportError(
            "gossamer's native library is missing: this copy of gossamer was not built. Run `pip install .` (or "
            "`pip install -e .`) in its source tree, which needs CMake and a C++17 compiler."
        ) from error
    return Path(native.__path__[0]) / native.library


library_path = _find_library()


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path))
    pointer, conv = ctypes.c_void_p, ctypes.POINTER(_Conv)
    library.gossamer_forward.argtypes = [conv, pointer, pointer, pointer, ctypes.c_int, pointer, ctypes.c_int]
    library.gossamer_input_grad.argtypes = [conv, pointer, pointer, pointer, ctypes.c_int]
    library.gossamer_weight_grad.argtypes = [conv, pointer, pointer, pointer, ctypes.c_int]
    library.gossamer_kernel_name.argtypes = [conv, ctypes.c_char]
    for function in ("status_text", "isa", "isa_list", "version", "kernel_name"):
        getattr(library, f"gossamer_{function}").restype = ctypes.c_char_p
    library.gossamer_status_text.argtypes = [ctypes.c_int]
    return library


if _path not in _PATHS:
    raise ImportError(f"GOSSAMER_PATH={_path} is not one of {', '.join(_PATHS)}")

_library = _load()

if _library.gossamer_isa() is None:
    raise ImportError(
        f"GOSSAMER_ISA={os.environ['GOSSAMER_ISA']} is not an instruction set that this machine and this build of gossamer "
        f"have; it can be one of: {_library.gossamer_isa_list().decode()}."
    )


def info() -> dict[str, str]:
    """The native library's version, the instruction set in use, those it could use, and where the library lies."""
    return {
        "version": _library.gossamer_version().decode(),
        "isa": _library.gossamer_isa().decode(),
        "isa_available": _library.gossamer_isa_list().decode(),
        "library": str(library_path),
    }


@contextlib.contextmanager
def use_path(path: str) -> Iterator[None]:
    """Inside, every sparse convolution on the CPU takes `path`: "native", "dense", or "auto" (the rule).

    A layer with every connection is no sparse convolution: it runs as `nn.Conv2d` does, whatever the path.
    """
    global _path
    if path not in _PATHS:
        raise ValueError(f"a path is one of {', '.join(_PATHS)}; {path!r} was given")
    before, _path = _path, path
    try:
        yield
    finally:
        _path = before


def asked_path() -> str:
    """What `use_path` or GOSSAMER_PATH asks for: "native", "dense" or "auto"."""
    return _path


def choose_path(
    operation: str,
    input_shape: Sequence[int],
    kernel_size: Sequence[int],
    connections: int,
    out_channels: int,
    groups: int = 1,
) -> tuple[str, str]:
    """("native" | "dense", why) for one float32 call of `operation`: "forward", "input_grad" or "weight_grad"."""
    if _path != "auto":
        return _path, "asked for"
    if input_shape[1] == 1:
        return "native", "one input channel"
    density = float(connections * groups / (input_shape[1] * out_channels))
    limit = LIMITS["1x1" if max(kernel_size) == 1 else "larger"][operation]
    if density < limit:
        return "native", f"density {density:.3f} < {limit}"
    return "dense", f"density {density:.3f} >= {limit}"


def kernel_name(
    operation: str,
    input_shape: Sequence[int],
    kernel_size: Sequence[int],
    indptr: Tensor,
    indices: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> str:
    """The native kernel that a call of `operation` runs, by how it lays out what it reads (docs/kernels.md)."""
    conv = _conv(torch.Size(input_shape), torch.Size(kernel_size), indptr, indices, [*stride], [*padding], [*dilation])
    name: bytes = _library.gossamer_kernel_name(conv, operation[0].encode())
    return name.decode()


def _check(status: int, conv: _Conv) -> None:
    if status:
        sizes = {name: getattr(conv, name) for name, kind, *_ in _Conv._fields_ if kind is ctypes.c_int64}
        raise RuntimeError(f"gossamer: {_library.gossamer_status_text(status).decode()}; the call was {sizes}")


def _conv(
    shape: list[int] | torch.Size,
    kernel_size: list[int] | torch.Size,
    indptr: Tensor,
    indices: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> _Conv:
    """The problem as the library takes it; `indptr` and `indices` must be contiguous and outlive it."""
    return _Conv(
        *shape, indptr.numel() - 1, *kernel_size, *stride, *padding, *dilation, indptr.data_ptr(), indices.data_ptr()
    )


def takes(
    operation: str,
    first: Tensor,
    second: Tensor,
    input_shape: Sequence[int],
    kernel_size: Sequence[int],
    indptr: Tensor,
    indices: Tensor,
    groups: int,
) -> bool:
    """Whether the native kernels compute this call of `operation`; the dense backend does otherwise."""
    if first.device.type != "cpu" or first.dtype != torch.float32 or second.dtype != torch.float32:
        return False
    path, _ = choose_path(operation, input_shape, kernel_size, indices.shape[0], indptr.shape[0] - 1, groups)
    return path == "native"


def _output_size(conv: _Conv) -> tuple[int, int]:
    height = (conv.in_h + 2 * conv.pad_h - conv.dil_h * (conv.kernel_h - 1) - 1) // conv.stride_h + 1
    width = (conv.in_w + 2 * conv.pad_w - conv.dil_w * (conv.kernel_w - 1) - 1) // conv.stride_w + 1
    return height, width


def sparse_conv2d(
    input: Tensor,
    weight: Tensor,
    indptr: Tensor,
    indices: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int = 1,
) -> Tensor:
    """As `gossamer.kernels.reference.sparse_conv2d`, in native code for float32."""
    if not takes("forward", input, weight, input.shape, weight.shape[1:], indptr, indices, groups):
        return dense.sparse_conv2d(input, weight, indptr, indices, stride, padding, dilation, groups)
    input, weight, indptr, indices = input.contiguous(), weight.contiguous(), indptr.contiguous(), indices.contiguous()
    conv = _conv(input.shape, weight.shape[1:], indptr, indices, stride, padding, dilation)
    output = input.new_empty((conv.batch, conv.out_channels, *_output_size(conv)))
    status = _library.gossamer_forward(
        conv, input.data_ptr(), weight.data_ptr(), None, 0, output.data_ptr(), torch.get_num_threads()
    )
    _check(status, conv)
    return output


def sparse_conv2d_input_grad(
    grad_output: Tensor,
    weight: Tensor,
    indptr: Tensor,
    indices: Tensor,
    input_shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int = 1,
) -> Tensor:
    """As `gossamer.kernels.reference.sparse_conv2d_input_grad`, in native code for float32."""
    if not takes("input_grad", grad_output, weight, input_shape, weight.shape[1:], indptr, indices, groups):
        return dense.sparse_conv2d_input_grad(
            grad_output, weight, indptr, indices, input_shape, stride, padding, dilation, groups
        )
    grad_output, weight = grad_output.contiguous(), weight.contiguous()
    indptr, indices = indptr.contiguous(), indices.contiguous()
    conv = _conv(input_shape, weight.shape[1:], indptr, indices, stride, padding, dilation)
    grad_input = grad_output.new_empty(input_shape)
    status = _library.gossamer_input_grad(
        conv, grad_output.data_ptr(), weight.data_ptr(), grad_input.data_ptr(), torch.get_num_threads()
    )
    _check(status, conv)
    return grad_input


def sparse_conv2d_weight_grad(
    grad_output: Tensor,
    input: Tensor,
    indptr: Tensor,
    indices: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int = 1,
) -> Tensor:
    """As `gossamer.kernels.reference.sparse_conv2d_weight_grad`, in native code for float32."""
    if not takes("weight_grad", grad_output, input, input.shape, kernel_size, indptr, indices, groups):
        return dense.sparse_conv2d_weight_grad(
            grad_output, input, indptr, indices, kernel_size, stride, padding, dilation, groups
        )
    grad_output, input = grad_output.contiguous(), input.contiguous()
    indptr, indices = indptr.contiguous(), indices.contiguous()
    conv = _conv(input.shape, kernel_size, indptr, indices, stride, padding, dilation)
    grad_weight = input.new_empty((indices.numel(), *kernel_size))
    status = _library.gossamer_weight_grad(
        conv, grad_output.data_ptr(), input.data_ptr(), grad_weight.data_ptr(), torch.get_num_threads()
    )
    _check(status, conv)
    return grad_weight


def register(library: torch.library.Library) -> None:
    """Makes these functions the CPU backend of the operators that `library` defines."""
    for function in (sparse_conv2d, sparse_conv2d_input_grad, sparse_conv2d_weight_grad):
        library.impl(function.__name__, function, "CPU")
