"""The geometry of a linear map: one convolution, or several that act as one.

A convolution with kernel k, stride s, dilation d and padding p writes, at every output position o,

    y[o] = b + sum_t W[t] x[s o + d t - p],   t = 0 .. k - 1,   x zero outside of its range,

and so do a linear layer (no spatial dimensions), a batch norm in evaluation mode (k = 1, as many
groups as channels), zero padding and cropping (k = 1, p the zeros on either side, negative when it
crops). Two identities follow, per dimension, by writing one sum into the other:

- in sequence, 1 then 2: taps at d1 t1 + s1 d2 t2, stride s1 s2, padding p1 + s1 p2, gcd(g1, g2)
  groups. Undilated, this is the kernel k1 + s1 (k2 - 1). It is exact where 2 reads no padding
  (p2 <= 0); otherwise where 1 yields zeros outside of its range, as 2 assumes. It does so without a
  bias and with p1 >= d1 (k1 - 1), because every window that starts outside then sees zeros only.
- in parallel: taps aligned by the paddings, at max(p1, p2) - p + d t. The sizes of both results
  agree for every input exactly if d1 (k1 - 1) - 2 p1 = d2 (k2 - 1) - 2 p2.

The sequential rule for kernel and padding is that of Kim et al. (ICML 2023, "Efficient
Latency-Aware CNN Depth Compression via Two-Stage Dynamic Programming"), here for any stride,
dilation, number of groups and number of dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Geometry:
    """A convolution without its numbers.

    kernel, stride, padding, dilation hold one value per spatial dimension; all are empty for a map
    over the last dimension alone, as a linear layer is.
    """

    in_width: int
    out_width: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    bias: bool

    @property
    def dims(self) -> int:
        """Number of spatial dimensions; 0 for linear layers."""
        return len(self.kernel)

    @property
    def reach(self) -> tuple[int, ...]:
        """Distance between the first and the last tap, in input positions."""
        return tuple(d * (k - 1) for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def weights(self) -> int:
        """Entries of the weight: multiply-accumulates per output position."""
        return self.out_width * (self.in_width // self.groups) * math.prod(self.kernel)

    def then(self, second: Geometry) -> Geometry:
        """`second` applied to the result of this map, with all padding moved to the front."""
        # A kernel of one tap has no dilation; what it is written with must not count.
        steps = [
            (d1 if k1 > 1 else 0, s1 * d2 if k2 > 1 else 0)
            for k1, d1, s1, k2, d2 in zip(
                self.kernel, self.dilation, self.stride, second.kernel, second.dilation, strict=True
            )
        ]
        dilation = tuple(math.gcd(*pair) or 1 for pair in steps)
        reaches = [
            r1 + s1 * r2 for r1, s1, r2 in zip(self.reach, self.stride, second.reach, strict=True)
        ]
        return Geometry(
            in_width=self.in_width,
            out_width=second.out_width,
            kernel=tuple(r // d + 1 for r, d in zip(reaches, dilation, strict=True)),
            stride=tuple(a * b for a, b in zip(self.stride, second.stride, strict=True)),
            padding=tuple(
                p1 + s1 * p2
                for p1, s1, p2 in zip(self.padding, self.stride, second.padding, strict=True)
            ),
            dilation=dilation,
            groups=math.gcd(self.groups, second.groups),
            bias=self.bias or second.bias,
        )

    def is_exact_before(self, second: Geometry) -> bool:
        """Whether `then` computes the same at the border, although it moves the padding."""
        places = zip(self.reach, self.padding, second.padding, strict=True)
        return all(p2 <= 0 or (not self.bias and p1 >= r1) for r1, p1, p2 in places)

    def why_not_plus(self, other: Geometry) -> str | None:
        """Why the two maps cannot be added into one, or None if they can."""
        if (self.in_width, self.out_width) != (other.in_width, other.out_width):
            return "the branches have different channels"
        if self.stride != other.stride:
            return "the branches have different strides"
        if self._shrinkage() != other._shrinkage():
            return "the branches shrink their input by different amounts"
        return None

    def _shrinkage(self) -> tuple[int, ...]:
        return tuple(r - 2 * p for r, p in zip(self.reach, self.padding, strict=True))

    def plus(self, other: Geometry) -> Geometry:
        """The sum of both results, for maps that `why_not_plus` has nothing against."""
        padding = tuple(map(max, self.padding, other.padding))
        dilation = []
        for dim, p in enumerate(padding):
            steps = [m.dilation[dim] for m in (self, other) if m.kernel[dim] > 1]
            offsets = [p - m.padding[dim] for m in (self, other)]
            dilation.append(math.gcd(*steps, *offsets) or 1)
        reach = map(max, self.reach, other.reach)
        return Geometry(
            in_width=self.in_width,
            out_width=self.out_width,
            kernel=tuple(r // d + 1 for r, d in zip(reach, dilation, strict=True)),
            stride=self.stride,
            padding=padding,
            dilation=tuple(dilation),
            groups=math.gcd(self.groups, other.groups),
            bias=self.bias or other.bias,
        )

    def out_spatial(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """Output sizes for the given input sizes."""
        places = zip(spatial, self.padding, self.reach, self.stride, strict=True)
        return tuple((n + 2 * p - r - 1) // s + 1 for n, p, r, s in places)


def identity(width: int, dims: int, padding: tuple[int, ...] | None = None) -> Geometry:
    """The map that changes nothing, or that only pads with zeros (or crops)."""
    ones = (1,) * dims
    return Geometry(width, width, ones, ones, padding or (0,) * dims, ones, width, False)


def scaling(width: int, dims: int) -> Geometry:
    """A scale and a shift per channel, as a batch norm in evaluation mode."""
    ones = (1,) * dims
    return Geometry(width, width, ones, ones, (0,) * dims, ones, width, True)
