"""Blocks for values of any kind."""

from __future__ import annotations

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


class Slice(nn.Module):
    """A slice of the channels."""

    def __init__(self, start: int | None, stop: int | None, step: int | None):
        super().__init__()
        self.bounds = slice(start, stop, step)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.bounds]


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


class Outer(nn.Module):
    """The flattened outer product of two projections of a vector, or a mixture of it."""

    def __init__(self, inputs: int, left: int, right: int, style: str):
        super().__init__()
        self.left = nn.Linear(inputs, left)
        self.right = None if style == "itself" else nn.Linear(inputs, right)
        self.mix = nn.Bilinear(left, right, 6) if style == "bilinear" else None
        self.style = style

    def forward(self, x: Tensor) -> Tensor:
        left = self.left(x)
        if self.right is None:
            return (left.unsqueeze(2) * left.unsqueeze(1)).flatten(1)
        right = self.right(x)
        if self.mix is not None:
            return self.mix(left, right)
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
        self.listed, self.style = index, style

    def forward(self, x: Tensor) -> Tensor:
        match self.style:
            case "index":
                return x[:, self.index]
            case "list":
                return x[:, self.listed].flip(1)
            case "gather":
                places = (1,) * (x.dim() - 2)
                index = self.index.view(1, -1, *places).expand(x.shape[0], -1, *x.shape[2:])
                return x.gather(1, index)
            case _:
                return x.index_select(1, self.index)


class Stacked(nn.Module):
    """Several branches, stacked and weighted by a softmax over branches (Li et al. 2019)."""

    def __init__(self, branches: list[nn.Module], rank: int):
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.weights = nn.Parameter(torch.randn(len(branches), *(1,) * rank))

    def forward(self, x: Tensor) -> Tensor:
        together = torch.stack([branch(x) for branch in self.branches], dim=1)
        return (together * self.weights.softmax(0)).sum(1)


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
            case "topk":
                return x.topk(x.shape[1] // 2, dim=1).values
            case "peak":
                return x - x.max(1, keepdim=True).values
            case "share":
                return x - x.logsumexp(1, keepdim=True)
            case "product":
                return x * x.tanh().prod(1, keepdim=True)
            case "mode":
                return x + x.mode(1, keepdim=True).values
            case "gather":
                order = x.argsort(1, descending=True)
                return x.gather(1, order[:, : x.shape[1] - 1])
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


class Steps(nn.Module):
    """A vector field followed for a few Euler steps (Chen et al. 2018)."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.up, self.down = nn.Linear(channels, inner), nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + 0.3 * self.down(torch.tanh(self.up(x)))
        return x


class Numbered(nn.Module):
    """A learned vector added for the number of each place (Gehring et al. 2017)."""

    def __init__(self, places: int, channels: int):
        super().__init__()
        self.table = nn.Embedding(places, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table(torch.arange(x.shape[1]))


class Bagged(nn.Module):
    """The sum of two learned vectors, or the larger of their entries, added for each place."""

    def __init__(self, places: int, channels: int, mode: str):
        super().__init__()
        self.table = nn.EmbeddingBag(places + 1, channels, mode=mode)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        return x + self.table(torch.stack([places, places + 1], 1))


class Symmetric(nn.Module):
    """A parametrization: the upper half of a matrix, mirrored."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).T


class UnitRows(nn.Module):
    """A linear layer by function, whose rows have unit length."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ F.normalize(self.matrix, dim=1).t()
