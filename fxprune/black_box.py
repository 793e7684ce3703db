"""A budget that is any function of the slim module: a search along certified fronts, few calls.

Nothing is known of the function but what it returns. Multiply-accumulates and parameters stand in
for it: which mixture of the two explains it best is learned from its first readings, and the front
of that mixture is searched for the point where the function meets its limit (`fxprune.solver`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from fxprune.closed_loop import Candidate, Slim, keeps, last_resort, measured
from fxprune.gauges import Gauge
from fxprune.passes.allocate import Allocator
from fxprune.passes.allocation import costs
from fxprune.prepare import Prepared
from fxprune.rounds import Round
from fxprune.solver import Solution, search

EVALUATIONS = 16
# A reading this close under the limit ends the search.
TOLERANCE = 0.03


def with_proxies(prepared: Prepared, exact: Sequence[Gauge]) -> Allocator:
    """The allocation problem with the costs of `exact`, and those that stand in for a function."""
    analysis = prepared.analysis
    proxies = (
        partial(costs.macs_tables, analysis),
        partial(costs.params_tables, prepared.module, analysis),
    )
    return Allocator.build(
        analysis,
        prepared.ladders,
        prepared.importance,
        [*(gauge.tables for gauge in exact), *proxies],
        [*(gauge.unit for gauge in exact), *(1.0 for _ in proxies)],
        prepared.forms,
    )


def search_candidate(
    function: Gauge,
    exact: Sequence[Gauge],
    allocator: Allocator,
    slim: Slim,
    tell: Callable[[int, int], None],
) -> Candidate:
    """The most valuable network found that keeps the function's budget and the exact ones.

    Args:
        allocator: made by `with_proxies` for the same `exact`.

    Raises:
        BudgetError: none of those tried keeps them; with the least that was reached.
    """
    gauges = (function, *exact)
    rounds: list[Round] = []
    best: Candidate | None = None

    def evaluate(solution: Solution) -> float:
        nonlocal best
        tell(len(rounds), EVALUATIONS)
        candidate = measured(allocator.read(solution), gauges, slim)
        rounds.append(Round((), candidate.used, ()))
        if keeps(candidate, gauges) and (best is None or candidate.value > best.value):
            best = candidate
        return candidate.used[0]

    problem = allocator.within([gauge.limit for gauge in exact])
    search(problem, evaluate, function.limit, evaluations=EVALUATIONS, tolerance=TOLERANCE)
    if best is None:
        best = last_resort(gauges, allocator, slim)
    return replace(best, rounds=tuple(rounds))
