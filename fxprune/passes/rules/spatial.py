"""Operators on places (height, width, ...): channels pass, places are mixed and stay."""

from __future__ import annotations

import numpy as np

from fxprune.axes import Axis, product, reordered
from fxprune.passes.rules.base import Op, Outputs, rule, tensors

MIXED = "places mixed by pooling, padding or resampling"


def _keep_leading(op: Op, places: int) -> Outputs:
    axes = op.axes(op.args[0])
    leading = axes[: len(axes) - places]
    for axis in axes[len(axes) - places :]:
        op.freeze(axis, MIXED)
    results: list[tuple[Axis, ...]] = []
    for result in tensors(op.out):
        sizes = result.shape[len(leading) :]
        results.append((*leading, *(op.frozen(size, MIXED) for size in sizes)))
    return list(results)


@rule(
    "avg_pool1d",
    "max_pool1d",
    "max_pool1d_with_indices",
    "adaptive_avg_pool1d",
    "adaptive_max_pool1d",
    "reflection_pad1d",
    "replication_pad1d",
    "upsample_nearest1d",
    "_upsample_nearest_exact1d",
    "upsample_linear1d",
)
def one_place_dimension(op: Op) -> Outputs:
    """The last dimension is a place."""
    return _keep_leading(op, 1)


@rule(
    "max_pool2d",
    "max_pool2d_with_indices",
    "avg_pool2d",
    "_adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "fractional_max_pool2d",
    "reflection_pad2d",
    "replication_pad2d",
    "upsample_nearest2d",
    "_upsample_nearest_exact2d",
    "upsample_bilinear2d",
    "_upsample_bilinear2d_aa",
    "upsample_bicubic2d",
    "_upsample_bicubic2d_aa",
)
def two_place_dimensions(op: Op) -> Outputs:
    """The last two dimensions are places."""
    return _keep_leading(op, 2)


@rule(
    "max_pool3d",
    "max_pool3d_with_indices",
    "avg_pool3d",
    "_adaptive_avg_pool3d",
    "adaptive_max_pool3d",
    "reflection_pad3d",
    "replication_pad3d",
    "upsample_nearest3d",
    "_upsample_nearest_exact3d",
    "upsample_trilinear3d",
)
def three_place_dimensions(op: Op) -> Outputs:
    """The last three dimensions are places."""
    return _keep_leading(op, 3)


@rule("pixel_shuffle", "pixel_unshuffle")
def pixel_shuffle(op: Op) -> Outputs:
    """`(C*r*r, H, W) <-> (C, H*r, W*r)`: the r*r positions within a channel stay."""
    axes = op.axes(op.args[0])
    factor = op.args[1]
    *lead, channels, height, width = axes
    shuffles = "unshuffle" not in op.func.overloadpacket.__name__
    for place in (height, width):
        op.freeze(place, MIXED)
    out = op.out.shape
    if shuffles:
        kept, rows, columns = op.factor(channels, (out[-3], factor, factor))
        for within in (rows, columns):
            op.freeze(within, "places folded into channels")
        result = kept
    else:
        within = op.frozen(factor * factor, "places folded into channels")
        result = op.unifier.resolve(product((channels, within)))
    return (*lead, result, op.frozen(out[-2], MIXED), op.frozen(out[-1], MIXED))


@rule("flip")
def flipped(op: Op) -> Outputs:
    """Positions of some dimensions in reverse, whichever stay."""
    axes = list(op.axes(op.args[0]))
    for dim in op.arg(1, "dims"):
        axes[dim] = reordered(axes[dim], np.arange(axes[dim].size)[::-1])
    return tuple(axes)


@rule("roll")
def rolled(op: Op) -> Outputs:
    """Positions move along some dimensions, which stay; the others pass."""
    axes = op.axes(op.args[0])
    for dim in op.arg(2, "dims", ()) or range(len(axes)):
        op.freeze(axes[dim], "positions move along this dimension")
    return axes


@rule("im2col")
def windows(op: Op) -> Outputs:
    """`(C, H, W) -> (C*k*k, windows)`: what `F.unfold` makes."""
    *lead, channels, height, width = op.axes(op.args[0])
    for place in (height, width):
        op.freeze(place, MIXED)
    within = op.frozen(op.out.shape[-2] // channels.size, "places folded into channels")
    folded = op.unifier.resolve(product((channels, within)))
    return (*lead, folded, op.frozen(op.out.shape[-1], MIXED))


@rule("col2im")
def overlaid(op: Op) -> Outputs:
    """`(C*k*k, windows) -> (C, H, W)`: windows added up, as `F.fold` does."""
    *lead, folded, places = op.axes(op.args[0])
    channels = op.out.shape[-3]
    kept, within = op.factor(folded, (channels, folded.size // channels))
    op.freeze(within, "places folded into channels")
    op.freeze(places, MIXED)
    return (*lead, kept, *(op.frozen(size, MIXED) for size in op.out.shape[-2:]))


@rule("unfold")
def sliding(op: Op) -> Outputs:
    """Windows along `dim`, whose places stay; what lies in one is a last dimension of its own."""
    axes = list(op.axes(op.args[0]))
    dim = op.arg(1, "dimension")
    op.freeze(axes[dim], MIXED)
    axes[dim] = op.frozen(op.out.shape[dim % len(axes)], MIXED)
    return (*axes, op.frozen(op.out.shape[-1], MIXED))


@rule("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler")
def sampled(op: Op) -> Outputs:
    """`(N, C, places)` read at the places that a grid `(N, new places, 2 or 3)` holds."""
    batch, channels, *places = op.axes(op.args[0])
    lead, *grid = op.axes(op.args[1])
    op.unify(batch, lead)
    for place in (*places, *grid):
        op.freeze(place, MIXED)
    return (batch, channels, *grid[:-1])


@rule("affine_grid_generator")
def affine_grid(op: Op) -> Outputs:
    """A grid for every matrix `(N, 2, 3)` of a batch."""
    batch, *matrix = op.axes(op.args[0])
    for axis in matrix:
        op.freeze(axis, "coordinates of places")
    return (batch, *(op.frozen(size, MIXED) for size in op.out.shape[1:]))


@rule("max_unpool2d", "max_unpool3d")
def unpooled(op: Op) -> Outputs:
    """Numbers go back to the places where maxima were found; channels correspond."""
    axes, found = op.axes(op.args[0]), op.axes(op.args[1])
    for mine, theirs in zip(axes, found, strict=True):
        op.unify(mine, theirs)
    return _keep_leading(op, 2 if "2d" in str(op.func) else 3)


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fourier(op: Op) -> Outputs:
    """A Fourier transform along some dimensions, whose positions stay; the others pass."""
    axes = list(op.axes(op.args[0]))
    for dim in op.arg(1, "dim"):
        op.freeze(axes[dim], f"transformed along dimension {dim}")
        axes[dim] = op.frozen(op.out.shape[dim], f"transformed along dimension {dim}")
    return tuple(axes)
