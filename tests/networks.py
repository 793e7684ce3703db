"""Small networks that several tests share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """A residual block with a projection where the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.project = nn.Conv2d(inputs, outputs, 1, stride) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.project(x))


class SmallResNet(nn.Module):
    """Three blocks, 8x8 images of three channels, four classes."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1)
        self.blocks = nn.Sequential(
            Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1)
        )
        self.head = nn.Linear(2 * width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def small_resnet(width: int = 16) -> SmallResNet:
    """The same small network every time."""
    torch.manual_seed(0)
    return SmallResNet(width).eval()


def images(batch: int = 2) -> Tensor:
    """The same images every time."""
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def labelled(batches: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Batches of images with labels that depend on them."""
    generator = torch.Generator().manual_seed(2)
    drawn = [torch.randn(8, 3, 8, 8, generator=generator) for _ in range(batches)]
    return [(x, (x.mean((1, 2, 3)) > 0).long() + 2 * (x[:, 0, 0, 0] > 0).long()) for x in drawn]
