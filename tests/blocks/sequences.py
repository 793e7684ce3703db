"""Blocks for tokens, `(T, C)`: attention in its many spellings, and what goes with it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention; `layout` and `kernel` choose among the usual ways to write it."""

    def __init__(
        self, channels: int, heads: int, width: int, layout: str, kernel: str, tokens: int
    ):
        super().__init__()
        self.heads, self.width, self.layout, self.kernel = heads, width, layout, kernel
        inner = heads * width
        self.scale = width**-0.5
        if layout.startswith("fused"):
            self.qkv = nn.Linear(channels, 3 * inner, bias=False)
        else:
            self.query, self.key = nn.Linear(channels, inner), nn.Linear(channels, inner)
            self.value = nn.Linear(channels, inner)
        self.out = nn.Linear(inner, channels)
        biased = kernel in ("biased", "masked")
        self.bias = nn.Parameter(torch.randn(heads, tokens, tokens)) if biased else None

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self._project(x)
        if self.kernel == "sdpa":
            mixed = F.scaled_dot_product_attention(query, key, value)
        elif self.kernel == "causal":
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3)
        elif self.kernel == "masked":
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self.bias)
        elif self.kernel == "einsum":
            scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / math.sqrt(self.width)
            mixed = torch.einsum("bhqk,bhkd->bhqd", scores.softmax(dim=-1), value)
        elif self.kernel == "shape":
            scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
            mixed = F.softmax(scores, dim=-1) @ value
        else:
            scores = (query * self.scale) @ key.transpose(-2, -1)
            if self.bias is not None:
                scores = scores + self.bias
            mixed = torch.softmax(scores, -1) @ value
        return self.out(self._together(mixed))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, t, _ = x.shape
        if self.layout == "fused":
            split = self.qkv(x).reshape(b, t, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
            return split[0], split[1], split[2]
        if self.layout == "fused unbind":
            split = self.qkv(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            query, key, value = split.unbind(0)
            return query, key, value
        if self.layout == "fused chunk":
            query, key, value = self.qkv(x).chunk(3, dim=-1)
        else:
            query, key, value = self.query(x), self.key(x), self.value(x)
        return self._heads(query), self._heads(key), self._heads(value)

    def _heads(self, part: Tensor) -> Tensor:
        b, t, _ = part.shape
        if self.layout == "unflatten":
            return part.unflatten(-1, (self.heads, self.width)).transpose(1, 2)
        if self.layout == "separate shape":
            part = part.view(b, t, self.heads, part.shape[-1] // self.heads)
        else:
            part = part.view(b, t, self.heads, self.width)
        return part.transpose(1, 2)

    def _together(self, mixed: Tensor) -> Tensor:
        if self.layout == "separate":
            b, h, t, d = mixed.shape
            return mixed.transpose(1, 2).contiguous().view(b, t, h * d)
        if self.layout == "fused":
            return mixed.transpose(1, 2).reshape(-1, mixed.shape[2], self.heads * self.width)
        return mixed.transpose(1, 2).flatten(2)


class FoldedAttention(nn.Module):
    """Multi-head attention with the heads folded into the batch, for `bmm`."""

    def __init__(self, channels: int, heads: int, width: int):
        super().__init__()
        self.heads, self.width = heads, width
        self.query, self.key = (nn.Linear(channels, heads * width) for _ in range(2))
        self.value = nn.Linear(channels, heads * width)
        self.out = nn.Linear(heads * width, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        query, key, value = (
            layer(x).view(b, t, self.heads, self.width).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        query, key, value = (
            part.reshape(b * self.heads, t, self.width) for part in (query, key, value)
        )
        weights = torch.bmm(query, key.transpose(1, 2)).softmax(-1)
        mixed = torch.bmm(weights, value).view(b, self.heads, t, self.width)
        return self.out(mixed.transpose(1, 2).reshape(b, t, self.heads * self.width))


class GroupedQueries(nn.Module):
    """Attention in which several query heads share a key and value head (Ainslie et al. 2023)."""

    def __init__(self, channels: int, heads: int, shared: int, width: int, native: bool):
        super().__init__()
        self.native = native
        self.heads, self.shared, self.width = heads, shared, width
        self.query = nn.Linear(channels, heads * width)
        self.key, self.value = (nn.Linear(channels, shared * width) for _ in range(2))
        self.out = nn.Linear(heads * width, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        query = self.query(x).view(b, t, self.heads, self.width).transpose(1, 2)
        key = self.key(x).view(b, t, self.shared, self.width).transpose(1, 2)
        value = self.value(x).view(b, t, self.shared, self.width).transpose(1, 2)
        if self.native:
            mixed = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        else:
            key = key.repeat_interleave(self.heads // self.shared, dim=1)
            value = value.repeat_interleave(self.heads // self.shared, dim=1)
            mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(b, t, self.heads * self.width))


class Rotary(nn.Module):
    """Attention whose queries and keys are rotated by position (Su et al. 2021)."""

    def __init__(self, channels: int, heads: int, width: int, tokens: int):
        super().__init__()
        self.heads, self.width = heads, width
        self.qkv = nn.Linear(channels, 3 * heads * width)
        self.out = nn.Linear(heads * width, channels)
        angles = torch.outer(torch.arange(tokens) + 1.0, 0.5 ** torch.arange(width // 2))
        self.register_buffer("cos", torch.cos(torch.cat([angles, angles], -1)))
        self.register_buffer("sin", torch.sin(torch.cat([angles, angles], -1)), persistent=False)

    def _rotated(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-second, first], dim=-1) * self.sin

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        split = self.qkv(x).view(b, t, 3, self.heads, self.width)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(self._rotated(query), self._rotated(key), value)
        return self.out(mixed.transpose(1, 2).reshape(b, t, -1))


class AttentionPool(nn.Module):
    """Tokens weighted by a learned score."""

    def __init__(self, channels: int):
        super().__init__()
        self.score = nn.Linear(channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.score(x).softmax(1) * x).sum(1)


class TokenMixing(nn.Module):
    """A linear layer over the tokens (MLP-Mixer, Tolstikhin et al. 2021)."""

    def __init__(self, tokens: int, inner: int):
        super().__init__()
        self.up, self.down = nn.Linear(tokens, inner), nn.Linear(inner, tokens)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x.transpose(1, 2)))).transpose(1, 2)


class TokenConv(nn.Module):
    """A one-dimensional convolution along the tokens."""

    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class SwiGlu(nn.Module):
    """Gated MLP (Shazeer 2020): two projections, or one that is cut in two."""

    def __init__(self, channels: int, inner: int, fused: bool):
        super().__init__()
        self.fused = fused
        self.up = nn.Linear(channels, 2 * inner if fused else inner)
        self.gate = None if fused else nn.Linear(channels, inner)
        self.down = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            value, gate = self.up(x).chunk(2, dim=-1)
        else:
            value, gate = self.up(x), self.gate(x)
        return self.down(value * F.silu(gate))


class Windows(nn.Module):
    """A block for tokens run in windows of `size` tokens (Swin, in one dimension)."""

    def __init__(self, inner: nn.Module, size: int, channels: int, shift: bool):
        super().__init__()
        self.inner, self.size, self.channels, self.shift = inner, size, channels, shift

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        if self.shift:
            x = torch.roll(x, -1, dims=1)
        x = x.view(b, t // self.size, self.size, self.channels)
        x = self.inner(x.reshape(-1, self.size, c))
        x = x.view(b, t // self.size, self.size, -1).reshape(b, t, -1)
        return torch.roll(x, 1, dims=1) if self.shift else x


class Recurrent(nn.Module):
    """A recurrent cell in a Python loop; the states are stacked."""

    def __init__(self, inputs: int, hidden: int, steps: int):
        super().__init__()
        self.read, self.carry = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden, bias=False)
        self.hidden, self.steps = hidden, steps

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], self.hidden)
        states = []
        for step in range(self.steps):
            state = torch.tanh(self.read(x[:, step]) + self.carry(state))
            states.append(state)
        return torch.stack(states, dim=1)


class Pool(nn.Module):
    """Neighbouring tokens pooled into one."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


class Turned(nn.Module):
    """Pairs of channels turned as complex numbers (Su et al. 2021), by an angle for each token."""

    def __init__(self, inputs: int, channels: int, tokens: int):
        super().__init__()
        self.inner = nn.Linear(inputs, channels)
        self.register_buffer("angles", torch.rand(tokens, channels // 2))

    def forward(self, x: Tensor) -> Tensor:
        pairs = self.inner(x).unflatten(-1, (-1, 2))
        turn = torch.polar(torch.ones_like(self.angles), self.angles)
        return torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(-2)


class Messages(nn.Module):
    """Every token sends itself to another one, by one of the operators that write to indices."""

    def __init__(self, target: list[int], style: str):
        super().__init__()
        self.style = style
        self.register_buffer("target", torch.tensor(target))

    def forward(self, x: Tensor) -> Tensor:
        match self.style:
            case "add":
                return torch.zeros_like(x).index_add(1, self.target, x)
            case "scatter":
                index = self.target[None, :, None].expand(x.shape[0], -1, x.shape[-1])
                return torch.zeros_like(x).scatter_add(1, index, x)
            case _:
                x = x * 1
                x[:, self.target[:1]] = x[:, -1:].relu()
                return x
