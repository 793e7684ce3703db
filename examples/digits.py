"""Networks and data for the examples: handwritten digits that come with scikit-learn.

The 1797 images of 8x8 pixels are the test set of the UCI "Optical Recognition of Handwritten
Digits" data (E. Alpaydin and C. Kaynak), upsampled here so that the convolutions, and not the
overheads, take the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 32
CLASSES = 10


class BasicBlock(nn.Module):
    """relu(f(x) + shortcut(x)) with two 3x3 convolutions in f (He et al. 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet-14 for small images: [N, 1, 32, 32] -> [N, 10]; about 0.23 GMACs an image."""

    def __init__(self, widths: tuple[int, ...] = (48, 96, 192), blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        self.stages = nn.Sequential()
        inputs = widths[0]
        for i, outputs in enumerate(widths):
            stage = nn.Sequential()
            for j in range(blocks):
                stage.append(BasicBlock(inputs, outputs, stride=2 if i and not j else 1))
                inputs = outputs
            self.stages.append(stage)
        self.head = nn.Linear(inputs, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stages(self.stem(x))
        return self.head(y.mean(dim=(2, 3)))


class InvertedBottleneck(nn.Sequential):
    """x + f(x), f widening, depthwise 3x3 and narrowing (Sandler et al. 2018, figure 4)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int = 6) -> None:
        hidden = inputs * expansion
        super().__init__(
            *_convolution(inputs, hidden, 1),
            nn.ReLU6(),
            *_convolution(hidden, hidden, 3, stride=stride, groups=hidden),
            nn.ReLU6(),
            *_convolution(hidden, outputs, 1),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        return x + y if self.adds else y


class MobileNet(nn.Sequential):
    """Inverted bottlenecks as in MobileNetV2, for small images: [N, 1, 32, 32] -> [N, 10]."""

    def __init__(self, widths: tuple[int, ...] = (24, 32, 64), blocks: int = 3) -> None:
        layers: list[nn.Module] = [*_convolution(1, widths[0], 3), nn.ReLU6()]
        inputs = widths[0]
        for i, outputs in enumerate(widths):
            for j in range(blocks):
                layers.append(InvertedBottleneck(inputs, outputs, stride=2 if i and not j else 1))
                inputs = outputs
        layers += [*_convolution(inputs, 256, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1)]
        super().__init__(*layers, nn.Flatten(), nn.Linear(256, CLASSES))


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, nn.Module]:
    """A convolution that keeps the size of the image but for its stride, and a batch norm."""
    layer = nn.Conv2d(
        inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )
    return layer, nn.BatchNorm2d(outputs)


@dataclass(frozen=True)
class Batches:
    """Batches of (images [n, 1, 32, 32], labels [n]); a new order and new distortions each epoch.

    Everything random comes from PyTorch's generator, so that a seed repeats it.
    """

    images: Tensor
    labels: Tensor
    size: int
    augmented: bool

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.labels)
        order = torch.randperm(count) if self.augmented else torch.arange(count)
        for indices in order.split(self.size):
            images = self.images[indices]
            yield (distort(images) if self.augmented else images), self.labels[indices]


def load(train_size: int = 32, test_size: int = 128) -> tuple[Batches, Batches]:
    """(training, test) batches: 1257 and 540 images, the same split every time."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", align_corners=False)
    images = (images - images.mean()) / images.std()
    labels = torch.tensor(digits.target)
    train, test = train_test_split(
        range(len(labels)), test_size=540, random_state=0, stratify=digits.target
    )
    return (
        Batches(images[train], labels[train], train_size, augmented=True),
        Batches(images[test], labels[test], test_size, augmented=False),
    )


def distort(images: Tensor) -> Tensor:
    """Turn by up to 10 degrees, scale by up to 10 %, shift by up to 2 pixels; [n, c, h, w]."""
    n = len(images)
    angle, scale = _uniform(n, math.radians(10)), 1 + _uniform(n, 0.1)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    shift = [_uniform(n, 2 * 2 / images.shape[-1]) for _ in range(2)]
    theta = torch.stack([cosine, -sine, shift[0], sine, cosine, shift[1]], dim=1).view(n, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _uniform(n: int, bound: float) -> Tensor:
    return (2 * torch.rand(n) - 1) * bound
