"""A compiled network for those who have PyTorch: a `gossamer.runtime.Program` of tensors, and how it is made."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from gossamer import __version__, runtime
from gossamer.engine.capture import Inputs, batch_of, capture
from gossamer.engine.emission import emit
from gossamer.engine.memory import lay_out
from gossamer.engine.passes import simplify

__all__ = ["Program", "compile"]


class Program(runtime.Program):
    """A network compiled to one list of native operations (docs/program.md).

    Call it as the model: with tensors [n, *shape], n up to the batch it was compiled for, it returns tensors, with NumPy
    arrays arrays. It runs in as many threads as PyTorch does, unless `threads` says otherwise. Numbers are float32 on the
    CPU; there are no gradients.
    """

    def __call__(self, *arrays: Any, **named: Any) -> Any:
        tensors = any(isinstance(array, Tensor) for array in (*arrays, *named.values()))
        made = super().__call__(*map(_array, arrays), **{name: _array(array) for name, array in named.items()})
        return (
            tree_map(lambda leaf: torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf, made)
            if tensors
            else made
        )

    def profile(self, *arrays: Any, **named: Any) -> runtime.Profile:
        return super().profile(*map(_array, arrays), **{name: _array(array) for name, array in named.items()})

    def _default_threads(self) -> int:
        return torch.get_num_threads()


def _array(given: Any) -> Any:
    return given.detach().to("cpu", torch.float32).numpy() if isinstance(given, Tensor) else given


def compile(model: nn.Module, example_inputs: Inputs) -> Program:
    """`model`, as it evaluates, as one native program for batches up to that of the examples.

    `example_inputs` is a tensor, several in a tuple or a dict of keyword arguments, or the (channels, height, width) of
    one image. Sparse, thin and dense models alike; the model is left as it was. Raises ValueError with one sentence that
    names the layer and the operator for what a program cannot do.
    """
    program, tensors = emit(lay_out(simplify(capture(model, example_inputs))), batch_of(example_inputs))
    metadata = {"gossamer_program": json.dumps(program), "gossamer_version": __version__}
    return Program(save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, metadata))
