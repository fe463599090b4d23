"""The layers: `SparseConv2d`, and those beside it that PyTorch is slow at on the planes that it computes."""

from gossamer.layers.exchange import exchange_layers
from gossamer.layers.norm import BatchNorm2d
from gossamer.layers.pooling import AvgPool2d, MaxPool2d
from gossamer.layers.rectified import RectifyingSequential
from gossamer.layers.sparse_conv import SparseConv2d

__all__ = ["AvgPool2d", "BatchNorm2d", "MaxPool2d", "RectifyingSequential", "SparseConv2d", "exchange_layers"]
