"""The two published dynamic programmes for depth, as reference solvers.

Both see a network as a sequence of L convolutions, 1 .. L, and cut it at some of the places
0 .. L between them; the convolutions of one segment become one. The sum of the segments' latencies
must keep a budget, the sum of their importances is to be largest. Neither knows branches, nor
widths. Latencies are counted in ticks and rounded up, so that a budget is never exceeded; the
published code rounds down, which can exceed it by one tick for each segment.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

S = TypeVar("S")
Segment = tuple[int, int]  # (i, j): convolutions i + 1 .. j, 0 <= i < j
Sized = tuple[int, int, int]  # (i, j, k): the same, merged into a kernel of size k


@dataclass(frozen=True)
class TwoStage:
    """A choice of both sets of the two-stage programme.

    Attributes:
        activations: places, 0 and L included, between which all activations are dropped.
        merges: places, 0 and L included, between which all convolutions are merged.
        importance, seconds: of the choice.
    """

    activations: tuple[int, ...]
    merges: tuple[int, ...]
    importance: float
    seconds: float


@dataclass(frozen=True)
class Layered:
    """A choice of the programme that may leave convolutions out.

    Attributes:
        segments: (i, j, k) in order.
        importance, seconds: of the choice.
    """

    segments: tuple[Sized, ...]
    importance: float
    seconds: float


def fastest_merges(
    latency: Mapping[Segment, float], length: int
) -> dict[Segment, tuple[float, tuple[int, ...]]]:
    """For every segment without inner activations, the fastest way to run it.

    The first stage of Kim et al. (ICML 2023): convolutions with nothing between them may still be
    faster apart.

    Args:
        latency: seconds of each segment as one convolution; infinite or absent if it cannot be one.
        length: number of convolutions, L.

    Returns:
        (i, j) -> seconds and the places i .. j at which it is cut.
    """
    best: dict[Segment, tuple[float, tuple[int, ...]]] = {}
    for width in range(1, length + 1):
        for i in range(length - width + 1):
            j = i + width
            options: list[tuple[float, tuple[int, ...]]]
            options = [(latency.get((i, j), math.inf), (i, j))]
            for m in range(i + 1, j):
                head, cuts = best[i, m]
                options.append((head + latency.get((m, j), math.inf), (*cuts, j)))
            best[i, j] = min(options, key=lambda option: option[0])
    return best


def two_stage(
    latency: Mapping[Segment, float],
    importance: Mapping[Segment, float],
    length: int,
    budget: float,
    tick: float,
) -> TwoStage | None:
    """The two-stage dynamic programme of Kim et al. (ICML 2023).

    Args:
        latency: seconds of each segment as one convolution; infinite or absent if it cannot be one.
        importance: of each segment without its inner activations; absent if it may not be one.
        length: number of convolutions, L.
        budget: seconds.
        tick: seconds that latency is counted in.

    Returns:
        The best choice within the budget (optimal up to rounding), or None if there is none.
    """
    runs = fastest_merges(latency, length)

    def options(j: int) -> Iterator[tuple[int, float, float, Segment]]:
        for i in range(j):
            if (i, j) in importance and math.isfinite(runs[i, j][0]):
                yield i, runs[i, j][0], importance[i, j], (i, j)

    found = _best_path(options, length, budget, tick)
    if found is None:
        return None
    merges = itertools.chain.from_iterable(runs[segment][1] for segment in found)
    return TwoStage(
        activations=(0, *(j for _, j in found)),
        merges=tuple(sorted({0, *merges})),
        importance=sum(importance[segment] for segment in found),
        seconds=sum(runs[segment][0] for segment in found),
    )


def layer_merge(
    latency: Mapping[Sized, float],
    importance: Mapping[Sized, float],
    length: int,
    budget: float,
    tick: float,
) -> Layered | None:
    """The dynamic programme of LayerMerge (Kim et al., ICML 2024).

    A segment may also leave convolutions out, which makes its merged kernel smaller: a segment
    comes with every kernel size that it can have.  Arguments and result as of `two_stage`.
    """
    by_end: dict[int, list[Sized]] = {}
    for i, j, k in sorted(importance):
        if math.isfinite(latency.get((i, j, k), math.inf)):
            by_end.setdefault(j, []).append((i, j, k))

    def options(j: int) -> Iterator[tuple[int, float, float, Sized]]:
        for segment in by_end.get(j, ()):
            yield segment[0], latency[segment], importance[segment], segment

    found = _best_path(options, length, budget, tick)
    if found is None:
        return None
    return Layered(
        segments=found,
        importance=sum(importance[segment] for segment in found),
        seconds=sum(latency[segment] for segment in found),
    )


def _best_path(
    options: Callable[[int], Iterator[tuple[int, float, float, S]]],
    length: int,
    budget: float,
    tick: float,
) -> tuple[S, ...] | None:
    """Segments from place 0 to `length` with the most importance; of equal ones the fastest.

    options: place j -> (i, seconds, importance, segment) of every segment that ends there.
    """
    ticks = math.floor(budget / tick * (1 + 1e-12))
    nothing = -math.inf
    # value[j][t]: the most importance of segments up to place j that take t ticks in all.
    value = [[nothing] * (ticks + 1) for _ in range(length + 1)]
    last: list[list[tuple[int, int, S] | None]] = [[None] * (ticks + 1) for _ in range(length + 1)]
    if ticks >= 0:
        value[0][0] = 0.0
    for j in range(1, length + 1):
        for i, seconds, importance, segment in options(j):
            cost = math.ceil(seconds / tick * (1 - 1e-12))
            for t in range(cost, ticks + 1):
                found = value[i][t - cost] + importance
                if found > value[j][t]:
                    value[j][t], last[j][t] = found, (i, t - cost, segment)
    place, left = length, max(range(ticks + 1), key=lambda t: (value[length][t], -t), default=-1)
    if left < 0 or value[length][left] == nothing:
        return None
    path: list[S] = []
    while place:
        step = last[place][left]
        assert step is not None
        place, left, segment = step
        path.append(segment)
    return tuple(reversed(path))
