"""Blocks for images, `(C, H, W)`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


class Functional(nn.Module):
    """A convolution by function, with bare parameters."""

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs // groups, kernel, kernel))
        self.bias = nn.Parameter(torch.randn(outputs)) if bias else None
        self.groups, self.padding = groups, kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=self.padding, groups=self.groups)


class Turned(Functional):
    """The same with its kernel turned by quarters (Cohen and Welling 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.rot90(self.weight, self.groups, (2, 3))
        return F.conv2d(x, weight, self.bias, padding=self.padding, groups=self.groups)


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


class Scaled(nn.Conv2d):
    """A convolution whose weight is standardised by a batch norm, with a gain (NFNets, BiT)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int):
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, groups=groups)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, weight=self.gain.view(-1), training=True)
        weight = weight.reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, groups=self.groups)


class SpatialAttention(nn.Module):
    """Places gated by statistics over the channels (Woo et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        together = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.conv(together))


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


class Involution(nn.Module):
    """Kernels made from each place, applied to the windows around it (Li et al. 2021)."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.kernels = nn.Conv2d(channels, 9 * heads, 1)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        kernels = self.kernels(x).view(b, self.heads, 9, h, w).unsqueeze(2)
        windows = F.unfold(x, 3, padding=1).view(b, self.heads, c // self.heads, 9, h, w)
        return (kernels * windows).sum(3).view(b, c, h, w)


class Folded(nn.Module):
    """Windows cut out, changed and added up again."""

    def forward(self, x: Tensor) -> Tensor:
        windows = torch.tanh(F.unfold(x, 3, padding=1))
        return F.fold(windows, x.shape[2:], 3, padding=1)


class Sampled(nn.Module):
    """Read at the points of a learned grid."""

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = size
        self.theta = nn.Parameter(torch.tensor([[0.5, 0.1, 0.0], [-0.1, 0.4, 0.1]]))

    def forward(self, x: Tensor) -> Tensor:
        theta = self.theta.expand(x.shape[0], 2, 3)
        grid = F.affine_grid(theta, [x.shape[0], 1, *self.size], align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


class Unpooled(nn.Module):
    """Maxima, changed and put back where they were."""

    def forward(self, x: Tensor) -> Tensor:
        peaks, where = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(torch.tanh(peaks), where, 2, output_size=x.shape[2:])


class Filtered(nn.Module):
    """A learned filter over the frequencies of each channel."""

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = size
        self.gain = nn.Parameter(torch.rand(size[0], size[1] // 2 + 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * self.gain, s=self.size)
