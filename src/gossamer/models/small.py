"""The paper's networks for MNIST and CIFAR-10 (section 5.1), with batch normalisation."""

from __future__ import annotations

from torch import Tensor, nn

from gossamer.models._blocks import ConvBNReLU, pooled


class MNISTNet(nn.Module):
    """Three convolutions: 5x5 to 32, 5x5 to 64, and the 512-unit layer as a convolution over the whole 7x7 map.

    1,657,632 convolution weights at 28x28, the "2 million" of section 5.2.1.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> None:
        super().__init__()
        if image_size < 4 or image_size % 4:
            raise ValueError(f"mnist takes images whose side is a multiple of 4, got {image_size}")
        self.input_shape = (in_channels, image_size, image_size)
        self.conv1 = ConvBNReLU(in_channels, 32, 5, padding=2)
        self.conv2 = ConvBNReLU(32, 64, 5, padding=2)
        self.conv3 = ConvBNReLU(64, 512, image_size // 4)
        self.pool = nn.MaxPool2d(2)
        self.classifier = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv1(x))
        x = self.pool(self.conv2(x))
        return self.classifier(pooled(self.conv3(x)))


class CIFARNet(nn.Module):
    """Two 5x5 convolutions to 64 channels, and fully connected layers of 384 and 192 units, which sparsity leaves whole."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> None:
        super().__init__()
        if image_size < 4 or image_size % 4:
            raise ValueError(f"cifar takes images whose side is a multiple of 4, got {image_size}")
        self.input_shape = (in_channels, image_size, image_size)
        self.conv1 = ConvBNReLU(in_channels, 64, 5, padding=2)
        self.conv2 = ConvBNReLU(64, 64, 5, padding=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.fc1 = _dense(64 * (image_size // 4) ** 2, 384)
        self.fc2 = _dense(384, 192)
        self.classifier = nn.Linear(192, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv1(x))
        x = self.pool(self.conv2(x))
        return self.classifier(self.fc2(self.fc1(x.flatten(1))))


def _dense(in_features: int, out_features: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_features, out_features, bias=False), nn.BatchNorm1d(out_features), nn.ReLU(inplace=True)
    )
