"""A budget that is any function of the assignment: a search along the certified front.

Nothing is known of the function but its readings, each of which may be costly (a network built and
measured).  The costs in the problem's tables serve as proxies: from a few readings a non-negative
combination of them is fitted, and the certified front of that one combined cost is searched for the
point where the reading meets the limit (regula falsi in its Illinois form, which needs no more than
that the reading grows along the front, and survives where it does not).  Every assignment read is
the best one for its combined cost; which of them is best for the function itself is not certified.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from fxprune.errors import InputError
from fxprune.solver.front import GAP, Solver
from fxprune.solver.problem import Factor, FloatArray, Problem, SparseFactor
from fxprune.solver.solution import Solution, measure

# The combined cost is rounded to integers of this many parts of its largest possible sum.
_PARTS = 2**32


@dataclass(frozen=True, slots=True)
class Trial:
    """One evaluation: a certified solution for some combined cost, and what the function read."""

    solution: Solution
    reading: float


@dataclass(frozen=True, slots=True)
class Search:
    """What a black-box search found.

    Attributes:
        best: the most valuable solution whose reading is within the limit; None if there is none.
        trials: every evaluation, in order.
        limit: what the readings were held against.
    """

    best: Trial | None
    trials: tuple[Trial, ...]
    limit: float

    @property
    def evaluations(self) -> int:
        """How often the function was called."""
        return len(self.trials)


class _Log:
    """The black box with everything it has read."""

    def __init__(self, evaluate: Callable[[Solution], float], limit: float) -> None:
        self.limit = limit
        self.trials: list[Trial] = []
        self._evaluate = evaluate
        self._known: dict[tuple[tuple[str, int], ...], float] = {}

    def read(self, solution: Solution) -> float:
        """The reading of the solution's assignment; asked for once only."""
        key = tuple(sorted(solution.assignment.items()))
        if key not in self._known:
            reading = float(self._evaluate(solution))
            if not math.isfinite(reading):
                raise InputError(
                    f"The budget's function returned {reading}",
                    "This happened in a black-box search of the allocation solver",
                    "Return a finite number for every assignment",
                )
            self._known[key] = reading
            self.trials.append(Trial(solution, reading))
        return self._known[key]

    def weights(self, floor: FloatArray, span: FloatArray) -> FloatArray:
        """Weights [K] >= 0 of the proxies that explain the readings best (least squares)."""
        use = np.array([trial.solution.use for trial in self.trials], dtype=np.float64)
        reading = np.array([trial.reading for trial in self.trials])
        ones = np.ones((len(use), 1))
        fitted, _ = nnls(np.hstack([(use - floor) / span, ones, -ones]), reading)
        weights = np.asarray(fitted[: len(floor)] / span, dtype=np.float64)
        return weights if len(use) > len(floor) and weights.any() else 1 / span

    def result(self) -> Search:
        inside = [trial for trial in self.trials if trial.reading <= self.limit]
        best = max(inside, key=lambda trial: trial.solution.value, default=None)
        return Search(best, tuple(self.trials), self.limit)


def search(
    problem: Problem,
    evaluate: Callable[[Solution], float],
    limit: float,
    *,
    evaluations: int = 16,
    tolerance: float = 0.01,
    gap: float = GAP,
) -> Search:
    """Looks for the most valuable solution with `evaluate(solution) <= limit`.

    Args:
        problem: with at least one budget; its costs are the proxies, its budgets hold as well.
        evaluate: the black box; never called twice with the same assignment.
        limit: on what it returns.
        evaluations: at most so many calls, at least 2 and one more per budget.
        tolerance: relative; a reading within the limit and this close to it ends the search.
        gap: relative, see `solve`.

    Raises:
        InputError: no budget to serve as proxy, too few evaluations, or a reading is no number.
    """
    proxies = len(problem.budgets)
    if not proxies or evaluations < 2 + proxies:
        raise InputError(
            f"{evaluations} evaluations for a problem with {proxies} budgets",
            "This is a black-box search of the allocation solver",
            "Give at least one budget as a proxy, and 2 evaluations more than there are budgets",
        )
    log = _Log(evaluate, limit)
    solver = Solver(problem, gap=gap)
    peak = solver.at(problem.budgets)
    if not peak.assignment or log.read(peak) <= limit:
        return log.result()
    floor, use = np.array(peak.floor, dtype=np.float64), np.array(peak.use, dtype=np.float64)
    for k in range(proxies if proxies > 1 else 0):
        middle = int((floor[k] + use[k]) / 2)
        solution = solver.at((*problem.budgets[:k], middle, *problem.budgets[k + 1 :]))
        if solution.assignment:
            log.read(solution)
    combined = _combine(problem, log.weights(floor, np.maximum(use - floor, 1.0)))
    _bisect(combined, log, evaluations, tolerance, gap)
    return log.result()


def _bisect(problem: Problem, log: _Log, evaluations: int, tolerance: float, gap: float) -> None:
    """Closes in on the last of the problem's budgets at which the reading meets the limit."""
    solver = Solver(problem, gap=gap)
    *hard, _ = problem.budgets
    spent = [(measure(problem, t.solution.assignment)[1][-1], t.reading) for t in log.trials]
    high, above = min((s for s in spent if s[1] > log.limit), key=lambda s: s[0])
    below = [s for s in spent if s[0] < high and s[1] <= log.limit]
    if not below:
        least = solver.at((*hard, solver.at((*hard, high)).floor[-1]))
        if not least.assignment:
            return
        below = [(least.use[-1], log.read(least))]
    low, under = max(below, key=lambda s: s[0])
    side, stuck = 0, False
    while len(log.trials) < evaluations and high - low > 1 and under <= log.limit:
        if log.limit - under <= tolerance * abs(log.limit):
            return
        share = 1.0 if stuck else min(max((log.limit - under) / (above - under), 0.05), 0.95)
        budget = low + max(1, int((high - low - 1) * share))
        solution = solver.at((*hard, budget))
        if not solution.assignment or solution.use[-1] <= low:
            # Nothing new up to here; if there is nothing right below `high` either, this is it.
            low, stuck = budget, True
            continue
        stuck = False
        reading = log.read(solution)
        if reading <= log.limit:
            low, under = budget, reading
            above = log.limit + (above - log.limit) / 2 if side > 0 else above
            side = 1
        else:
            high, above = solution.use[-1], reading
            under = log.limit - (log.limit - under) / 2 if side < 0 else under
            side = -1


def _combine(problem: Problem, weights: FloatArray) -> Problem:
    """The problem with the weighted sum of all costs as one more, last, cost without a budget.

    Budgets that nothing can exceed are left out.
    """
    most = np.array(problem.fixed, dtype=np.int64)
    for factor in problem.factors:
        most = most + factor.cost.reshape(len(most), -1).max(axis=1, initial=0)
    hard = [k for k, budget in enumerate(problem.budgets) if most[k] > budget]
    unit = float(weights @ np.maximum(most, 1)) / _PARTS
    factors: list[Factor | SparseFactor] = []
    for factor in problem.factors:
        whole = np.rint(np.tensordot(weights / unit, factor.cost, axes=1)).astype(np.int64)
        factors.append(replace(factor, cost=np.concatenate([factor.cost[hard], whole[None]])))
    return replace(
        problem,
        factors=tuple(factors),
        budgets=(*(problem.budgets[k] for k in hard), _PARTS),
        fixed=(*(problem.fixed[k] for k in hard), 0),
    )
