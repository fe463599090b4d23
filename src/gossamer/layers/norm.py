"""Batch normalisation of planes (`planes`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.kernels import policy
from gossamer.kernels.native import norm
from gossamer.layers.planes import are_planes, is_plain, leaf


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` up to rounding; native is training. In evaluation PyTorch is as fast, unless it can be done in place."""

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, torch.fx.Proxy):
            return leaf(self, input)
        output = self._native(input)
        return super().forward(input) if output is None else output

    def _native(self, input: Tensor, relu: bool = False) -> Tensor | None:
        """The output, after a ReLU if asked for; none where it is PyTorch that computes."""
        if not self.training or not are_planes(input, policy.LEAST_TRAINED, 8):
            return None
        vectors = (self.weight, self.bias, self.running_mean, self.running_var)
        count = input.numel() // input.shape[1]
        if count < 2 or not all(_is_vector(v) for v in vectors):  # of one value a channel PyTorch says what is wrong
            return None
        output, mean, variance = norm.batch_norm(input, self.weight, self.bias, self.eps, relu)
        self._remember(mean, variance, count)
        return output

    def _in_place(self, input: Tensor) -> bool:
        """Whether the results of an evaluation, after a ReLU, were written over `input`."""
        if self.training or torch.is_grad_enabled() or not are_planes(input, policy.LEAST_EVALUATED):
            return False
        weight, bias, mean, variance = vectors = (self.weight, self.bias, self.running_mean, self.running_var)
        if mean is None or variance is None or not all(_is_vector(v) for v in vectors):
            return False
        norm.normalise_(input, mean, variance, weight, bias, self.eps, relu=True)
        return True

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """What `nn.BatchNorm2d` keeps of a batch, for evaluation."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * (count / (count - 1)), share)


def _is_vector(vector: Tensor | None) -> bool:
    """A layer's parameter or buffer that the native operators can take, or none."""
    return vector is None or (is_plain(vector) and vector.device.type == "cpu" and vector.dtype == torch.float32)
