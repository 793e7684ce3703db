"""Networks with everything that merging and folding must cope with, in float64."""

from __future__ import annotations

import random
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Sum(nn.Module):
    """The sum of several branches, added one after the other."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        total = self.branches[0](x)
        for branch in list(self.branches)[1:]:
            total = total + branch(x)
        return total


class Skip(nn.Module):
    """`x + f(x)`, with nothing in the graph for the skip connection itself."""

    def __init__(self, inner: nn.Module, inplace: bool = False) -> None:
        super().__init__()
        self.inner = inner
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        if self.inplace:
            out += x
            return out
        return x + out


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """`module` in float64 and evaluation mode, with statistics and biases that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, _BatchNorm) and part.running_mean is not None:
            part.running_mean.normal_(0, 0.3, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
        if isinstance(part, _BatchNorm) and part.affine:
            nn.init.uniform_(part.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(part.bias, 0, 0.3, generator=generator)
    return module.double().eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@torch.no_grad()
def gap(found: nn.Module, expected: nn.Module, *inputs: Tensor) -> float:
    """Largest difference of two modules' outputs in evaluation mode, over the largest output."""
    want, have = expected.eval()(*inputs), found.eval()(*inputs)
    assert have.shape == want.shape
    assert float(want.abs().max()) > 1e-6
    return float((have - want).abs().max() / want.abs().max())


def count(module: fx.GraphModule, *kinds: type[nn.Module]) -> int:
    """How many nodes call a module of one of `kinds`."""
    called = [n for n in module.graph.nodes if n.op == "call_module"]
    return sum(isinstance(module.get_submodule(str(n.target)), kinds) for n in called)


class Grower:
    """Draws random chains: every layer, activation and skip that a span may hold."""

    def __init__(self, seed: int, dims: int) -> None:
        self.random = random.Random(seed)
        self.dims = dims

    def chain(self, width: int, length: int) -> tuple[nn.Sequential, int]:
        """A chain with `width` input channels; also its output channels."""
        parts: list[nn.Module] = []
        for place in range(length):
            if self.random.random() < 0.3:
                part, width = self._fork(width)
            else:
                part, width = self._layer(width, self.random.choice((2, 4, 6)))
            parts.extend([part, *(self._between() if place < length - 1 else ())])
        return nn.Sequential(*parts), width

    def _between(self) -> Iterable[nn.Module]:
        if self.random.random() < 0.6:
            yield self.random.choice((nn.ReLU(), nn.ReLU(inplace=True), nn.SiLU(), nn.Dropout(0.1)))

    def _layer(
        self, width: int, out: int, same: bool = False, strides: tuple[int, ...] | None = None
    ) -> tuple[nn.Module, int]:
        """A convolution, perhaps with a norm; `same` keeps the size apart from the stride."""
        draw = self.random.choice
        dims = range(self.dims)
        kernel = tuple(draw((1, 3) if same or self.dims == 3 else (1, 2, 3)) for _ in dims)
        stride = tuple(draw((1, 1, 2)) for _ in dims) if strides is None else strides
        dilation = tuple(draw((1, 1, 2)) for _ in dims)
        padding = tuple(
            d * (k - 1) // 2 if same else draw((0, 1))
            for k, d in zip(kernel, dilation, strict=True)
        )
        groups = draw([g for g in (1, 2, width) if width % g == 0 and out % g == 0])
        layer = CONVOLUTIONS[self.dims](
            width, out, kernel, stride, padding, dilation, groups, bias=draw((True, False))
        )
        norm = [NORMS[self.dims](out)] if draw((True, False)) else []
        return nn.Sequential(layer, *norm), out

    def _fork(self, width: int) -> tuple[nn.Module, int]:
        one = (1,) * self.dims
        kind = self.random.choice(("identity", "projection", "parallel", "nested"))
        if kind in ("identity", "nested"):
            first, inner = self._layer(width, 4, same=True, strides=one)
            between: nn.Module = nn.ReLU()
            if kind == "nested":
                between = Skip(self._layer(inner, inner, same=True, strides=one)[0])
            last, _ = self._layer(inner, width, same=True, strides=one)
            branch = nn.Sequential(first, between, last)
            return Skip(branch, inplace=self.random.random() < 0.5), width
        strides = tuple(self.random.choice((1, 2)) for _ in one)
        first, inner = self._layer(width, 4, same=True, strides=strides)
        last, out = self._layer(inner, 6, same=True, strides=one)
        main = nn.Sequential(first, nn.ReLU(), last)
        other = CONVOLUTIONS[self.dims](width, out, 1, strides, bias=False)
        if kind == "projection":
            return Sum(main, nn.Sequential(other, NORMS[self.dims](out))), out
        parallel, _ = self._layer(width, out, same=True, strides=strides)
        return Sum(main, parallel, other), out


class Functional(nn.Module):
    """A convolution and a batch norm written with functions."""

    def __init__(self, bias: bool, training: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(noise(4, 1, 3, 3, seed=1))
        self.bias = nn.Parameter(noise(4, seed=2)) if bias else None
        self.training_flag = training
        self.register_buffer("mean", noise(4, seed=3))
        self.register_buffer("var", noise(4, seed=4).abs() + 0.5)
        self.gamma = nn.Parameter(noise(4, seed=5))
        self.beta = nn.Parameter(noise(4, seed=6))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, self.bias, stride=2, padding=1, groups=2)
        return F.batch_norm(
            x, self.mean, self.var, self.gamma, self.beta, training=self.training_flag, eps=1e-3
        )
