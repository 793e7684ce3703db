"""Rows for images."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from tests.blocks import images, plain
from tests.rows import WIDTHS, Shape, activation, divisors, row


def image_norm(rng: random.Random, shape: Shape) -> nn.Module:
    channels = shape[0]
    kinds: list[Callable[[], nn.Module]] = [
        lambda: nn.BatchNorm2d(channels),
        lambda: nn.BatchNorm2d(channels),
        lambda: nn.BatchNorm2d(channels, affine=False),
        nn.Identity,
        lambda: nn.GroupNorm(rng.choice([1, *divisors(channels)][:-1] or [1]), channels),
        lambda: nn.InstanceNorm2d(channels, affine=True),
        lambda: images.ChannelsLast(nn.LayerNorm(channels)),
        lambda: nn.LayerNorm(shape, elementwise_affine=rng.random() < 0.5),
    ]
    return rng.choice(kinds)()


def convolution(rng: random.Random, inputs: int, outputs: int, height: int) -> nn.Module:
    """Any kind of two-dimensional convolution from `inputs` to `outputs` channels."""
    bias = rng.random() < 0.6
    common = [g for g in divisors(inputs) if outputs % g == 0]
    kind = rng.choice(["1x1", "3x3", "3x3", "dilated", "grouped", "strided", "depthwise", "other"])
    if kind == "grouped" and common:
        return nn.Conv2d(inputs, outputs, 3, padding=1, groups=rng.choice(common), bias=bias)
    if kind == "depthwise" and outputs % inputs == 0:
        return nn.Conv2d(inputs, outputs, 3, padding=1, groups=inputs, bias=bias)
    if kind == "dilated" and height > 4:
        return nn.Conv2d(inputs, outputs, 3, padding=2, dilation=2, bias=bias)
    if kind == "strided" and height >= 4:
        return nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=bias)
    if kind == "other":
        return other_convolution(rng, inputs, outputs, height, bias)
    if kind == "1x1":
        return nn.Conv2d(inputs, outputs, 1, bias=bias)
    mode = rng.choice(["zeros", "zeros", "zeros", "reflect", "circular"])
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias, padding_mode=mode)


def other_convolution(
    rng: random.Random, inputs: int, outputs: int, height: int, bias: bool
) -> nn.Module:
    common = [g for g in divisors(inputs) if outputs % g == 0]
    kinds: list[Callable[[], nn.Module]] = [
        lambda: images.Functional(inputs, outputs, rng.choice([1, 3]), 1, bias),
        lambda: images.Mixing(inputs, outputs, rng.choice(["einsum", "matmul"])),
        lambda: images.Lifted(inputs, outputs),
        lambda: images.RowConv(inputs, outputs),
        lambda: images.Standardised(inputs, outputs),
        lambda: weight_norm(nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)),
        lambda: spectral_norm(nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)),
        lambda: images.Scaled(inputs, outputs, 3, rng.choice([1, *common])),
        lambda: images.ChannelsLast(nn.Linear(inputs, outputs)),
    ]
    if common:
        groups = rng.choice(common)
        kinds.append(lambda: images.Functional(inputs, outputs, 3, groups, bias))
        kinds.append(lambda: images.Turned(inputs, outputs, 3, groups, bias))
    if height <= 4:
        kinds += [lambda: nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=bias)] * 2
    if height <= 4 and common:
        kinds.append(
            lambda: nn.ConvTranspose2d(
                inputs, outputs, 3, stride=2, padding=1, output_padding=1, groups=rng.choice(common)
            )
        )
    return rng.choice(kinds)()


@row(3, weight=4)
def conv_norm_act(rng: random.Random, shape: Shape) -> nn.Module:
    out = rng.choice(WIDTHS)
    conv = convolution(rng, shape[0], out, shape[1])
    after = tuple(conv(torch.zeros(1, *shape)).shape[1:])
    return nn.Sequential(conv, image_norm(rng, after), activation(rng, out))


@row(3, weight=2)
def residual_image(rng: random.Random, shape: Shape) -> nn.Module:
    channels, inner = shape[0], rng.choice(WIDTHS)
    first = nn.Conv2d(channels, inner, rng.choice([1, 3]), padding="same", bias=False)
    last = nn.Conv2d(inner, channels, 3, padding=1)
    body = nn.Sequential(first, image_norm(rng, (inner, *shape[1:])), activation(rng, inner), last)
    scale = torch.rand(channels, 1, 1) if rng.random() < 0.3 else None
    return plain.Residual(body, scale, inplace=rng.random() < 0.2)


@row(3)
def inverted_residual(rng: random.Random, shape: Shape) -> nn.Module:
    channels = shape[0]
    inner = channels * rng.choice([1, 2])
    body = [
        nn.Conv2d(channels, inner, 1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU6(),
        nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False),
        nn.BatchNorm2d(inner),
        images.SqueezeExcite(inner, 4, "conv"),
        nn.Conv2d(inner, channels, 1, bias=False),
    ]
    return plain.Residual(nn.Sequential(*body))


@row(3)
def branches(rng: random.Random, shape: Shape) -> nn.Module | None:
    if shape[0] > 12:
        return None
    first: nn.Module = nn.Conv2d(shape[0], rng.choice(WIDTHS), 1)
    second = nn.Conv2d(shape[0], rng.choice(WIDTHS), 3, padding=1)
    parts = rng.choice([[first, second], [nn.Identity(), second], [second, nn.MaxPool2d(3, 1, 1)]])
    return plain.Branches(parts)


@row(3)
def halves(rng: random.Random, shape: Shape) -> nn.Module | None:
    channels = shape[0]
    if channels % 2 or channels < 4:
        return None
    how = rng.choice(["chunk", "split", "narrow", "slice"])
    first = channels // 2 if how == "chunk" else rng.randrange(2, channels - 1)
    inner = nn.Sequential(
        nn.Conv2d(first, first, 3, padding=1, groups=rng.choice([1, first])), activation(rng, first)
    )
    body = images.Halves(inner, how, first, channels)
    if how == "chunk" and rng.random() < 0.6:
        return nn.Sequential(body, images.Shuffle(2, channels, "shape"))
    return body


@row(3, weight=0.5)
def even_odd(rng: random.Random, shape: Shape) -> nn.Module | None:
    return images.EvenOdd() if shape[0] % 2 == 0 and shape[0] >= 8 else None


@row(3)
def shuffle(rng: random.Random, shape: Shape) -> nn.Module | None:
    possible = [d for d in divisors(shape[0]) if d < shape[0]]
    if not possible:
        return None
    groups, style = rng.choice(possible), rng.choice(["shape", "numbers", "function", "module"])
    if style == "module":
        return nn.ChannelShuffle(groups)
    return images.Shuffle(groups, shape[0], style)


@row(3)
def squeeze_excite(rng: random.Random, shape: Shape) -> nn.Module:
    return images.SqueezeExcite(shape[0], rng.choice([2, 4]), rng.choice(["conv", "linear"]))


@row(3)
def resize(rng: random.Random, shape: Shape) -> nn.Module | None:
    channels, height, _ = shape
    if height % 2 == 0 and height > 2 and rng.random() < 0.5:
        return rng.choice([nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(height // 2)])
    if height <= 4:
        choices: list[nn.Module] = [nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2)]
        if channels % 4 == 0 and channels > 4:
            choices += [nn.PixelShuffle(2)] * 3
        return rng.choice(choices)
    if height % 2 == 0 and channels <= 6:
        return nn.PixelUnshuffle(2)
    return nn.MaxPool2d(3, 1, 1)


@row(3, weight=0.5)
def shortcut(rng: random.Random, shape: Shape) -> nn.Module | None:
    if shape[0] > 12 or shape[1] < 4:
        return None
    return images.Shortcut(rng.choice([0, 2]), rng.choice([1, 2]))


@row(3, weight=0.7)
def repeated(rng: random.Random, shape: Shape) -> nn.Module | None:
    return images.Repeated(2, rng.random() < 0.5) if shape[0] <= 8 else None


@row(3)
def non_local(rng: random.Random, shape: Shape) -> nn.Module:
    return images.NonLocal(shape[0], rng.choice([3, 4]))


@row(3)
def convnext(rng: random.Random, shape: Shape) -> nn.Module:
    channels = shape[0]
    mlp = nn.Sequential(
        nn.LayerNorm(channels), nn.Linear(channels, 8), nn.GELU(), nn.Linear(8, channels)
    )
    depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
    body = nn.Sequential(depthwise, images.ChannelsLast(mlp))
    return plain.Residual(body, torch.rand(channels, 1, 1))


@row(3, weight=0.5)
def stacked(rng: random.Random, shape: Shape) -> nn.Module:
    out = rng.choice(WIDTHS)
    parts = [nn.Conv2d(shape[0], out, k, padding=k // 2) for k in (1, 3)]
    return plain.Stacked(parts, 3)


@row(3, weight=0.6)
def spatial_attention(rng: random.Random, shape: Shape) -> nn.Module:
    return images.SpatialAttention()


@row(3, weight=1.5)
def tokens(rng: random.Random, shape: Shape) -> nn.Module | None:
    places = shape[1] * shape[2]
    if places > 40:
        return None
    return images.Tokens(shape[0], places, rng.random() < 0.5, rng.random() < 0.5)


@row(3, weight=0.4)
def image_to_vector(rng: random.Random, shape: Shape) -> nn.Module:
    return plain.Pooled(rng.choice(["mean", "adaptive", "peak", "view", "flatten"]))


@row(3, weight=0.5)
def involution(rng: random.Random, shape: Shape) -> nn.Module:
    return images.Involution(shape[0], rng.choice([1, *divisors(shape[0])]))


@row(3, weight=0.4)
def folded(rng: random.Random, shape: Shape) -> nn.Module:
    return images.Folded()


@row(3, weight=0.4)
def sampled(rng: random.Random, shape: Shape) -> nn.Module:
    return images.Sampled((rng.choice([3, 4]), 4))


@row(3, weight=0.4)
def unpooled(rng: random.Random, shape: Shape) -> nn.Module | None:
    return images.Unpooled() if min(shape[1:]) >= 2 else None


@row(3, weight=0.4)
def filtered(rng: random.Random, shape: Shape) -> nn.Module:
    return images.Filtered((shape[1], shape[2]))
