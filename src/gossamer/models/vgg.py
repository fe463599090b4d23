"""VGG-16, the paper's VGG-16n (section 5.2.3) and a VGG-11 for small images, with batch normalisation; all layers but the
classifier convolve."""

from __future__ import annotations

from torch import Tensor, nn

from gossamer.models._blocks import ConvBNReLU, pooled

_ELEVEN = ((64,), (128,), (256, 256), (512, 512), (512, 512))
_SIXTEEN = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """The original: thirteen 3x3 convolutions and two 4096-unit layers, here as 7x7 and 1x1 convolutions.

    134.25 million convolution weights at 224x224.
    """

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> None:
        super().__init__()
        self.input_shape = (in_channels, image_size, image_size)
        self.features = _features(_SIXTEEN, in_channels, image_size)
        self.head = nn.Sequential(
            ConvBNReLU(512, 4096, image_size // 32), nn.Dropout(0.5), ConvBNReLU(4096, 4096, 1), nn.Dropout(0.5)
        )
        self.classifier = nn.Linear(4096, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(pooled(self.head(self.features(x))))


class VGG16n(nn.Module):
    """VGG-16 whose 4096-unit layers gave way to a 2x2 max-pooling and one 3x3 convolution to 1024 channels.

    19.43 million convolution weights, 15.35 G multiply-adds at 224x224, where the five poolings leave 7x7, the further one
    3x3 and the convolution, which has no padding, one pixel. Smaller images keep the same weights: below 64 pixels the last
    map is one pixel already and there is no further pooling, and below 192, where the convolution finds less than 3x3, it
    pads by one.
    """

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> None:
        super().__init__()
        self.input_shape = (in_channels, image_size, image_size)
        self.features = _features(_SIXTEEN, in_channels, image_size)
        side = image_size // 32
        pool = nn.MaxPool2d(2) if side > 1 else nn.Identity()
        self.head = nn.Sequential(pool, ConvBNReLU(512, 1024, 3, padding=0 if side // 2 >= 3 else 1))
        self.classifier = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(pooled(self.head(self.features(x))))


class VGG11(nn.Module):
    """Eight 3x3 convolutions in five stages with a 2x2 max-pooling between them, and the mean of each plane.

    9.22 million convolution weights; 152.8 M multiply-adds at 32x32, where the last map is 2x2.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> None:
        super().__init__()
        self.input_shape = (in_channels, image_size, image_size)
        self.features = _features(_ELEVEN, in_channels, image_size)[:-1]  # no pooling after the last stage
        self.classifier = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(pooled(self.features(x)))


def _features(stages: tuple[tuple[int, ...], ...], in_channels: int, image_size: int) -> nn.Sequential:
    if image_size < 32:
        raise ValueError(f"VGG takes images of at least 32 pixels a side, got {image_size}")
    layers: list[nn.Module] = []
    for stage in stages:
        for width in stage:
            layers.append(ConvBNReLU(in_channels, width, 3, padding=1))
            in_channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)
