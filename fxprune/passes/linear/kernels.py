"""Kernel algebra: linear maps with their numbers, composed and added exactly.

The identities are those of `geometry`; with weights W1 [C1, C0 / g1, *k1], W2 [C2, C1 / g2, *k2],

- in sequence:  W[o, i, d1 u + s1 d2 v] += sum_m W2[o, m, v] W1[m, i, u]  and
  b[o] = b2[o] + sum_{m, v} W2[o, m, v] b1[m]. The first is a transposed convolution of W1 with W2
  (stride d1, dilation s1 d2, in units of the merged dilation), which is how it is computed here.
- in parallel:  W = W1 + W2 with taps aligned, b = b1 + b2. An identity is a Dirac tap; a projection
  by a 1x1 kernel adds to the centre tap.

All of it is done in float64 on the CPU, so that a merged kernel is as good as its own precision
allows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fxprune.passes.linear import geometry
from fxprune.passes.linear.geometry import Geometry

_SCATTER = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """A linear map: weight [C_out, C_in / groups, *kernel] and bias [C_out], both float64."""

    geometry: Geometry
    weight: Tensor
    bias: Tensor | None


def identity(width: int, dims: int, padding: tuple[int, ...] | None = None) -> Kernel:
    """A Dirac tap per channel: changes nothing, or only pads with zeros (or crops)."""
    weight = torch.ones(width, 1, *(1,) * dims, dtype=torch.float64)
    return Kernel(geometry.identity(width, dims, padding), weight, None)


def scaling(scale: Tensor, shift: Tensor, dims: int) -> Kernel:
    """y = scale x + shift per channel, as a batch norm in evaluation mode."""
    weight = scale.reshape(-1, 1, *(1,) * dims)
    return Kernel(geometry.scaling(scale.numel(), dims), weight, shift)


def then(first: Kernel, second: Kernel) -> Kernel:
    """One kernel for `second` after `first`; all padding comes first (see `geometry`)."""
    a, b = first.geometry, second.geometry
    merged = a.then(b)
    if b == geometry.scaling(b.out_width, b.dims):
        return Kernel(merged, *_scaled(first, second))
    groups = merged.groups
    w1 = _regroup(first.weight, a.groups, groups)
    w2 = _regroup(second.weight, b.groups, groups)
    if merged.dims:
        w2 = _blocks(w2, groups).transpose(1, 2).flatten(0, 1)
        taken = zip(a.kernel, a.dilation, a.stride, b.kernel, b.dilation, strict=True)
        units = zip(taken, merged.dilation, strict=True)
        steps = [
            (d1 // d if k1 > 1 else 1, s1 * d2 // d if k2 > 1 else 1)
            for (k1, d1, s1, k2, d2), d in units
        ]
        weight = _SCATTER[merged.dims](
            w1.transpose(0, 1),
            w2,
            stride=tuple(stride for stride, _ in steps),
            dilation=tuple(dilation for _, dilation in steps),
            groups=groups,
        ).transpose(0, 1)
    else:
        weight = (_blocks(w2, groups) @ _blocks(w1, groups)).flatten(0, 1)
    return Kernel(merged, weight.contiguous(), _sum(second.bias, _carried(first.bias, second)))


def plus(first: Kernel, second: Kernel) -> Kernel:
    """One kernel for the sum of both results."""
    merged = first.geometry.plus(second.geometry)
    inner = merged.in_width // merged.groups
    weight = torch.zeros(merged.out_width, inner, *merged.kernel, dtype=torch.float64)
    for part in (first, second):
        source = _regroup(part.weight, part.geometry.groups, merged.groups)
        weight[(slice(None), slice(None), *_taps(part.geometry, merged))] += source
    return Kernel(merged, weight, _sum(first.bias, second.bias))


def _taps(part: Geometry, whole: Geometry) -> list[slice]:
    """Per dimension, where the taps of `part` lie in the kernel of a sum that it is part of."""
    taps = []
    for dim, unit in enumerate(whole.dilation):
        start = (whole.padding[dim] - part.padding[dim]) // unit
        stop = start + part.reach[dim] // unit + 1
        taps.append(slice(start, stop, max(part.dilation[dim] // unit, 1)))
    return taps


def _scaled(first: Kernel, second: Kernel) -> tuple[Tensor, Tensor | None]:
    """Weight and bias for a `second` that only scales and shifts: no sum over channels."""
    scale = second.weight.flatten()
    weight = first.weight * scale.reshape(-1, *(1,) * (first.weight.dim() - 1))
    return weight, _sum(second.bias, None if first.bias is None else first.bias * scale)


def _regroup(weight: Tensor, groups: int, fewer: int) -> Tensor:
    """The same map in fewer groups, a divisor: [O, I / groups, *k] to [O, I / fewer, *k]."""
    if groups == fewer:
        return weight
    ratio = groups // fewer
    rows, columns = weight.shape[0] // groups, weight.shape[1]
    wide = weight.new_zeros(fewer, ratio, rows, ratio, columns, *weight.shape[2:])
    diagonal = torch.arange(ratio)
    blocks = weight.reshape(fewer, ratio, rows, columns, *weight.shape[2:])
    wide[:, diagonal, :, diagonal] = blocks.transpose(0, 1)
    return wide.reshape(weight.shape[0], ratio * columns, *weight.shape[2:])


def _carried(bias: Tensor | None, second: Kernel) -> Tensor | None:
    """What a constant per channel becomes behind `second`, where it reads no padding."""
    if bias is None:
        return None
    groups = second.geometry.groups
    summed = second.weight.flatten(2).sum(2) if second.weight.dim() > 2 else second.weight
    return (_blocks(summed, groups) @ bias.reshape(groups, -1, 1)).flatten()


def _blocks(weight: Tensor, groups: int) -> Tensor:
    """Rows by group: [O, ...] to [groups, O / groups, ...]."""
    return weight.reshape(groups, -1, *weight.shape[1:])


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second
