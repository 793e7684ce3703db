"""The closed loop: solve, slim, measure, correct, until the measurement lies within every budget.

A network that should come out just under the limit is looked at first, unless one like it is known:
a rehearsal, no candidate. Then candidates are measured (`fxprune.guesses` says which), and what
they turn out to use corrects what the tables tell (`fxprune.calibration`). Where networks can be
profiled, the tables are put right by them, layer by layer. Solving takes milliseconds; measuring is
what costs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import fx

from fxprune.calibration import Tried, calibrations_of, predicted
from fxprune.errors import BudgetError
from fxprune.gauges import Gauge, surely_keep
from fxprune.guesses import guesses
from fxprune.passes.allocate import Allocation, Allocator
from fxprune.rounds import Round
from fxprune.units import format_resource

logger = logging.getLogger(__name__)

Slim = Callable[[Allocation], fx.GraphModule]
Tell = Callable[[int, int], None]

MOST_ROUNDS = 6
RETREATS = 4
RETREAT = 0.9
"""Where none of these rounds surely kept the budgets: further ones. As long as none kept them at
all, each has a lower aim for those that were exceeded: the only other network that surely keeps
them is the smallest of all."""
PARTICULAR_ROUNDS = 5
"""After these, a candidate may lie close to the low end of the window."""


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


def close_the_loop(
    gauges: Sequence[Gauge], build: Callable[[], Allocator], slim: Slim, tell: Tell
) -> tuple[Allocator, Candidate]:
    """The most valuable network found that keeps every budget as measured.

    Args:
        build: sets the problem up from the gauges' tables.

    Raises:
        BudgetError: no network within reach keeps them; with the least that can be reached.
    """
    allocator = build()
    aims = [gauge.limit * gauge.aim for gauge in gauges]
    best: Candidate | None = None
    tried: dict[tuple[tuple[int, ...], tuple[str, ...]], Tried] = {}
    rounds: list[Round] = []
    if not all(gauge.familiar for gauge in gauges):
        tell(0, MOST_ROUNDS)
        calibrations = calibrations_of(gauges, allocator, ())
        first = next(guesses(allocator, gauges, calibrations, aims, ()))
        if first.sizes:
            known = tuple(gauge.known for gauge in gauges)
            used = rehearsed(first, gauges, slim)
            rounds.append(Round(predicted(first, calibrations), used, known, rehearsal=True))
            logger.info("rehearsal: %s", rounds[-1])
            allocator = build()
    for round_number in range(MOST_ROUNDS + RETREATS):
        if round_number >= MOST_ROUNDS and best and surely_keep(gauges, best.used):
            break
        tell(min(round_number, MOST_ROUNDS - 1), MOST_ROUNDS)
        before = tuple(tried.values())
        calibrations = calibrations_of(gauges, allocator, before)
        found = guesses(allocator, gauges, calibrations, aims, before)
        new = (guess for guess in found if guess.sizes and _key(guess) not in tried)
        allocation = next(new, None)
        if allocation is None:
            break
        candidate = measured(allocation, gauges, slim)
        tried[_key(allocation)] = Tried(allocation, candidate.used)
        known = tuple(gauge.known for gauge in gauges)
        rounds.append(Round(predicted(allocation, calibrations), candidate.used, known))
        logger.info("round %d: %s", round_number + 1, rounds[-1])
        learnt = [gauge.learn(allocation) for gauge in gauges]
        if keeps(candidate, gauges) and (
            best is None or _rank(candidate, gauges) > _rank(best, gauges)
        ):
            best = candidate
        particular = round_number + 1 < PARTICULAR_ROUNDS
        if best and surely_keep(gauges, best.used) and _uses_enough(best, gauges, particular):
            break
        retreats = best is None and round_number + 1 >= MOST_ROUNDS
        for i, gauge in enumerate(gauges):
            if not gauge.surely_keeps(candidate.used[i]) and not learnt[i]:
                # Whatever the factor says, the next guess must not be the same again.
                aims[i] *= 0.995
            if retreats and candidate.used[i] > gauge.limit:
                aims[i] *= RETREAT
        if any(learnt):
            allocator = build()
    if best is None:
        best = last_resort(gauges, allocator, slim)
    return allocator, replace(best, rounds=tuple(rounds))


def rehearsed(allocation: Allocation, gauges: Sequence[Gauge], slim: Slim) -> tuple[float, ...]:
    """Look at the network of `allocation` only to have tables put right by it; what it uses."""
    module = slim(allocation)
    return tuple(gauge.rehearse(module, allocation) for gauge in gauges)


def _key(allocation: Allocation) -> tuple[tuple[int, ...], tuple[str, ...]]:
    return tuple(allocation.sizes.values()), allocation.parts


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


def _rank(candidate: Candidate, gauges: Sequence[Gauge]) -> tuple[bool, float]:
    return surely_keep(gauges, candidate.used), candidate.value


def _uses_enough(candidate: Candidate, gauges: Sequence[Gauge], particular: bool) -> bool:
    """Whether some budget is used up, so that there is nothing to gain from going on.

    Args:
        particular: and will be if it is measured once more.
    """
    least = [g.limit * (g.lowest + (g.margin if particular else 0.0)) for g in gauges]
    return any(u >= limit for u, limit in zip(candidate.used, least, strict=True))
