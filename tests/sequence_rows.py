"""Rows for tokens."""

from __future__ import annotations

import random

import torch
from torch import nn

from tests.blocks import plain, sequences
from tests.rows import WIDTHS, Shape, divisors, row


@row(2, weight=4)
def attention(rng: random.Random, shape: Shape) -> nn.Module:
    count, channels = shape
    heads, width = rng.choice([(2, 3), (2, 4), (3, 2), (4, 2), (1, 4)])
    kind = rng.random()
    if kind < 0.15:
        inner: nn.Module = sequences.FoldedAttention(channels, heads, width)
    elif kind < 0.3:
        inner = sequences.GroupedQueries(channels, 4, 2, width, rng.random() < 0.5)
    elif kind < 0.35:
        inner = sequences.Rotary(channels, 2, 4, count)
    else:
        layouts = ["fused", "fused unbind", "fused chunk", "separate", "separate shape"]
        layouts.append("unflatten")
        kernels = ["sdpa", "causal", "masked", "biased", "einsum", "shape", "scaled"]
        inner = sequences.Attention(
            channels, heads, width, rng.choice(layouts), rng.choice(kernels), count
        )
    sizes = [d for d in divisors(count) if d < count]
    if kind > 0.8 and sizes and getattr(inner, "bias", None) is None:
        inner = sequences.Windows(inner, rng.choice(sizes), channels, rng.random() < 0.5)
    norm = rng.choice([nn.LayerNorm, nn.RMSNorm, nn.Identity])
    return plain.Residual(nn.Sequential(norm(channels), inner))


@row(2, weight=2)
def mlp(rng: random.Random, shape: Shape) -> nn.Module:
    channels, inner = shape[1], rng.choice([6, 8, 12])
    two_layers = nn.Sequential(
        nn.Linear(channels, inner),
        nn.GELU(),
        nn.Dropout(0.1),
        nn.Linear(inner, channels, bias=rng.random() < 0.5),
    )
    body = rng.choice([two_layers, sequences.SwiGlu(channels, inner, rng.random() < 0.5)])
    norm = rng.choice([nn.LayerNorm(channels), nn.RMSNorm(channels), nn.LayerNorm(channels, 1e-6)])
    scale = torch.rand(channels) if rng.random() < 0.3 else None
    return plain.Residual(nn.Sequential(norm, body), scale)


@row(2)
def token_linear(rng: random.Random, shape: Shape) -> nn.Module:
    out = rng.choice(WIDTHS)
    return nn.Sequential(nn.Linear(shape[1], out), activation_last(rng))


def activation_last(rng: random.Random) -> nn.Module:
    return rng.choice([nn.ReLU(), nn.GELU(), nn.Tanh(), nn.SiLU(inplace=True)])


@row(2)
def across_tokens(rng: random.Random, shape: Shape) -> nn.Module:
    count, channels = shape
    if rng.random() < 0.5:
        return sequences.TokenMixing(count, rng.choice([4, 6]))
    out = rng.choice(WIDTHS)
    groups = rng.choice([1, *(g for g in divisors(channels) if out % g == 0)])
    return sequences.TokenConv(channels, out, groups)


@row(2, weight=0.8)
def tokens_to_vector(rng: random.Random, shape: Shape) -> nn.Module:
    if rng.random() < 0.2:
        return sequences.AttentionPool(shape[1])
    return plain.Pooled(rng.choice(["token", "tokens", "sum", "flatten"]))


@row(2, weight=0.5)
def recurrent(rng: random.Random, shape: Shape) -> nn.Module:
    return sequences.Recurrent(shape[1], rng.choice([4, 6]), min(shape[0], 4))


@row(2, weight=0.5)
def numbered(rng: random.Random, shape: Shape) -> nn.Module:
    if rng.random() < 0.4:
        return plain.Bagged(*shape, rng.choice(["sum", "mean", "max"]))
    return plain.Numbered(*shape)


@row(2, weight=0.5)
def turned(rng: random.Random, shape: Shape) -> nn.Module:
    return sequences.Turned(shape[1], rng.choice([4, 6, 8]), shape[0])


@row(2, weight=0.5)
def pooled(rng: random.Random, shape: Shape) -> nn.Module | None:
    if shape[0] < 4:
        return None
    kinds = [nn.MaxPool1d(2), nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(3), nn.ReflectionPad1d(1)]
    return sequences.Pool(rng.choice([*kinds, nn.Upsample(scale_factor=2, mode="linear")]))


@row(2, weight=1.5)
def messages(rng: random.Random, shape: Shape) -> nn.Module:
    target = [rng.randrange(shape[0]) for _ in range(shape[0])]
    return sequences.Messages(target, rng.choice(["add", "scatter", "put"]))
