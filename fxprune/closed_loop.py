"""The closed loop: solve, slim, measure, correct, until the measurement lies within every budget.

Tables tell costs up to a factor that depends on the whole network, and is alike for networks that
are alike. So a network that should come out just under the limit is looked at first, unless one
like it is known: a rehearsal, no candidate. Then the factor of the latest candidate (at first, of
the dense network) is taken for the next one, and the solver is asked for that table cost which
should come out just under the limit; where that lies outside of what is known to be too much and
too little, for the middle of the two. Where networks can be profiled, the tables are put right by
them, layer by layer. Solving takes milliseconds; measuring is what costs.

The best networks by tables that are a little off elsewhere differ in many layers, and each of these
adds to what the prediction is off by. So from the second candidate on, a network is looked for that
has all of the latest one, or nothing else: then only what is added or taken away is predicted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import fx

from fxprune.errors import BudgetError
from fxprune.gauges import Gauge
from fxprune.passes.allocate import Allocation, Allocator
from fxprune.rounds import Round
from fxprune.units import format_resource

logger = logging.getLogger(__name__)

Slim = Callable[[Allocation], fx.GraphModule]
Tell = Callable[[int, int], None]

LOSS = 0.02
"""How much less than the best found by tables a network may be worth that is near a known one."""
MOST_ROUNDS = 6
RETREATS = 4
RETREAT = 0.9
"""Where none of these rounds kept the budgets: further ones, each with a lower aim for those that
were exceeded. The only other network that surely keeps them is the smallest of all."""
PARTICULAR_ROUNDS = 3
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


@dataclass(frozen=True)
class _Tried:
    """What a candidate turned out to use; its module may go, where another one is better."""

    allocation: Allocation
    used: tuple[float, ...]


@dataclass(frozen=True)
class _Around:
    """Networks that the next one should lie between, None for any.

    Attributes:
        exceeded: the budgets that `most` does not surely keep.
    """

    least: Allocation | None
    most: Allocation | None
    exceeded: tuple[bool, ...]


_ANYWHERE = _Around(None, None, ())


@dataclass(frozen=True)
class _Correction:
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
    tried: dict[tuple[tuple[int, ...], tuple[str, ...]], _Tried] = {}
    rounds: list[Round] = []
    if not all(gauge.familiar for gauge in gauges):
        tell(0, MOST_ROUNDS)
        corrections = _corrections(gauges, allocator, ())
        first = next(_guesses(allocator, corrections, aims))
        if first.sizes:
            known = tuple(gauge.known for gauge in gauges)
            used = rehearsed(first, gauges, slim)
            rounds.append(Round(_predicted(first, corrections), used, known, rehearsal=True))
            logger.info("rehearsal: %s", rounds[-1])
            allocator = build()
    for round_number in range(MOST_ROUNDS + RETREATS):
        if round_number >= MOST_ROUNDS and best is not None:
            break
        tell(min(round_number, MOST_ROUNDS - 1), MOST_ROUNDS)
        corrections = _corrections(gauges, allocator, tuple(tried.values()))
        around = _around(allocator, gauges, tuple(tried.values()))
        guesses = _guesses(allocator, corrections, aims, around)
        new = (guess for guess in guesses if guess.sizes and _key(guess) not in tried)
        allocation = next(new, None)
        if allocation is None:
            break
        candidate = measured(allocation, gauges, slim)
        tried[_key(allocation)] = _Tried(allocation, candidate.used)
        known = tuple(gauge.known for gauge in gauges)
        rounds.append(Round(_predicted(allocation, corrections), candidate.used, known))
        logger.info("round %d: %s", round_number + 1, rounds[-1])
        learnt = [gauge.learn(allocation) for gauge in gauges]
        if keeps(candidate, gauges) and (
            best is None or _rank(candidate, gauges) > _rank(best, gauges)
        ):
            best = candidate
        particular = round_number + 1 < PARTICULAR_ROUNDS
        if best and _surely_keeps(best, gauges) and _uses_enough(best, gauges, particular):
            break
        for i, gauge in enumerate(gauges):
            if candidate.used[i] > gauge.limit * (1 - gauge.margin) and not learnt[i]:
                # Whatever the factor says, the next guess must not be the same again.
                aims[i] *= 0.995
            if candidate.used[i] > gauge.limit and round_number + 1 >= MOST_ROUNDS:
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


def _guesses(
    allocator: Allocator,
    corrections: Sequence[_Correction],
    aims: Sequence[float],
    around: _Around = _ANYWHERE,
) -> Iterator[Allocation]:
    """Networks that should come out as aimed at, the most promising first.

    Where that is what is aimed at, these lie near the latest candidate; then come any.
    """
    limits = [c.table_limit(aim) for c, aim in zip(corrections, aims, strict=True)]
    best = allocator.solve(limits)
    if around.least or around.most:
        found = allocator.between(limits, around.least, around.most)
        if _is_worth_it(found, best):
            yield found
    yield best
    if around.least and around.most:
        pairs = zip(*map(allocator.costs_of, (around.least, around.most)), strict=True)
        middles = [sum(pair) / 2 for pair in pairs]
        # A budget that none of them exceeds is not what is looked for.
        halves = zip(around.exceeded, middles, limits, strict=True)
        limits = [middle if exceeded else limit for exceeded, middle, limit in halves]
        found = allocator.between(limits, around.least, around.most)
        if _is_worth_it(found, allocator.solve(limits)):
            yield found
    if best.sizes:
        yield allocator.solve([c.middle(aim) for c, aim in zip(corrections, aims, strict=True)])


def _is_worth_it(near: Allocation, best: Allocation) -> bool:
    """Whether a network near a known one is worth nearly as much as the best."""
    value = best.solution.value
    return bool(near.sizes) and near.solution.value >= value - LOSS * abs(value)


def _around(allocator: Allocator, gauges: Sequence[Gauge], tried: Sequence[_Tried]) -> _Around:
    """The latest candidate, and the last one on the other side of the limits that goes with it."""
    if not tried:
        return _ANYWHERE
    *earlier, latest = tried
    over, within = not _surely_keeps(latest, gauges), allocator.lies_within
    others = [c for c in reversed(earlier) if _surely_keeps(c, gauges) is over]
    least: _Tried | None = latest
    most: _Tried | None = latest
    if over:
        least = next((c for c in others if within(c.allocation, latest.allocation)), None)
    else:
        most = next((c for c in others if within(latest.allocation, c.allocation)), None)
    return _Around(
        least.allocation if least else None,
        most.allocation if most else None,
        _exceeded(most, gauges) if most else (),
    )


def _predicted(allocation: Allocation, corrections: Sequence[_Correction]) -> tuple[float, ...]:
    return tuple(c.expected(cost) for c, cost in zip(corrections, allocation.costs, strict=True))


def _corrections(
    gauges: Sequence[Gauge], allocator: Allocator, tried: Sequence[_Tried]
) -> list[_Correction]:
    """What the tables, as they are now, say of every network that was measured."""
    dense = allocator.dense_costs()
    told = [
        [tables.at(c.allocation.solution.assignment) for c in tried] for tables in allocator.costs
    ]
    return [
        _Correction(
            gauge.limit,
            (
                # Tables that slim networks have put right are right where these are.
                (gauge.dense if gauge.known else dense[i], gauge.dense),
                *((t, c.used[i]) for t, c in zip(told[i], tried, strict=True)),
            ),
        )
        for i, gauge in enumerate(gauges)
    ]


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


def _surely_keeps(candidate: Candidate | _Tried, gauges: Sequence[Gauge]) -> bool:
    """Whether it would do so if it were measured once more."""
    return not any(_exceeded(candidate, gauges))


def _exceeded(candidate: Candidate | _Tried, gauges: Sequence[Gauge]) -> tuple[bool, ...]:
    """Which budgets it might exceed if it were measured once more."""
    pairs = zip(candidate.used, gauges, strict=True)
    return tuple(used > gauge.limit * (1 - gauge.margin) for used, gauge in pairs)


def _rank(candidate: Candidate, gauges: Sequence[Gauge]) -> tuple[bool, float]:
    return _surely_keeps(candidate, gauges), candidate.value


def _uses_enough(candidate: Candidate, gauges: Sequence[Gauge], particular: bool) -> bool:
    """Whether some budget is used up, so that there is nothing to gain from going on.

    Args:
        particular: and will be if it is measured once more.
    """
    least = [g.limit * (g.lowest + (g.margin if particular else 0.0)) for g in gauges]
    return any(u >= limit for u, limit in zip(candidate.used, least, strict=True))
