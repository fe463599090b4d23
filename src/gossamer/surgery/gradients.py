"""The gradient of connections that do not exist: what the loss would gain from them (RigL, Evci et al. 2020)."""

from __future__ import annotations

from types import TracebackType

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer import kernels
from gossamer.connectivity import Connectivity
from gossamer.layers import SparseConv2d


class DenseGradients:
    """A context in which backward passes also yield the gradients of the connections that sparse layers lack.

        with DenseGradients(model) as gradients:
            loss(model(images), labels).backward()
        gs.densify(model, density=0.2, optimizer=optimizer, gradients=gradients)

    Gradients of several backward passes add up, as a parameter's do, and in a process group over its processes. One pass
    costs the weight gradient of a dense layer. The model must run as it is: a compiled one does not call the hooks
    (`torch.compiler.set_stance("force_eager")` lets it run as it is).
    """

    def __init__(self, model: nn.Module) -> None:
        layers = [layer for layer in model.modules() if isinstance(layer, SparseConv2d)]
        self._absent = {layer: absent(layer.connectivity) for layer in layers}
        self._sums: dict[SparseConv2d, Tensor] = {}
        self._hooks = [layer.register_forward_hook(self._after_forward) for layer in layers]

    def __enter__(self) -> DenseGradients:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Watch no longer; what was seen stays."""
        for hook in self._hooks:
            hook.remove()

    def scores(self, layer: SparseConv2d, name: str = "") -> np.ndarray:
        """Squared norm of the gradient of each absent connection, in the order of their flat positions."""
        if self._absent[layer].connections and layer not in self._sums:
            raise ValueError(
                f"no gradient has reached layer {name!r}: run a backward pass of the uncompiled model first"
            )
        total = self._sums.get(layer, layer.weight.new_zeros(0, *layer.kernel_size))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
        return total.detach().double().flatten(1).square().sum(1).numpy(force=True)

    def _after_forward(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, SparseConv2d)
        if output.requires_grad and self._absent[layer].connections:
            input = inputs[0].detach()
            output.register_hook(lambda grad: self._add(layer, input, grad))

    def _add(self, layer: SparseConv2d, input: Tensor, grad: Tensor) -> None:
        grad = grad.detach()
        x = (input if input.dim() == 4 else input[None]).to(grad.dtype)
        if layer._before is not None:
            x = F.pad(x, layer._before, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
        c = self._absent[layer]
        here = kernels.sparse_conv2d_weight_grad(
            grad if grad.dim() == 4 else grad[None],
            x,
            *(torch.tensor(array, device=grad.device) for array in (c.indptr, c.indices)),
            layer.kernel_size,
            layer.stride,
            layer.own_padding,
            layer.dilation,
            layer.groups,
        ).float()
        self._sums[layer] = self._sums[layer] + here if layer in self._sums else here


def absent(c: Connectivity) -> Connectivity:
    """The possible connections that do not exist."""
    possible = Connectivity.grouped(c.in_channels, c.out_channels, c.groups)
    positions = np.setdiff1d(possible.positions, c.positions, assume_unique=True)
    return Connectivity.from_positions(c.in_channels, c.out_channels, positions, groups=c.groups)
