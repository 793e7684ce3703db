"""Small modules, each written the way people write them, for random networks.

Shapes are given without the batch dimension: an image is `(C, H, W)`, tokens are `(T, C)`, a vector
is `(C,)`. Every block keeps samples apart, so that a batch of four is two batches of two.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """`x + f(x)`, optionally with a learned scale per channel (Touvron et al. 2021)."""

    def __init__(self, inner: nn.Module, scale: Tensor | None = None, inplace: bool = False):
        super().__init__()
        self.inner = inner
        self.scale = None if scale is None else nn.Parameter(scale)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        if self.scale is not None:
            out = out * self.scale
        if self.inplace:
            out += x
            return out
        return x + out


class Branches(nn.Module):
    """The results of several branches, concatenated."""

    def __init__(self, branches: list[nn.Module], dim: int = 1):
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], self.dim)


class Itself(nn.Module):
    """The input concatenated with itself."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x], 1)


class Halves(nn.Module):
    """Split in two; one half passes, the other is transformed; then together (ShuffleNet V2)."""

    def __init__(self, inner: nn.Module, how: str, first: int, total: int, dim: int = 1):
        super().__init__()
        self.inner, self.how, self.first, self.total, self.dim = inner, how, first, total, dim

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "chunk":
            left, right = x.chunk(2, dim=self.dim)
        elif self.how == "split":
            left, right = torch.split(x, [self.first, self.total - self.first], self.dim)
        elif self.how == "narrow":
            left = x.narrow(self.dim, 0, self.first)
            right = x.narrow(self.dim, self.first, self.total - self.first)
        else:
            left, right = x[:, : self.first], x[:, self.first :]
        return torch.cat([self.inner(left), right], self.dim)


class Slice(nn.Module):
    """A slice of the channels."""

    def __init__(self, start: int | None, stop: int | None, step: int | None):
        super().__init__()
        self.bounds = slice(start, stop, step)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.bounds]


class EvenOdd(nn.Module):
    """Even channels gate the odd ones."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, ::2] * torch.sigmoid(x[:, 1::2])


class Shuffle(nn.Module):
    """Channel shuffle by view and transpose; `style` says where the sizes come from."""

    def __init__(self, groups: int, channels: int, style: str):
        super().__init__()
        self.groups, self.channels, self.style = groups, channels, style

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "function":
            return F.channel_shuffle(x, self.groups)
        b, c, h, w = x.shape
        if self.style == "shape":
            folded = x.view(b, self.groups, c // self.groups, h, w)
            return folded.transpose(1, 2).reshape(b, c, h, w)
        folded = x.view(-1, self.groups, self.channels // self.groups, h, w)
        return folded.permute(0, 2, 1, 3, 4).contiguous().view(-1, self.channels, h, w)


class SqueezeExcite(nn.Module):
    """Channels scaled by a gate computed from their means (Hu et al. 2018)."""

    def __init__(self, channels: int, inner: int, style: str):
        super().__init__()
        self.style = style
        layer = nn.Linear if style == "linear" else (lambda i, o: nn.Conv2d(i, o, 1))
        self.reduce, self.expand = layer(channels, inner), layer(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "linear":
            gate = self.expand(F.relu(self.reduce(x.mean((2, 3))))).sigmoid()
            return x * gate[:, :, None, None]
        gate = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(gate))))


class Glu(nn.Module):
    """One half of the channels gates the other (Dauphin et al. 2017)."""

    def __init__(self, dim: int, style: str):
        super().__init__()
        self.dim, self.style = dim, style

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "function":
            return F.glu(x, self.dim)
        value, gate = x.chunk(2, self.dim)
        return value * torch.sigmoid(gate)


class Functional(nn.Module):
    """A convolution by function, with bare parameters."""

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs // groups, kernel, kernel))
        self.bias = nn.Parameter(torch.randn(outputs)) if bias else None
        self.groups, self.padding = groups, kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=self.padding, groups=self.groups)


class Mixing(nn.Module):
    """A 1x1 convolution written as an einsum or a matmul."""

    def __init__(self, inputs: int, outputs: int, style: str):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.style = style

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "einsum":
            return torch.einsum("bchw,oc->bohw", x, self.weight)
        b, _, h, w = x.shape
        return torch.matmul(self.weight, x.flatten(2)).reshape(b, -1, h, w)


class Lifted(nn.Module):
    """A two-dimensional block run as a three-dimensional convolution of one plane."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.unsqueeze(2)).squeeze(2)


class RowConv(nn.Module):
    """Image places in a row, under a one-dimensional convolution."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.flatten(2)).unflatten(2, x.shape[2:])


class NonLocal(nn.Module):
    """Attention over image places (Wang et al. 2018), written with `bmm`."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.query, self.key = nn.Conv2d(channels, inner, 1), nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        query, key = self.query(x).flatten(2), self.key(x).flatten(2)
        value = self.value(x).view(b, c, h * w)
        weights = torch.softmax(torch.bmm(query.transpose(1, 2), key), -1)
        return self.gain * torch.bmm(value, weights.transpose(1, 2)).view(b, c, h, w) + x


class ChannelsLast(nn.Module):
    """A block for tokens applied to an image in channels-last order (ConvNeXt)."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Shortcut(nn.Module):
    """Parameter-free shortcut: stride by slicing, new channels by zero padding (He et al. 2016)."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class Repeated(nn.Module):
    """Every channel several times, by unsqueeze, expand and reshape."""

    def __init__(self, times: int, inner: bool):
        super().__init__()
        self.times, self.inner = times, inner

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        if self.inner:
            return x.unsqueeze(2).expand(-1, -1, self.times, -1, -1).reshape(b, -1, h, w)
        return x.unsqueeze(1).expand(b, self.times, c, h, w).flatten(1, 2)


class Film(nn.Module):
    """An image scaled and shifted per channel by a vector (Perez et al. 2018)."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.project = nn.Linear(width, 2 * channels)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        scale, shift = self.project(vector).unsqueeze(-1).unsqueeze(-1).chunk(2, 1)
        return x * (1 + scale) + shift


class Sum(nn.Module):
    """The sum of two values; the second is projected where its width differs."""

    def __init__(self, project: nn.Module):
        super().__init__()
        self.project = project

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + self.project(y)


class Join(nn.Module):
    """Two values concatenated along their channels."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat((x, y), dim=self.dim)


class Tokens(nn.Module):
    """An image as a row of tokens, with class token and position table as in ViT."""

    def __init__(self, channels: int, places: int, class_token: bool, position: bool):
        super().__init__()
        extra = int(class_token)
        self.token = nn.Parameter(torch.randn(1, 1, channels)) if class_token else None
        self.table = nn.Parameter(torch.randn(1, places + extra, channels)) if position else None

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        return x if self.table is None else x + self.table


class Pooled(nn.Module):
    """Image or tokens to a vector."""

    def __init__(self, style: str):
        super().__init__()
        self.style = style

    def forward(self, x: Tensor) -> Tensor:
        match self.style:
            case "mean":
                return x.mean([2, 3])
            case "adaptive":
                return torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1)
            case "peak":
                return x.amax((-2, -1))
            case "view":
                return x.contiguous().view(x.size(0), -1)
            case "token":
                return x[:, 0]
            case "tokens":
                return x.mean(dim=1)
            case "sum":
                return x.sum(1)
            case _:
                return x.flatten(1)


class AttentionPool(nn.Module):
    """Tokens weighted by a learned score."""

    def __init__(self, channels: int):
        super().__init__()
        self.score = nn.Linear(channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.score(x).softmax(1) * x).sum(1)


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


class Outer(nn.Module):
    """The flattened outer product of two projections of a vector."""

    def __init__(self, inputs: int, left: int, right: int, style: str):
        super().__init__()
        self.left = nn.Linear(inputs, left)
        self.right = None if style == "itself" else nn.Linear(inputs, right)
        self.style = style

    def forward(self, x: Tensor) -> Tensor:
        left = self.left(x)
        if self.right is None:
            return (left.unsqueeze(2) * left.unsqueeze(1)).flatten(1)
        right = self.right(x)
        if self.style == "einsum":
            return torch.einsum("bi,bj->bij", left, right).flatten(1)
        return torch.bmm(left.unsqueeze(2), right.unsqueeze(1)).reshape(x.shape[0], -1)


class Buffered(nn.Module):
    """Channels shifted and scaled by buffers."""

    def __init__(self, channels: int, places: int):
        super().__init__()
        self.register_buffer("shift", torch.randn(channels))
        self.register_buffer("gain", torch.rand(channels) + 0.5, persistent=False)
        self.places = (1,) * places

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift.view(1, -1, *self.places)) * self.gain.reshape(-1, *self.places)


class Chosen(nn.Module):
    """Channels in the order of a constant index."""

    def __init__(self, index: list[int], style: str):
        super().__init__()
        self.register_buffer("index", torch.tensor(index))
        self.style = style

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.index] if self.style == "index" else x.index_select(1, self.index)


class Stacked(nn.Module):
    """Several branches, stacked and weighted by a softmax over branches (Li et al. 2019)."""

    def __init__(self, branches: list[nn.Module], rank: int):
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.weights = nn.Parameter(torch.randn(len(branches), *(1,) * rank))

    def forward(self, x: Tensor) -> Tensor:
        together = torch.stack([branch(x) for branch in self.branches], dim=1)
        return (together * self.weights.softmax(0)).sum(1)


class Standardised(nn.Module):
    """A convolution whose weight is standardised first (Qiao et al. 2019)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        mean = weight.mean((1, 2, 3), keepdim=True)
        deviation = weight.var((1, 2, 3), keepdim=True).add(1e-5).sqrt()
        return F.conv2d(x, (weight - mean) / deviation, self.conv.bias, padding=1)


class Along(nn.Module):
    """Operators that tie the channels together, so that they must stay."""

    def __init__(self, style: str):
        super().__init__()
        self.style = style

    def forward(self, x: Tensor) -> Tensor:
        match self.style:
            case "softmax":
                return torch.softmax(x, 1)
            case "cumsum":
                return x.cumsum(1)
            case "normalize":
                return F.normalize(x, dim=1)
            case "response":
                return F.local_response_norm(x, 2)
            case "centre":
                return x - x.mean(1, keepdim=True)
            case "sort":
                return x.sort(1).values
            case "flip":
                return x.flip(1)
            case "topk":
                return x.topk(x.shape[1] // 2, dim=1).values
            case _:
                return x.unfold(1, 2, 2).sum(-1)


class NormByHand(nn.Module):
    """A norm over the channels, written out: layer norm, RMS norm, or to unit length."""

    def __init__(self, channels: int, dim: int, rank: int, style: str):
        super().__init__()
        shape = (channels, *(1,) * (rank - 1)) if dim == 1 else (channels,)
        self.weight, self.bias = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.dim, self.style = dim, style

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "rms":
            return self.weight * x * torch.rsqrt(x.pow(2).mean(self.dim, keepdim=True) + 1e-6)
        if self.style == "unit":
            return self.weight * x / (x.norm(dim=self.dim, keepdim=True) + 1e-6)
        if self.style == "unbiased":
            return (x - x.mean(self.dim, True)) / (x.std(self.dim, keepdim=True) + 1e-6)
        mean = x.mean(self.dim, keepdim=True)
        variance = (x - mean).pow(2).mean(self.dim, keepdim=True)
        return self.weight * ((x - mean) / torch.sqrt(variance + 1e-6)) + self.bias


class InPlace(nn.Module):
    """Statements that write into tensors and drop what they return."""

    def __init__(self, channels: int, dim: int, rank: int):
        super().__init__()
        shape = (channels, *(1,) * (rank - 1)) if dim == 1 else (channels,)
        self.shift = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        y = x * 1.5
        y.add_(self.shift)
        y *= 0.5
        y.clamp_(-3, 3)
        return y


class SpatialAttention(nn.Module):
    """Places gated by statistics over the channels (Woo et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        together = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.conv(together))


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


class Steps(nn.Module):
    """A vector field followed for a few Euler steps (Chen et al. 2018)."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.up, self.down = nn.Linear(channels, inner), nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + 0.3 * self.down(torch.tanh(self.up(x)))
        return x


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
