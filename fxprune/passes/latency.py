"""Latency as tables over the choices of widths, from kernels measured on the deployment backend.

The tables of the layers (`kernels`) are put right inside the dense network, by its profile where
the backend has one. What the layers leave of the measured whole network (additions, pooling,
copies) is shared out by the size of the tensors concerned, but for what a call takes besides all of
its kernels, which no width changes. Whoever uses the tables corrects them against whole networks:
narrow ones fit the caches better, and suffer otherwise from neighbours on the machine. Networks
that were profiled on the way correct the tables layer by layer (`seen`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from fxprune.axes import Atom, Axis
from fxprune.backends.profiles import OVERHEAD
from fxprune.passes.allocation.widths import Choices, Tables
from fxprune.passes.constants import operation
from fxprune.passes.infer import Analysis
from fxprune.passes.kernels import LayerLatency
from fxprune.passes.merges import Merge
from fxprune.passes.seen import Correction, Seen, between_layers, corrections, nearest_of

Array = NDArray[np.float64]

FREE_OPERATIONS = frozenset(
    {"view", "reshape", "permute", "transpose", "flatten", "unflatten", "squeeze", "unsqueeze",
     "expand", "size", "getattr", "getitem", "chunk", "split", "split_with_sizes", "detach",
     "contiguous", "select", "slice", "dropout", "t", "unbind", "narrow"}
)  # fmt: skip


@dataclass(frozen=True)
class Inside:
    """A layer's latency inside of the network: its table, put right.

    Attributes:
        scale: what puts it right in the dense network.
        correction: what puts it right in networks that were seen.
    """

    table: LayerLatency
    scale: float
    correction: Correction | None = None

    def __call__(self, width_in: Any, width_out: Any, inner: Any) -> Array:
        """Seconds at the given widths, as in `LayerLatency`."""
        more = 1.0 if self.correction is None else self.correction(width_in, width_out)
        return self.scale * more * self.table(width_in, width_out, inner)

    def at(self, sizes: Mapping[Atom, int]) -> float:
        """Seconds when atoms have the given sizes."""
        return float(self(*map(np.array, self.table.layer.widths(sizes))))


@dataclass(frozen=True)
class LatencyModel:
    """The latency of the whole network, seconds.

    Attributes:
        layers: those of all layers.
        merges: those of the spans that may be merged, by name.
        tables: all of it over the choices.
    """

    layers: tuple[Inside, ...]
    merges: Mapping[str, Inside]
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
        layers = {inside.table.layer.node: inside for inside in self.layers}
        seconds = {n: 0.0 if n in gone else inside.at(sizes) for n, inside in layers.items()}
        for merge in merged:
            seconds |= dict.fromkeys(merge.gone & seconds.keys(), 0.0)
            seconds[merge.span.convolutions[0]] = self.merges[merge.name].at(sizes)
        return seconds


def build_latency_model(
    module: fx.GraphModule,
    analysis: Analysis,
    choices: Choices,
    tables: Sequence[LayerLatency],
    dense_seconds: float,
    profile: Mapping[str, float] | None,
    merged: Mapping[str, LayerLatency] = MappingProxyType({}),
    seen: Sequence[Seen] = (),
    near: float | None = None,
) -> LatencyModel:
    """Add up the tables of all layers, so that the dense network takes `dense_seconds`.

    Where slim networks were seen, the tables are right near these, and less so near the dense one.

    Args:
        profile: seconds of each node of `module` inside the dense network, where the backend can
            tell, and of what it does besides. It puts each layer's table, and everything between
            the layers, right at the dense widths. What it tells of no node, and without a profile
            what the layers leave of the whole, is shared out by the size of what is between; but
            no width changes what it calls overhead.
        merged: tables of the spans that may be merged, by name.
        seen: slim networks that were profiled since.
        near: seconds of the networks that matter most; of the dense one if not given.
    """
    fused = {name for table in tables for name in table.layer.fused}
    timed = {name for some in (profile or {}, *(s.between for s in seen)) for name in some}
    others = _other_tensors(module, analysis, fused, timed)
    kernels = [table.at({}) for table in tables]
    elements = {name: sum(map(_elements, tensors)) for name, tensors in others}
    overhead = (profile or {}).get(OVERHEAD, 0.0)
    if profile:
        told = [sum(profile.get(n, 0.0) for n in table.layer.fused) for table in tables]
        seconds = [t or kernel for t, kernel in zip(told, kernels, strict=True)]
        between = {name: profile.get(name, 0.0) for name, _ in others}
        left = sum(profile.values()) - sum(told) - sum(between.values()) - overhead
    else:
        seconds = kernels
        between = dict.fromkeys(elements, 0.0)
        left = dense_seconds - sum(kernels)
    # Copies and reorderings, which the backend puts where it likes.
    whole = sum(elements.values())
    copies = max(left, 0.0) if whole else 0.0
    known = sum(seconds) + sum(between.values()) + copies + overhead
    # The clock of the whole is what counts; profiles and kernels alone run ahead of it or behind.
    pace = dense_seconds / known if known else 1.0
    near = dense_seconds if near is None else near
    nearest = nearest_of(seen, near)
    constant = pace * overhead if nearest is None else nearest.overhead
    total = Tables(choices.domains, constant=constant if known else dense_seconds)
    scales = [pace * s / k for s, k in zip(seconds, kernels, strict=True)]
    corrected = corrections(tables, scales, seen, near)
    layers = tuple(
        Inside(table, scale, corrected.get(table.layer.node))
        for table, scale in zip(tables, scales, strict=True)
    )
    for inside in layers:
        layer = inside.table.layer
        widths = [choices.width(axis) for axis in (layer.inputs, layer.outputs, layer.inner)]
        total.add_function(widths, inside, choices.runs.get(layer.node))
    shares = {name: copies * count / whole if whole else 0.0 for name, count in elements.items()}
    apart = between_layers(
        others,
        {name: pace * own for name, own in between.items()},
        {name: pace * share for name, share in shares.items()},
        nearest,
    )
    for name, tensors in others:
        count = sum(map(_elements, tensors))
        for axes in tensors:
            share = apart[name] / count if count else 0.0
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
        scale = sum(scales[i] * kernels[i] for i in alike) / alone if alone else pace
        widths = [choices.width(axis) for axis in (layer.inputs, layer.outputs, layer.inner)]
        gate = choices.forms.taken(merge.name)
        merges[merge.name] = Inside(table, scale)
        total.add_function(widths, merges[merge.name], gate)
    return LatencyModel(layers, merges, total)


def _elements(axes: Sequence[Axis]) -> int:
    return math.prod(axis.size for axis in axes)


def _other_tensors(
    module: fx.GraphModule, analysis: Analysis, inside: Set[str], timed: Set[str]
) -> list[tuple[str, tuple[tuple[Axis, ...], ...]]]:
    """Nodes that take time outside of the layers, with the axes of what they yield.

    Args:
        timed: nodes that a profile has seen take time: what is free where it only makes another
            view is not where the backend has to copy, as in a channel shuffle.
    """
    return [
        (node.name, analysis.values[node.name])
        for node in module.graph.nodes
        if node.op in ("call_module", "call_function", "call_method")
        and node.name not in inside
        and (node.name in timed or (operation(node) or "").removesuffix("_") not in FREE_OPERATIONS)
    ]
