"""Slim networks that were looked into, and what they tell about the tables.

Kernels run at other speeds in a narrow network than in a wide one: what others leave in the caches,
and how soon a kernel's weights are needed again, differ. So a layer's table is multiplied with what
it was off by in the networks that were profiled, each weighted by how near its widths are: a factor
of 1 far from all of them, which is where the table was put right in the dense network.

Where a network is known whose latency is near, it alone tells of its layers, and of what lies
between them. What one kernel seems to take too much in a profile others seem to take too little,
for the whole is known: within one network that cancels, and parts of several do not add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from fxprune import plain
from fxprune.axes import Atom, Axis, kept_size
from fxprune.backends.profiles import OVERHEAD
from fxprune.passes.chains import Span
from fxprune.passes.kernels import LayerLatency
from fxprune.passes.layers import Layer
from fxprune.passes.merge import MERGED
from fxprune.passes.merges import Merge

Array = NDArray[np.float64]
Tensors = Sequence[tuple[str, tuple[tuple[Axis, ...], ...]]]
"""Nodes with the axes of what they yield."""

# Squared distances in octaves of width. Of networks with equal widths, all count alike.
NEAR = 1e-3
# The dense network is this far from slim ones even where a layer has its dense widths.
DENSE = 0.5

FAMILIAR = 0.1
"""How far from what is asked for, as a share of it, the latency of a network may be that tells
enough on its own."""


@dataclass(frozen=True)
class Seen:
    """A slim network that was profiled, in seconds that add up to what all of it takes.

    Attributes:
        sizes: how many positions of every group it keeps.
        kernels: layers, by node, that run as one kernel, and the seconds of that.
        between: seconds of the other nodes that the profile knows, by name.
        left: seconds of what belongs to no node.
        nodes: the names of all its nodes.
        merged: seconds of the kernels that were chosen to be merged.
        overhead: seconds of what does not depend on its widths.
    """

    sizes: Mapping[Atom, int]
    kernels: tuple[tuple[tuple[str, ...], float], ...]
    between: Mapping[str, float]
    left: float
    nodes: frozenset[str]
    merged: float = 0.0
    overhead: float = 0.0

    @staticmethod
    def of(
        sizes: Mapping[Atom, int],
        merged: Iterable[Merge],
        deployed: fx.GraphModule,
        profile: Mapping[str, float],
        seconds: float,
        layers: Sequence[Layer],
    ) -> Seen:
        """What the profile of a deployed network says of the layers of the dense one.

        Args:
            merged: spans that were chosen to be merged; these have tables of their own.
            deployed: the network after `finalize`.
            profile: seconds by node of `deployed`, and of what it does besides.
            seconds: what all of it takes.
        """
        pace = seconds / sum(profile.values())
        place = {str(n.target): n.name for n in deployed.graph.nodes if n.op == "call_module"}
        kernel: dict[str, tuple[str, ...]] = {layer.node: (layer.node,) for layer in layers}
        recorded = deployed.meta.get(MERGED, [])
        for span in (plain.from_plain(Span, item, MERGED) for item in recorded):
            kernel |= dict.fromkeys(span.convolutions, span.convolutions)
        chosen = {name for merge in merged for name in merge.span.convolutions}
        names = frozenset(node.name for node in deployed.graph.nodes)
        rest = dict(profile)
        spent: dict[tuple[str, ...], float] = {}
        apart = 0.0
        for layer in layers:
            # A merged layer has the module of its first one, and a name of its own.
            own = place.get(layer.weight.removesuffix(".weight"), layer.node)
            whole = kernel[layer.node]
            if own not in names and whole == (layer.node,) and layer.node not in chosen:
                continue  # its block was dropped, and the activation after it is there still
            taken = sum(rest.pop(name, 0.0) for name in {own, *layer.fused})
            if layer.node in chosen:
                apart += pace * taken
            elif taken:
                spent[whole] = spent.get(whole, 0.0) + pace * taken
        between = {name: pace * rest.pop(name) for name in names & rest.keys()}
        overhead = pace * rest.pop(OVERHEAD, 0.0)
        left = pace * sum(rest.values())
        return Seen(sizes, tuple(spent.items()), between, left, names, apart, overhead)

    @property
    def seconds(self) -> float:
        """What all of it takes."""
        kernels = sum(seconds for _, seconds in self.kernels)
        between = sum(self.between.values())
        return kernels + between + self.left + self.merged + self.overhead

    def scaled(self, factor: float) -> Seen:
        """The same with all times multiplied."""
        return Seen(
            self.sizes,
            tuple((nodes, factor * seconds) for nodes, seconds in self.kernels),
            {name: factor * seconds for name, seconds in self.between.items()},
            factor * self.left,
            self.nodes,
            factor * self.merged,
            factor * self.overhead,
        )

    def to_json(self, groups: Mapping[Atom, str]) -> dict[str, Any]:
        """As plain data, with the names of groups for their atoms."""
        return {
            "sizes": {groups[atom]: size for atom, size in self.sizes.items()},
            "kernels": [[[*nodes], seconds] for nodes, seconds in self.kernels],
            "between": dict(self.between),
            "left": self.left,
            "nodes": sorted(self.nodes),
            "merged": self.merged,
            "overhead": self.overhead,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any], atoms: Mapping[str, Atom]) -> Seen:
        """From `to_json`, in a network of the same structure."""
        return Seen(
            {atoms[name]: size for name, size in data["sizes"].items()},
            tuple((tuple(nodes), seconds) for nodes, seconds in data["kernels"]),
            data["between"],
            data["left"],
            frozenset(data["nodes"]),
            data["merged"],
            data["overhead"],
        )


@dataclass(frozen=True)
class Correction:
    """What a layer's table is to be multiplied with.

    Attributes:
        widths: of the layer in the networks that were seen, as binary logarithms [n, 2].
        factors: what the table was off by there, as logarithms [n].
        dense: its dense widths [2], in the same way.
    """

    widths: Array
    factors: Array
    dense: Array

    def __call__(self, width_in: Any, width_out: Any) -> Array:
        """The factor at the given widths (arrays that broadcast)."""
        there = np.stack(np.broadcast_arrays(*map(_octaves, (width_in, width_out))), axis=-1)
        weighted, weights = 0.0, 1 / (_apart(there, self.dense) + DENSE)
        for widths, factor in zip(self.widths, self.factors, strict=True):
            weight = 1 / (_apart(there, widths) + NEAR)
            weighted, weights = weighted + weight * factor, weights + weight
        return np.asarray(np.exp(weighted / weights), dtype=np.float64)


def corrections(
    tables: Sequence[LayerLatency],
    scales: Sequence[float],
    seen: Sequence[Seen],
    seconds: float,
) -> dict[str, Correction]:
    """By node, for those layers of which the networks tell something.

    Args:
        scales: what each table is multiplied with already.
        seconds: of the networks that matter most.
    """
    found = _corrections(tables, scales, seen)
    nearest = nearest_of(seen, seconds)
    if nearest and is_familiar(nearest, seconds):
        # Others tell of those layers only that it has not.
        found |= _corrections(tables, scales, [nearest])
    return found


def _corrections(
    tables: Sequence[LayerLatency], scales: Sequence[float], seen: Iterable[Seen]
) -> dict[str, Correction]:
    known = {t.layer.node: (t, scale) for t, scale in zip(tables, scales, strict=True)}
    found: dict[str, list[tuple[Array, float]]] = {}
    for network in seen:
        for nodes, seconds in network.kernels:
            if not known.keys() >= set(nodes):
                continue  # told by another version, of layers that are none here
            told = sum(known[n][0].at(network.sizes) * known[n][1] for n in nodes)
            for node in nodes if told else ():
                widths = _widths(known[node][0].layer, network.sizes)
                found.setdefault(node, []).append((widths, math.log(seconds / told)))
    return {
        node: Correction(
            np.stack([widths for widths, _ in points]),
            np.array([factor for _, factor in points]),
            _widths(known[node][0].layer, {}),
        )
        for node, points in found.items()
    }


def nearest_of(seen: Sequence[Seen], seconds: float) -> Seen | None:
    """The network whose latency is nearest to `seconds`, the latest of those."""
    return min(reversed(seen), key=lambda some: abs(some.seconds - seconds), default=None)


def is_familiar(network: Seen, seconds: float) -> bool:
    """Whether a network tells enough of those that take `seconds`."""
    return abs(network.seconds / seconds - 1) <= FAMILIAR


def between_layers(
    others: Tensors,
    between: Mapping[str, float],
    left: Mapping[str, float],
    nearest: Seen | None,
) -> dict[str, float]:
    """Seconds of the nodes between layers in the dense network, as a slim one tells them.

    Args:
        between: by node, of the node itself.
        left: by node, its share of what belongs to no node.
    """
    if nearest is None:
        return {name: between[name] + left[name] for name in between}
    stays = {name: _share(tensors, nearest.sizes) for name, tensors in others}
    told = sum(left[name] * stays[name] for name in nearest.nodes & left.keys())
    elsewhere = sum(nearest.between[name] for name in nearest.between.keys() - stays.keys())
    more = (nearest.left + elsewhere) / told if told else 1.0
    found = {n: nearest.between[n] / stays[n] for n in nearest.between.keys() & stays if stays[n]}
    return {name: found.get(name, between[name]) + more * left[name] for name in between}


def _share(tensors: Sequence[Sequence[Axis]], sizes: Mapping[Atom, int]) -> float:
    """The share of elements that stay."""
    dense = sum(math.prod(axis.size for axis in axes) for axes in tensors)
    slim = sum(math.prod(kept_size(axis, sizes) for axis in axes) for axes in tensors)
    return slim / dense if dense else 0.0


def _widths(layer: Layer, sizes: Mapping[Atom, int]) -> Array:
    return np.asarray(_octaves(np.array(layer.widths(sizes)[:2])), dtype=np.float64)


def _octaves(width: Any) -> Array:
    return np.asarray(np.log2(np.maximum(width, 1)), dtype=np.float64)


def _apart(there: Array, widths: Array) -> Array:
    return np.asarray(((there - widths) ** 2).sum(axis=-1), dtype=np.float64)
