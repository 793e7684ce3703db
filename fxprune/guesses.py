"""What to try next: networks that should come out as aimed at, the most promising first.

The best networks by tables that are a little off elsewhere differ in many layers, and each of these
adds to what the prediction is off by. So from the second candidate on, a network is looked for that
has all of the latest one, or nothing else: then only what is added or taken away is predicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fxprune.calibration import Calibration, Tried
from fxprune.gauges import Gauge
from fxprune.passes.allocate import Allocation, Allocator

LOSS = 0.02
"""How much less than the best found by tables a network may be worth that is near a known one."""


@dataclass(frozen=True)
class Around:
    """Networks that the next one should lie between, None for any.

    Attributes:
        exceeded: the budgets that `most` does not surely keep.
    """

    least: Allocation | None
    most: Allocation | None
    exceeded: tuple[bool, ...]


ANYWHERE = Around(None, None, ())


def guesses(
    allocator: Allocator,
    calibrations: Sequence[Calibration],
    aims: Sequence[float],
    around: Around = ANYWHERE,
) -> Iterator[Allocation]:
    """Networks that should come out as aimed at, the most promising first.

    Where that is what is aimed at, these lie near the latest candidate; then come any.
    """
    limits = [c.table_limit(aim) for c, aim in zip(calibrations, aims, strict=True)]
    best = allocator.solve(limits)
    if around.least or around.most:
        found = allocator.between(limits, around.least, around.most)
        if _is_worth_it(found, best):
            yield found
    yield best
    if around.least and around.most:
        low, high = allocator.costs_of(around.least), allocator.costs_of(around.most)
        # A budget that none of them exceeds is not what is looked for.
        limits = [
            (low[i] + high[i]) / 2 if too_much else limits[i]
            for i, too_much in enumerate(around.exceeded)
        ]
        found = allocator.between(limits, around.least, around.most)
        if _is_worth_it(found, allocator.solve(limits)):
            yield found
    if best.sizes:
        yield allocator.solve([c.middle(aim) for c, aim in zip(calibrations, aims, strict=True)])


def _is_worth_it(near: Allocation, best: Allocation) -> bool:
    """Whether a network near a known one is worth nearly as much as the best."""
    value = best.solution.value
    return bool(near.sizes) and near.solution.value >= value - LOSS * abs(value)


def around_latest(allocator: Allocator, gauges: Sequence[Gauge], tried: Sequence[Tried]) -> Around:
    """The latest candidate, and the last one on the other side of the limits that goes with it."""
    if not tried:
        return ANYWHERE
    *earlier, latest = tried
    over, within = not surely_keeps(latest.used, gauges), allocator.lies_within
    others = [c for c in reversed(earlier) if surely_keeps(c.used, gauges) is over]
    least: Tried | None = latest
    most: Tried | None = latest
    if over:
        least = next((c for c in others if within(c.allocation, latest.allocation)), None)
    else:
        most = next((c for c in others if within(latest.allocation, c.allocation)), None)
    return Around(
        least.allocation if least else None,
        most.allocation if most else None,
        exceeded(most.used, gauges) if most else (),
    )


def surely_keeps(used: Sequence[float], gauges: Sequence[Gauge]) -> bool:
    """Whether what uses so much would keep every budget if it were measured once more."""
    return not any(exceeded(used, gauges))


def exceeded(used: Sequence[float], gauges: Sequence[Gauge]) -> tuple[bool, ...]:
    """Which budgets it might exceed if it were measured once more."""
    pairs = zip(used, gauges, strict=True)
    return tuple(each > gauge.limit * (1 - gauge.margin) for each, gauge in pairs)
