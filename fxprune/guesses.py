"""What to try next: networks that should come out as aimed at, the most promising first.

The best networks by tables that are a little off elsewhere differ in many layers, and each of these
adds to what the prediction is off by. So from the second candidate on, a network is looked for that
has all of the latest one, or nothing else: then only what is added or taken away is predicted.
Before that, where widths come in large steps and the best network uses too little, the next better
one is tried, just behind what is aimed at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fxprune.calibration import Calibration, Tried, predicted
from fxprune.gauges import Gauge, surely_keep
from fxprune.passes.allocate import Allocation, Allocator

LOSS = 0.02
"""How much less than the best found by tables a network may be worth that is near a known one."""


def guesses(
    allocator: Allocator,
    gauges: Sequence[Gauge],
    calibrations: Sequence[Calibration],
    aims: Sequence[float],
    tried: Sequence[Tried],
) -> Iterator[Allocation]:
    """Networks that should come out as aimed at, the most promising first.

    Args:
        aims: what they should use, per budget.
        tried: what was measured, the latest last.
    """
    limits = [c.table_limit(aim) for c, aim in zip(calibrations, aims, strict=True)]
    best = allocator.solve(limits)
    least, most = _around_latest(allocator, gauges, tried)
    further = _furthest(gauges, calibrations, aims, limits)
    if further != limits and best.sizes and _falls_short(best, gauges, calibrations, aims):
        yield allocator.solve(further)
    if least or most:
        yield from _between(allocator, limits, least, most)
    yield best
    if least and most:
        yield from _between(allocator, _midway(allocator, gauges, limits, least, most), least, most)
    if best.sizes:
        yield allocator.solve([c.middle(aim) for c, aim in zip(calibrations, aims, strict=True)])


def _falls_short(
    best: Allocation,
    gauges: Sequence[Gauge],
    calibrations: Sequence[Calibration],
    aims: Sequence[float],
) -> bool:
    """Whether the best network should leave so much of every budget that it would not do."""
    enough = [a / g.aim * (g.lowest + g.margin) for g, a in zip(gauges, aims, strict=True)]
    used = predicted(best, calibrations)
    return all(cost < least for cost, least in zip(used, enough, strict=True))


def _furthest(
    gauges: Sequence[Gauge],
    calibrations: Sequence[Calibration],
    aims: Sequence[float],
    limits: Sequence[float],
) -> list[float]:
    """Limits for networks that would just keep the budgets if they were measured once more.

    Args:
        limits: the usual ones, which these are not to be stricter than.
    """
    return [
        max(limit, c.table_limit(aim * (1 - gauge.margin) / gauge.aim))
        for gauge, c, aim, limit in zip(gauges, calibrations, aims, limits, strict=True)
    ]


def _between(
    allocator: Allocator, limits: Sequence[float], least: Tried | None, most: Tried | None
) -> Iterator[Allocation]:
    """The best network between two, if it is worth nearly as much as the best of all."""
    found = allocator.between(limits, *(c.allocation if c else None for c in (least, most)))
    best = allocator.solve(limits).solution.value
    if found and found.solution.value >= best - LOSS * abs(best):
        yield found


def _midway(
    allocator: Allocator,
    gauges: Sequence[Gauge],
    limits: Sequence[float],
    least: Tried,
    most: Tried,
) -> list[float]:
    """Limits half way between two networks for those budgets that the larger one exceeds."""
    low, high = allocator.costs_of(least.allocation), allocator.costs_of(most.allocation)
    return [
        limits[i] if gauge.surely_keeps(most.used[i]) else (low[i] + high[i]) / 2
        for i, gauge in enumerate(gauges)
    ]


def _around_latest(
    allocator: Allocator, gauges: Sequence[Gauge], tried: Sequence[Tried]
) -> tuple[Tried | None, Tried | None]:
    """The latest candidate, and the last one on the other side of the limits that goes with it.

    Returns:
        What the next one should have all of, and what it should lie within; None for any.
    """
    if not tried:
        return None, None
    *earlier, latest = tried
    kept, within = surely_keep(gauges, latest.used), allocator.lies_within
    others = [c for c in reversed(earlier) if surely_keep(gauges, c.used) is not kept]
    if kept:
        above = (c for c in others if within(latest.allocation, c.allocation))
        return latest, next(above, None)
    below = (c for c in others if within(c.allocation, latest.allocation))
    return next(below, None), latest
