"""The latency of every layer as a function of its widths, measured in the backend's own kernels.

First the stairs are found, once for each kind of layer (`stairs`). Then each layer is measured on
the stairs: at its smallest, a middle and its dense width, and between these where the latency turns
out not to be a straight line (`kernel_clock` measures and caches).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from fxprune.axes import Atom
from fxprune.backends.base import Backend
from fxprune.backends.region import Region
from fxprune.backends.settings import Settings
from fxprune.cache import Cache
from fxprune.passes import stairs
from fxprune.passes.allocation.widths import Choices
from fxprune.passes.kernel_clock import KernelClock
from fxprune.passes.layers import Layer
from fxprune.passes.stairs import Stairs

Array = NDArray[np.float64]
Corners = tuple[tuple[int, ...], ...]

# Shares of the dense width at which a kernel is measured, besides the smallest one: always, and
# where a straight line through those is further off than the tolerance.
COARSE = (0.5, 1.0)
FINE = (0.25, 0.5, 0.75, 1.0)
TOLERANCE = 0.03
# Of a width, how far apart two measured ones must be to tell how steep it is between them.
CLOSEST = 1 / 32
# The widths that a probe does not vary need not be larger: the pattern is the same.
WIDEST_PROBE = 256


@dataclass(frozen=True)
class LayerLatency:
    """Seconds of one layer as a function of its widths.

    `corners` are the measured widths along each coordinate: (inputs, outputs) without groups;
    (groups, inputs of a group, outputs of a group) with them. `stairs` has those of each
    coordinate.
    """

    layer: Layer
    corners: Corners
    seconds: Array
    stairs: tuple[Stairs, ...]

    def __call__(self, width_in: Any, width_out: Any, inner: Any) -> Array:
        """Seconds at the given widths (arrays that broadcast); `inner` as in `Layer`."""
        coordinates = _coordinates(self.layer, width_in, width_out, inner)
        places = np.broadcast_arrays(*coordinates)
        live = [i for i, corner in enumerate(self.corners) if len(corner) > 1]
        if not live:
            return np.broadcast_to(self.seconds.reshape(()), places[0].shape)
        grid = RegularGridInterpolator(
            [self.stairs[i](np.array(self.corners[i])) for i in live],
            self.seconds.squeeze(tuple(set(range(len(self.corners))) - set(live))),
            bounds_error=False,
            fill_value=None,
        )
        found = grid(np.stack([self.stairs[i](places[i]) for i in live], axis=-1))
        found = found.reshape(places[0].shape)
        # Outside of what was measured a straight line may fall below zero; a kernel cannot.
        return np.asarray(np.maximum(found, self.seconds.min() / 10), dtype=np.float64)

    def at(self, sizes: Mapping[Atom, int]) -> float:
        """Seconds when atoms have the given sizes."""
        return float(self(*map(np.array, self.layer.widths(sizes))))


def measure_layers(
    layers: Sequence[Layer],
    choices: Choices,
    backend: Backend,
    settings: Settings,
    device: str,
    multiple_of: int,
    cache: Cache,
    step: Callable[[int, int], None] | None = None,
    beside: Iterable[Layer] = (),
) -> tuple[LayerLatency, ...]:
    """Measure every layer at a few widths; what the cache knows is not measured again.

    Args:
        device: type of the device that the model lies on, "cpu" or "cuda".
        step: called with the number of kernels done and needed so far, for progress.
        beside: the layers of the network that these are to run in, if they are few.
    """
    others = tuple(layer.region for layer in beside)
    clock = KernelClock(backend, settings, device, cache, step, others)
    coordinates = [_coordinates_of(layer, choices, multiple_of) for layer in layers]
    found = _find_stairs(layers, coordinates, clock)
    rounded = [
        tuple(
            found.get(_kind(layer.region, place), stairs.none(coordinate.unit))
            for place, coordinate in enumerate(along)
        )
        for layer, along in zip(layers, coordinates, strict=True)
    ]

    def tables(shares: Sequence[Sequence[Sequence[float]]]) -> list[LayerLatency]:
        grids = [
            tuple(c.corners(s, r) for c, s, r in zip(along, some, steps, strict=True))
            for along, some, steps in zip(coordinates, shares, rounded, strict=True)
        ]
        wanted = [_regions(layer.region, grid) for layer, grid in zip(layers, grids, strict=True)]
        clock.measure(
            (region, layer)
            for layer, regions in zip(layers, wanted, strict=True)
            for region in regions
        )
        return [
            LayerLatency(layer, grid, clock.read(regions).reshape([*map(len, grid)]), steps)
            for layer, grid, regions, steps in zip(layers, grids, wanted, rounded, strict=True)
        ]

    coarse = tables([[COARSE] * len(along) for along in coordinates])
    return tuple(tables([[FINE if bent else COARSE for bent in _bends(t)] for t in coarse]))


@dataclass(frozen=True)
class _Coordinate:
    """One of the numbers that a layer's latency is a function of.

    Attributes:
        size: in the dense network.
        least: the smallest that slimming may make it.
        unit: what slimming changes it by.
        free: whether slimming may change it.
        stepped: whether it counts channels that a kernel may take in blocks.
    """

    size: int
    least: int
    unit: int
    free: bool
    stepped: bool

    def corners(self, shares: Sequence[float], rounded: Stairs) -> tuple[int, ...]:
        """Values on the stairs, from the smallest to the dense one."""
        if not self.free:
            return (self.size,)
        step = rounded.step if rounded.step < self.size else self.unit
        aligned = {max(1, round(self.size * share / step)) * step for share in shares}
        kept = [self.size]
        apart = max(self.unit / 2, self.size * CLOSEST)
        # Layers with few channels may become narrower than one step.
        for value in sorted({min(step, self.least), step, *aligned}, reverse=True):
            # Two values on one tread cost the same, and tell nothing of the slope but noise.
            if value < self.size and rounded(value) <= rounded(kept[-1]) - apart:
                kept.append(value)
        return tuple(reversed(kept))


def _coordinates_of(layer: Layer, choices: Choices, multiple_of: int) -> tuple[_Coordinate, ...]:
    region = layer.region
    reads, writes = choices.is_free(layer.inputs), choices.is_free(layer.outputs)
    least_in, least_out = choices.least(layer.inputs), choices.least(layer.outputs)
    if region.groups == 1:
        return (
            _Coordinate(region.in_width, least_in, multiple_of, reads, True),
            _Coordinate(region.out_width, least_out, multiple_of, writes, True),
        )
    free = reads or writes
    if region.groups == region.in_width == region.out_width:
        groups = _Coordinate(region.groups, least_in, multiple_of, free, True)
    else:
        groups = _Coordinate(region.groups, 1, 1, free, False)
    inside = (region.in_width // region.groups, region.out_width // region.groups)
    units = (max(1, width // 4) for width in inside)
    return (
        groups,
        *(
            _Coordinate(width, unit, unit, free and width > 1, False)
            for width, unit in zip(inside, units, strict=True)
        ),
    )


def _coordinates(layer: Layer, width_in: Any, width_out: Any, inner: Any) -> tuple[Any, ...]:
    """What the kernel's latency is a function of."""
    if layer.region.groups == 1:
        return width_in, width_out
    whole = width_out if layer.region.operator == "conv_transpose" else width_in
    groups = whole // np.maximum(inner, 1)
    return groups, width_in // groups, width_out // groups


def _find_stairs(
    layers: Sequence[Layer], coordinates: Sequence[Sequence[_Coordinate]], clock: KernelClock
) -> dict[tuple[object, ...], Stairs]:
    """The stairs along each coordinate by kind of layer, measured on the widest of a kind.

    That one may have to keep its widths: which kernels are measured is not to depend on what a
    caller leaves alone, or tables from elsewhere would lack some.
    """
    widest: dict[tuple[object, ...], tuple[_Coordinate, int, Layer]] = {}
    free: set[tuple[object, ...]] = set()
    for layer, along in zip(layers, coordinates, strict=True):
        for place, coordinate in enumerate(along):
            if not coordinate.stepped:
                continue
            kind = _kind(layer.region, place)
            if coordinate.free:
                free.add(kind)
            if kind not in widest or widest[kind][0].size < coordinate.size:
                widest[kind] = (coordinate, place, layer)
    widest = {kind: found for kind, found in widest.items() if kind in free}
    probed = {
        kind: _probes(layer.region, place, coordinate)
        for kind, (coordinate, place, layer) in widest.items()
    }
    clock.measure((region, widest[kind][2]) for kind, some in probed.items() for region in some)
    return {
        kind: stairs.fit(clock.read(regions).tolist(), widest[kind][0].unit)
        for kind, regions in probed.items()
    }


def _kind(region: Region, place: int) -> tuple[object, ...]:
    """What layers with equal stairs along a coordinate have in common."""
    shape = (region.operator, region.kernel, region.stride, region.dilation, len(region.spatial))
    return (*shape, region.groups > 1, place)


def _probes(region: Region, place: int, coordinate: _Coordinate) -> list[Region]:
    """The region at the widths that tell the stairs along one coordinate."""
    widths = stairs.probes(coordinate.size, coordinate.unit)
    if region.groups > 1:
        return [region.with_widths(width, width, width) for width in widths]
    others = min(region.in_width, WIDEST_PROBE), min(region.out_width, WIDEST_PROBE)
    return [
        region.with_widths(*(width if at == place else others[at] for at in range(2)))
        for width in widths
    ]


def _regions(region: Region, corners: Corners) -> list[Region]:
    if region.groups == 1:
        return [region.with_widths(a, b) for a, b in product(*corners)]
    return [region.with_widths(g * i, g * o, g) for g, i, o in product(*corners)]


def _bends(table: LayerLatency) -> list[bool]:
    """Along which coordinates a straight line from the first to the last corner misses others."""
    return [_is_bent(table, axis) for axis in range(table.seconds.ndim)]


def _is_bent(table: LayerLatency, axis: int) -> bool:
    if len(table.corners[axis]) < 3:
        return False
    widths = table.stairs[axis](np.array(table.corners[axis]))
    seconds = np.moveaxis(table.seconds, axis, 0).reshape(len(widths), -1)
    shares = ((widths - widths[0]) / (widths[-1] - widths[0]))[:, None]
    line = seconds[0] * (1 - shares) + seconds[-1] * shares
    return bool((np.abs(line / seconds - 1) > TOLERANCE).any())
