"""A region: what a backend runs as one fused kernel, described completely.

A region is one convolution, transposed convolution or linear layer, with the bias, the addition of
a second tensor and the activation that compilers fuse into it.  Latency tables are functions of a
region's widths, everything else held fixed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fxprune.errors import InputError

Operator = Literal["conv", "conv_transpose", "linear"]

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        "relu": nn.ReLU,
        "relu6": nn.ReLU6,
        "leaky_relu": nn.LeakyReLU,
        "silu": nn.SiLU,
        "hardswish": nn.Hardswish,
        "hardsigmoid": nn.Hardsigmoid,
        "sigmoid": nn.Sigmoid,
        "tanh": nn.Tanh,
        "gelu": nn.GELU,
        "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    }
)
"""The activations a region may end in, by name."""


@dataclass(frozen=True, slots=True)
class Region:
    """One fused kernel.

    spatial: input sizes after batch and channels.  For `linear`: () for inputs of shape
    [batch, in_width], (rows,) for [batch, rows, in_width].
    kernel, stride, padding, dilation, output_padding: one value per spatial dimension; left empty,
    stride and dilation become 1 and the paddings 0.  Empty for `linear`.
    residual: a second input of the output's shape is added before the activation.

    Raises `InputError` for a description that is no layer.
    """

    operator: Operator
    batch: int
    in_width: int
    out_width: int
    groups: int = 1
    spatial: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    bias: bool = True
    activation: str | None = None
    residual: bool = False

    def __post_init__(self) -> None:
        if self.operator not in get_args(Operator):
            raise InputError(f"operator {self.operator!r} is none of {get_args(Operator)}")
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise InputError(f"activation {self.activation!r} is none of {tuple(ACTIVATIONS)}")
        dims = len(self.kernel)
        if self.operator == "linear":
            extras = (self.kernel, self.stride, self.padding, self.dilation, self.output_padding)
            if any(extras) or self.groups != 1 or len(self.spatial) > 1:
                raise InputError("a linear region has no kernel and no groups", repr(self))
            dims = 0
        elif dims not in (1, 2, 3) or len(self.spatial) != dims:
            raise InputError("a convolution has 1, 2 or 3 kernel and spatial sizes", repr(self))
        fillings = (("stride", 1), ("padding", 0), ("dilation", 1), ("output_padding", 0))
        for name, value in fillings:
            if len(getattr(self, name)) not in (0, dims):
                raise InputError(f"{name} needs {dims} values", repr(self))
            # Frozen, but one description must have one canonical form: it keys the cache.
            object.__setattr__(self, name, getattr(self, name) or (value,) * dims)
        if min(self.batch, self.in_width, self.out_width, self.groups, *self.spatial) < 1:
            raise InputError("sizes must be positive", repr(self))
        if self.in_width % self.groups or self.out_width % self.groups:
            raise InputError(f"widths are not divisible by {self.groups} groups", repr(self))
        if min(self.out_spatial, default=1) < 1:
            raise InputError("the kernel is larger than the padded input", repr(self))

    @property
    def numbers(self) -> int:
        """How many there are in its inputs, its output and its weight."""
        weight = self.in_width // self.groups * self.out_width * math.prod(self.kernel)
        return math.prod(self.in_shape) + (1 + self.residual) * math.prod(self.out_shape) + weight

    @property
    def out_spatial(self) -> tuple[int, ...]:
        """Output sizes after batch and channels (for `linear`: those of the input)."""
        if self.operator == "linear":
            return self.spatial
        sizes = zip(
            self.spatial, self.kernel, self.stride, self.padding, self.dilation, strict=True
        )
        if self.operator == "conv":
            return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
        grown = ((n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in sizes)
        return tuple(n + extra for n, extra in zip(grown, self.output_padding, strict=True))

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of the input."""
        return self._shape(self.in_width, self.spatial)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the output, and of the residual input if there is one."""
        return self._shape(self.out_width, self.out_spatial)

    def _shape(self, width: int, spatial: tuple[int, ...]) -> tuple[int, ...]:
        if self.operator == "linear":
            return (self.batch, *spatial, width)
        return (self.batch, width, *spatial)

    def with_widths(self, in_width: int, out_width: int, groups: int | None = None) -> Region:
        """The same region at other widths (and groups)."""
        return dataclasses.replace(
            self,
            in_width=in_width,
            out_width=out_width,
            groups=self.groups if groups is None else groups,
        )

    def macs(self) -> int:
        """Multiply-accumulates of one run; bias, residual and activation are not counted."""
        positions = self.spatial if self.operator == "conv_transpose" else self.out_spatial
        per_position = self.in_width * self.out_width // self.groups * math.prod(self.kernel)
        return self.batch * math.prod(positions) * per_position

    def signature(self) -> str:
        """All of the region as one line of text: equal exactly for equal regions."""
        name = self.operator if self.operator == "linear" else f"{self.operator}{len(self.kernel)}d"
        sizes = (
            f"{field}{'x'.join(map(str, getattr(self, field)))}"
            for field in ("spatial", "kernel", "stride", "padding", "dilation", "output_padding")
            if getattr(self, field)
        )
        words = [
            name,
            f"batch{self.batch}",
            f"in{self.in_width}",
            f"out{self.out_width}",
            f"groups{self.groups}",
            *sizes,
            *(["bias"] if self.bias else []),
            *(["residual"] if self.residual else []),
            *([self.activation] if self.activation else []),
        ]
        return " ".join(words)

    def weights(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Weight and bias in PyTorch's layout; arbitrary values, the same on every call.

        A short random block is repeated, because drawing millions of numbers would take longer
        than the kernel that is to be measured.
        """
        rows, columns = self.out_width, self.in_width // self.groups
        if self.operator == "conv_transpose":
            rows, columns = self.in_width, self.out_width // self.groups
        block = np.random.default_rng(0).standard_normal(4099, dtype=np.float32)
        block /= np.float32(math.sqrt(columns * math.prod(self.kernel)))
        weight = np.resize(block, (rows, columns, *self.kernel))
        return weight, np.resize(block, self.out_width) if self.bias else None

    def inputs(self, device: str = "cpu") -> tuple[Tensor, ...]:
        """Random inputs, the same on every call: the input and, if asked for, the residual."""
        generator = torch.Generator().manual_seed(0)
        shapes = (self.in_shape, self.out_shape) if self.residual else (self.in_shape,)
        return tuple(torch.randn(shape, generator=generator).to(device) for shape in shapes)

    def as_module(self, device: str = "cpu") -> tuple[nn.Module, tuple[Tensor, ...]]:
        """The region in PyTorch, holding `weights()`, and inputs for it."""
        return _RegionModule(self).eval().to(device), self.inputs(device)


class _RegionModule(nn.Module):
    def __init__(self, region: Region) -> None:
        super().__init__()
        with torch.device("meta"):  # the values come next: draw none from the caller's generator
            self.layer = _layer(region)
        weight, bias = region.weights()
        state = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        tensors = {name: torch.from_numpy(array) for name, array in state.items()}
        self.layer.load_state_dict(tensors, assign=True)
        self.activation = ACTIVATIONS[region.activation]() if region.activation else nn.Identity()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y: Tensor = self.layer(x)
        if residual is not None:
            y = y + residual
        result: Tensor = self.activation(y)
        return result


def _layer(region: Region) -> nn.Module:
    widths = (region.in_width, region.out_width)
    if region.operator == "linear":
        return nn.Linear(*widths, bias=region.bias)
    kinds: tuple[Callable[..., nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    shape: dict[str, Any] = {
        "stride": region.stride,
        "padding": region.padding,
        "dilation": region.dilation,
        "groups": region.groups,
    }
    if region.operator == "conv_transpose":
        kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        shape["output_padding"] = region.output_padding
    return kinds[len(region.kernel) - 1](*widths, region.kernel, bias=region.bias, **shape)
