"""The closed loop: solve, slim, measure, correct, until the measurement lies within every budget.

Tables tell costs up to a correction that depends on the whole network. What was measured so far
corrects it: between measured candidates (and the dense network) the true cost is taken to be a
straight line over the table's cost, and the solver is asked for that table cost which should come
out just under the limit. Solving takes milliseconds; measuring is what costs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import fx

from fxprune.errors import BudgetError
from fxprune.gauges import Gauge
from fxprune.passes.allocate import Allocation, Allocator
from fxprune.units import format_resource

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)

Slim = Callable[[Allocation], fx.GraphModule]
Tell = Callable[[int, int], None]

MOST_ROUNDS = 10


@dataclass(frozen=True)
class Round:
    """One turn of the loop: cost of a candidate per budget, as predicted (if so) and as found."""

    predicted: tuple[float, ...]
    found: tuple[float, ...]


@dataclass(frozen=True)
class Candidate:
    """A slim network and what it really uses, per budget."""

    allocation: Allocation
    module: fx.GraphModule
    used: tuple[float, ...]
    rounds: tuple[Round, ...] = ()
    """What was predicted and found on the way here."""

    @property
    def value(self) -> float:
        """What it is worth, by the solver's tables."""
        return self.allocation.solution.value


@dataclass
class _Correction:
    """Pairs of (cost by the tables, actual cost) for one budget, and the line through them."""

    points: list[tuple[float, float]] = field(default_factory=list)

    def table_limit(self, wanted: float) -> float:
        """The table cost at which the actual cost should come out as `wanted`."""
        tables, actual = self._line()
        return float(np.interp(wanted, actual, tables))

    def expected(self, table_cost: float) -> float:
        """The actual cost to be expected of a table cost."""
        tables, actual = self._line()
        return float(np.interp(table_cost, tables, actual))

    def _line(self) -> tuple[Array, Array]:
        points = sorted([(0.0, 0.0), *self.points], key=lambda point: point[1])
        tables, actual = (np.array(column) for column in zip(*points, strict=True))
        return np.maximum.accumulate(tables), actual


def close_the_loop(
    gauges: Sequence[Gauge], allocator: Allocator, slim: Slim, tell: Tell
) -> Candidate:
    """The most valuable network found that keeps every budget as measured.

    Raises:
        BudgetError: no network within reach keeps them; with the least that can be reached.
    """
    dense = allocator.dense_costs()
    corrections = [_Correction([(d, g.dense)]) for d, g in zip(dense, gauges, strict=True)]
    aims = [gauge.limit * gauge.aim for gauge in gauges]
    best: Candidate | None = None
    tried: set[tuple[tuple[int, ...], tuple[str, ...]]] = set()
    rounds: list[Round] = []
    for round_number in range(MOST_ROUNDS):
        tell(round_number, MOST_ROUNDS)
        limits = [c.table_limit(aim) for c, aim in zip(corrections, aims, strict=True)]
        allocation = allocator.solve(limits)
        if not allocation.sizes:
            break
        key = (tuple(allocation.sizes.values()), allocation.parts)
        if key in tried:
            break
        tried.add(key)
        candidate = measured(allocation, gauges, slim)
        predicted = tuple(
            c.expected(cost) for c, cost in zip(corrections, allocation.costs, strict=True)
        )
        rounds.append(Round(predicted, candidate.used))
        logger.info("round %d: %s", round_number + 1, rounds[-1])
        if keeps(candidate, gauges):
            if best is None or candidate.value > best.value:
                best = candidate
            if _uses_enough(candidate, gauges):
                break
        for i, correction in enumerate(corrections):
            correction.points.append((allocation.costs[i], candidate.used[i]))
            if candidate.used[i] > gauges[i].limit:
                # Whatever the line says, the next guess must not be the same again.
                aims[i] *= 0.995
    if best is None:
        best = last_resort(gauges, allocator, slim)
    return replace(best, rounds=tuple(rounds))


def last_resort(gauges: Sequence[Gauge], allocator: Allocator, slim: Slim) -> Candidate:
    """Every group at its smallest width: what it uses is the floor that an error can name."""
    candidate = measured(allocator.smallest(), gauges, slim)
    if keeps(candidate, gauges):
        return candidate
    for gauge, used in zip(gauges, candidate.used, strict=True):
        if used > gauge.limit:
            raise infeasible(gauge, used)
    raise AssertionError("a candidate that misses no budget keeps them all")


def infeasible(gauge: Gauge, floor: float) -> BudgetError:
    """The error for a budget under what slimming can reach."""
    resource = gauge.budget.resource
    named = isinstance(resource, str)
    limit, least, dense = (
        format_resource(resource, value) if isinstance(resource, str) else f"{value:g}"
        for value in (gauge.limit, floor, gauge.whole)
    )
    fix = "Allow finer widths with multiple_of=1, or leave less dense with ignore="
    if named and floor < gauge.whole:
        fix = f"Ask for {math.ceil(100 * floor / gauge.whole)} % of dense or more. {fix}"
    return BudgetError(
        f"The budget {gauge.budget.describe()} ({limit}) is out of reach: with every group at "
        f"its smallest width the network still uses {least}, of {dense} dense",
        fix=fix,
        requested=gauge.limit,
        floor=floor,
        unit=gauge.budget.unit,
    )


def measured(allocation: Allocation, gauges: Sequence[Gauge], slim: Slim) -> Candidate:
    """The network of `allocation` and what it really uses, per budget."""
    module = slim(allocation)
    used = tuple(gauge.actual(module, allocation) for gauge in gauges)
    return Candidate(allocation, module, used)


def keeps(candidate: Candidate, gauges: Sequence[Gauge]) -> bool:
    """Whether `candidate` uses no more than any budget allows."""
    return all(u <= g.limit for u, g in zip(candidate.used, gauges, strict=True))


def _uses_enough(candidate: Candidate, gauges: Sequence[Gauge]) -> bool:
    """Whether some budget is used up, so that there is nothing to gain from going on."""
    return any(u >= g.limit * g.lowest for u, g in zip(candidate.used, gauges, strict=True))
