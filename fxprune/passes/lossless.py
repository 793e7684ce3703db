"""Which lossless spans to merge when no backend says what is faster: those that save arithmetic.

A span is merged only if the merged layer takes no more multiply-accumulates than its parts for
inputs of any size. With kernel k, stride s, dilation d and padding p, a layer that writes n
positions reads at least n min(s, d (k - 1) + 1 - 2 p) of them, per dimension: parts that run at a
higher resolution are charged for no more than that. Among the spans that pass, the cheapest
segmentation of each chain is found by dynamic programming; of equal ones that with fewest layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fxprune.passes.chains import Chain, Span, cuts, source_of, span_of
from fxprune.passes.linear.geometry import Geometry
from fxprune.passes.linear.tree import Fork, Link, Path


@dataclass(frozen=True, slots=True)
class _Choice:
    """One way to run a path: multiply-accumulates per position of the chain's result."""

    macs: int = 0
    kernels: int = 0
    spans: tuple[Span, ...] = ()

    def __add__(self, other: _Choice) -> _Choice:
        return _Choice(
            self.macs + other.macs, self.kernels + other.kernels, (*self.spans, *other.spans)
        )


def cheapest_spans(chains: Iterable[Chain]) -> tuple[Span, ...]:
    """The lossless spans to merge; no two have a node in common."""
    return tuple(span for c in chains for span in _best(c.source, c.path, positions=1).spans)


def saves_arithmetic(path: Path, merged: Geometry) -> bool:
    """Whether one layer of geometry `merged` never takes more MACs than the layers of `path`."""
    return merged.weights <= _least_macs(path, positions=1)


def _best(source: str, path: Path, positions: int) -> _Choice:
    """The cheapest way to run `path`, whose result has `positions` per one of the chain's."""
    behind = [positions]
    for item in reversed(path):
        strides = 1 if item.geometry is None else math.prod(item.geometry.stride)
        behind.append(behind[-1] * strides)
    behind.reverse()
    parts = cuts(path)
    stops = {stop for _, stop in parts}
    best = [_Choice()]
    for place, item in enumerate(path):
        alone = _alone(source_of(source, path, place), item, behind[place + 1])
        options = [best[place] + alone]
        starts = [start for start, _ in parts if start <= place]
        for start in starts if place + 1 in stops else ():
            merged = _merged(source_of(source, path, start), path[start : place + 1])
            if merged is not None:
                macs = merged.geometry.weights * behind[place + 1]
                options.append(best[start] + _Choice(macs, 1, (merged,)))
        best.append(min(options, key=lambda choice: (choice.macs, choice.kernels)))
    return best[-1]


def _alone(source: str, item: Link | Fork, positions: int) -> _Choice:
    if isinstance(item, Fork):
        branches = (_best(source, branch, positions) for branch in item.branches)
        return sum(branches, start=_Choice(kernels=1))  # the addition
    if item.kind == "convolution" and item.geometry is not None:
        return _Choice(item.geometry.weights * positions, 1)
    return _Choice()


def _merged(source: str, path: Path) -> Span | None:
    span = span_of(source, path)
    if span is None or not span.lossless or not saves_arithmetic(path, span.geometry):
        return None
    return span


def _least_macs(path: Path, positions: int) -> int:
    """The fewest MACs of `path` for a result of (at least) `positions` positions."""
    total = 0
    for item in reversed(path):
        if isinstance(item, Fork):
            total += sum(_least_macs(branch, positions) for branch in item.branches)
        elif item.kind == "convolution" and item.geometry is not None:
            total += item.geometry.weights * positions
        if item.geometry is not None:
            positions *= math.prod(_least_reads(item.geometry))
        elif isinstance(item, Link) and item.pad is not None and max(item.pad) > 0:
            positions = 0
    return total


def _least_reads(geometry: Geometry) -> list[int]:
    """Per dimension, how many input positions there are at least for each output position."""
    places = zip(geometry.stride, geometry.reach, geometry.padding, strict=True)
    return [max(0, min(s, r + 1 - 2 * p)) for s, r, p in places]
