"""Latency as tables over the choices of widths, from kernels measured on the deployment backend.

Every layer is a function of the widths it reads and writes (and of its groups). It is measured at a
few aligned widths, in the backend's own kernel, and interpolated between; measurements are cached
and shared between layers and models. What the layers leave of the measured whole network
(additions, pooling, copies) is shared out by the size of the tensors concerned. Whoever uses the
tables corrects them against whole networks: sums of isolated kernels miss by 5 to 15 per cent, and
only there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator
from torch import fx

from fxprune.axes import Atom, Axis, kept_size
from fxprune.backends import profiles
from fxprune.backends.base import Backend
from fxprune.backends.region import Region
from fxprune.backends.settings import Settings
from fxprune.cache import Cache, Key
from fxprune.measure import PROTOCOL, Timing, measure
from fxprune.passes.allocation.widths import Choices, Tables
from fxprune.passes.constants import operation
from fxprune.passes.infer import Analysis
from fxprune.passes.layers import Layer
from fxprune.passes.merges import Merge

Array = NDArray[np.float64]
Step = Callable[[], None]

# Shares of the dense width at which a kernel is measured, besides the smallest aligned one.
LEVELS = (0.25, 0.5, 0.75, 1.0)
KERNEL_TIMING = Timing(tolerance=0.02, min_samples=12, max_seconds=0.5, warm_up=0.005)
FREE_OPERATIONS = frozenset(
    {"view", "reshape", "permute", "transpose", "flatten", "unflatten", "squeeze", "unsqueeze",
     "expand", "size", "getattr", "getitem", "chunk", "split", "split_with_sizes", "detach",
     "contiguous", "select", "slice", "dropout", "t", "unbind", "narrow"}
)  # fmt: skip


@dataclass(frozen=True)
class LayerLatency:
    """Seconds of one layer as a function of its widths.

    `corners` are the measured widths along each coordinate: (inputs, outputs) without groups;
    (groups, inputs of a group, outputs of a group) with them.
    """

    layer: Layer
    corners: tuple[tuple[int, ...], ...]
    seconds: Array

    def __call__(self, width_in: Any, width_out: Any, inner: Any) -> Array:
        """Seconds at the given widths (arrays that broadcast); `inner` as in `Layer`."""
        coordinates = _coordinates(self.layer, width_in, width_out, inner)
        places = np.broadcast_arrays(*coordinates)
        live = [i for i, corner in enumerate(self.corners) if len(corner) > 1]
        if not live:
            return np.broadcast_to(self.seconds.reshape(()), places[0].shape)
        grid = RegularGridInterpolator(
            [np.array(self.corners[i], dtype=float) for i in live],
            self.seconds.squeeze(tuple(set(range(len(self.corners))) - set(live))),
            bounds_error=False,
            fill_value=None,
        )
        found = grid(np.stack([places[i].astype(float) for i in live], axis=-1))
        found = found.reshape(places[0].shape)
        # Outside of what was measured a straight line may fall below zero; a kernel cannot.
        return np.asarray(np.maximum(found, self.seconds.min() / 10), dtype=np.float64)

    def at(self, sizes: Mapping[Atom, int]) -> float:
        """Seconds when atoms have the given sizes."""
        layer = self.layer
        widths = (kept_size(axis, sizes) for axis in (layer.inputs, layer.outputs, layer.inner))
        return float(self(*(np.array(width) for width in widths)))


@dataclass(frozen=True)
class LatencyModel:
    """The latency of the whole network, seconds.

    Attributes:
        layers: each layer's own table, and what it is multiplied with to be right in the dense
            network.
        merges: the same for the spans that may be merged, by name.
        tables: all of it over the choices.
    """

    layers: tuple[tuple[LayerLatency, float], ...]
    merges: Mapping[str, tuple[LayerLatency, float]]
    tables: Tables

    def by_layer(
        self,
        sizes: Mapping[Atom, int],
        gone: Set[str] = frozenset(),
        merged: Iterable[Merge] = (),
    ) -> dict[str, float]:
        """Seconds of each layer when atoms have the given sizes, by node name; 0 if it is gone.

        Those of a merged span are counted at its first convolution.
        """
        seconds = {
            table.layer.node: 0.0 if table.layer.node in gone else table.at(sizes) * scale
            for table, scale in self.layers
        }
        for merge in merged:
            table, scale = self.merges[merge.name]
            seconds |= dict.fromkeys(merge.gone & seconds.keys(), 0.0)
            seconds[merge.span.convolutions[0]] = table.at(sizes) * scale
        return seconds


def build_latency_model(
    module: fx.GraphModule,
    analysis: Analysis,
    choices: Choices,
    tables: Sequence[LayerLatency],
    dense_seconds: float,
    profile: Mapping[str, float] | None,
    merged: Mapping[str, LayerLatency] = MappingProxyType({}),
) -> LatencyModel:
    """Add up the tables of all layers, so that the dense network takes `dense_seconds`.

    Args:
        profile: seconds of each node of `module` inside the dense network, where the backend can
            tell. It puts each layer's table, and everything between the layers, right at the
            dense widths. Without it, what the layers leave of the whole is shared out by size.
        merged: tables of the spans that may be merged, by name.
    """
    inside = {name for table in tables for name in table.layer.fused}
    others = _other_tensors(module, analysis, inside)
    kernels = [table.at({}) for table in tables]
    if profile:
        told = [sum(profile.get(n, 0.0) for n in table.layer.fused) for table in tables]
        seconds = [t or kernel for t, kernel in zip(told, kernels, strict=True)]
        between = {name: profile.get(name, 0.0) for name, _ in others}
    else:
        seconds = kernels
        left = max(dense_seconds - sum(kernels), 0.0)
        elements = {name: sum(map(_elements, tensors)) for name, tensors in others}
        whole = sum(elements.values())
        between = {name: left * count / whole for name, count in elements.items()}
    known = sum(seconds) + sum(between.values())
    shrink = min(1.0, dense_seconds / known) if known else 1.0
    total = Tables(choices.domains, constant=max(dense_seconds - known * shrink, 0.0))
    scales = [shrink * s / k for s, k in zip(seconds, kernels, strict=True)]
    for table, scale in zip(tables, scales, strict=True):
        layer = table.layer
        widths = [choices.width(axis) for axis in (layer.inputs, layer.outputs, layer.inner)]
        total.add_function(widths, partial(_scaled, table, scale), choices.runs.get(layer.node))
    for name, tensors in others:
        count = sum(map(_elements, tensors))
        for axes in tensors:
            share = shrink * between[name] / count if count else 0.0
            widths = [choices.width(axis) for axis in axes]
            total.add_product(widths, share, choices.runs.get(name))
    merges = {}
    for merge in choices.forms.merges():
        table = merged[merge.name]
        layer = table.layer
        # A merged kernel is as far from its time on its own as kernels of its kind are.
        alike = [
            i
            for i, other in enumerate(tables)
            if (other.layer.region.groups > 1) == (layer.region.groups > 1)
        ]
        alone = sum(kernels[i] for i in alike)
        scale = sum(scales[i] * kernels[i] for i in alike) / alone if alone else shrink
        widths = [choices.width(axis) for axis in (layer.inputs, layer.outputs, layer.inner)]
        gate = choices.forms.taken(merge.name)
        total.add_function(widths, partial(_scaled, table, scale), gate)
        merges[merge.name] = (table, scale)
    return LatencyModel(tuple(zip(tables, scales, strict=True)), merges, total)


def _scaled(table: LayerLatency, scale: float, *widths: Any) -> Array:
    return scale * table(*widths)


def _elements(axes: Sequence[Axis]) -> int:
    return math.prod(axis.size for axis in axes)


def measure_layers(
    layers: Sequence[Layer],
    choices: Choices,
    backend: Backend,
    settings: Settings,
    device: str,
    multiple_of: int,
    cache: Cache,
    step: Callable[[int, int], None] | None = None,
) -> tuple[LayerLatency, ...]:
    """Measure every layer at a few widths; what the cache knows is not measured again.

    Args:
        device: type of the device that the model lies on, "cpu" or "cuda".
        step: called with the number of kernels done and needed, for progress.
    """
    corners = {layer.node: _corners(layer, choices, multiple_of) for layer in layers}
    needed: dict[str, Region] = {}
    for layer in layers:
        for region in _regions(layer, corners[layer.node]):
            needed[region.signature()] = region
    seconds = _measured(needed, backend, settings, device, cache, step)
    found = []
    for layer in layers:
        grid = [seconds[r.signature()] for r in _regions(layer, corners[layer.node])]
        shape = [len(corner) for corner in corners[layer.node]]
        found.append(LayerLatency(layer, corners[layer.node], np.array(grid).reshape(shape)))
    return tuple(found)


def _measured(
    needed: Mapping[str, Region],
    backend: Backend,
    settings: Settings,
    device: str,
    cache: Cache,
    step: Callable[[int, int], None] | None,
) -> dict[str, float]:
    protocol = f"{PROTOCOL} {profiles.PROTOCOL}"
    keys = {
        signature: Key(
            backend.device(device), backend.name, backend.version(), settings, signature, protocol
        )
        for signature in needed
    }
    seconds: dict[str, float] = {}
    for done, (signature, region) in enumerate(needed.items()):
        known = cache.get(keys[signature])
        if known is None:
            known = {"seconds": _seconds(region, backend, settings, device)}
            cache.put(keys[signature], known)
        seconds[signature] = float(known["seconds"])
        if step is not None:
            step(done + 1, len(needed))
    return seconds


def _seconds(region: Region, backend: Backend, settings: Settings, device: str) -> float:
    """Seconds of one kernel: as the backend's own profile tells them, or else by the clock."""
    told = backend.region_seconds(region, settings, device)
    if told is not None:
        return told
    engine = backend.compile_region(region, settings, device)
    return measure(engine, region.inputs(device), KERNEL_TIMING).seconds


def _coordinates(layer: Layer, width_in: Any, width_out: Any, inner: Any) -> tuple[Any, ...]:
    """What the kernel's latency is a function of."""
    if layer.region.groups == 1:
        return width_in, width_out
    whole = width_out if layer.region.operator == "conv_transpose" else width_in
    groups = whole // np.maximum(inner, 1)
    return groups, width_in // groups, width_out // groups


def _corners(layer: Layer, choices: Choices, multiple_of: int) -> tuple[tuple[int, ...], ...]:
    region = layer.region
    if region.groups == 1:
        return (
            _levels(layer.inputs, region.in_width, choices, multiple_of),
            _levels(layer.outputs, region.out_width, choices, multiple_of),
        )
    depthwise = region.groups == region.in_width == region.out_width
    within = (region.in_width // region.groups, region.out_width // region.groups)
    free = choices.is_free(layer.inputs) or choices.is_free(layer.outputs)
    if not free:
        return ((region.groups,), *((width,) for width in within))
    groups = _spaced(region.groups, multiple_of if depthwise else 1)
    return (groups, *(tuple(sorted({max(1, width // 4), width})) for width in within))


def _levels(axis: Axis, size: int, choices: Choices, multiple_of: int) -> tuple[int, ...]:
    return _spaced(size, multiple_of) if choices.is_free(axis) else (size,)


def _spaced(size: int, multiple_of: int) -> tuple[int, ...]:
    """Aligned widths from the smallest to `size`."""
    aligned = {max(1, round(size * share / multiple_of)) * multiple_of for share in LEVELS}
    return tuple(sorted({w for w in {*aligned, multiple_of} if w < size} | {size}))


def _regions(layer: Layer, corners: Sequence[Sequence[int]]) -> list[Region]:
    grids = np.meshgrid(*corners, indexing="ij")
    places = zip(*(grid.ravel().tolist() for grid in grids), strict=True)
    if layer.region.groups == 1:
        return [layer.region.with_widths(a, b) for a, b in places]
    return [layer.region.with_widths(g * i, g * o, g) for g, i, o in places]


def _other_tensors(
    module: fx.GraphModule, analysis: Analysis, inside: Set[str]
) -> list[tuple[str, tuple[tuple[Axis, ...], ...]]]:
    """Nodes that compute something outside of the layers, with the axes of what they yield."""
    return [
        (node.name, analysis.values[node.name])
        for node in module.graph.nodes
        if node.op in ("call_module", "call_function", "call_method")
        and node.name not in inside
        and (operation(node) or "").removesuffix("_") not in FREE_OPERATIONS
    ]
