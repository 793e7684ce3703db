"""What candidates that were measured say of the tables' costs.

Tables tell costs up to a factor that depends on the whole network, and is alike for networks that
are alike: that of the latest candidate, at first of the dense network, is taken for the next one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fxprune.gauges import Gauge
from fxprune.passes.allocate import Allocation, Allocator


@dataclass(frozen=True)
class Tried:
    """What a candidate turned out to use; its module may go, where another one is better."""

    allocation: Allocation
    used: tuple[float, ...]


@dataclass(frozen=True)
class Calibration:
    """Pairs of (cost by the tables, actual cost) for one budget, the dense network's first."""

    limit: float
    points: tuple[tuple[float, float], ...]

    def table_limit(self, wanted: float) -> float:
        """The table cost at which the actual cost should come out as `wanted`."""
        guess, (enough, too_much) = wanted / self._factor(), self._known(wanted, self.limit)
        if enough < guess < too_much or not enough < too_much < math.inf:
            return guess
        return self.middle(wanted)

    def middle(self, wanted: float) -> float:
        """Half way between the highest table cost that was less and the lowest that was more."""
        enough, too_much = self._known(wanted, wanted)
        return (enough + too_much) / 2 if too_much < math.inf else enough

    def expected(self, table_cost: float) -> float:
        """The actual cost to be expected of a table cost."""
        return table_cost * self._factor()

    def _known(self, wanted: float, limit: float) -> tuple[float, float]:
        """The highest table cost of what is wanted or less, the lowest of more than a limit."""
        enough = max((t for t, actual in self.points if actual <= wanted), default=0.0)
        too_much = min((t for t, actual in self.points if actual > limit), default=math.inf)
        return enough, too_much

    def _factor(self) -> float:
        table_cost, actual = self.points[-1]
        # Functions of one's own may be zero, or turn out so.
        return actual / table_cost if table_cost * actual > 0 else 1.0


def predicted(allocation: Allocation, calibrations: Sequence[Calibration]) -> tuple[float, ...]:
    """What an allocation is expected to use, per budget."""
    return tuple(c.expected(cost) for c, cost in zip(calibrations, allocation.costs, strict=True))


def calibrations_of(
    gauges: Sequence[Gauge], allocator: Allocator, tried: Sequence[Tried]
) -> list[Calibration]:
    """What the tables, as they are now, say of every network that was measured."""
    dense, told = allocator.dense_costs(), [allocator.costs_of(c.allocation) for c in tried]
    return [
        Calibration(
            gauge.limit,
            (
                # Tables that slim networks have put right are right where these are.
                (gauge.dense if gauge.known else dense[i], gauge.dense),
                *((costs[i], c.used[i]) for costs, c in zip(told, tried, strict=True)),
            ),
        )
        for i, gauge in enumerate(gauges)
    ]
