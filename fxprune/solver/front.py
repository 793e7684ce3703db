"""Certified answers for one budget or for many, which then share the search for prices."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from fxprune.errors import InputError
from fxprune.solver.branch import Part
from fxprune.solver.build import model_of, restrict
from fxprune.solver.close import close
from fxprune.solver.dual import ROUNDING
from fxprune.solver.problem import EXACT, Problem, whole
from fxprune.solver.reduction import allowance
from fxprune.solver.solution import Solution, Status, distance_of, measure

GAP = 1e-4
PARTS = 200


def solve(problem: Problem, *, gap: float = GAP, parts: int = PARTS) -> Solution:
    """The best assignment within all budgets, with a certificate.

    Args:
        problem: see `Problem`.
        gap: relative; the answer is called optimal once bound and value are this close.
        parts: how many parts of the problem branching may look at to close the gap.

    Raises:
        InputError: the choices are too entangled for elimination, or the gap is no number >= 0.
    """
    return Solver(problem, gap=gap, parts=parts).at(problem.budgets)


def front(
    problem: Problem,
    budgets: Sequence[int | tuple[int, ...]],
    *,
    gap: float = GAP,
    parts: int = PARTS,
) -> list[Solution]:
    """`solve` at each of the budgets in place of the problem's own.

    Within the gap each, values never fall from a budget to one that is larger.

    Args:
        problem: see `Problem`.
        budgets: for every point one integer (if the problem has one budget) or a tuple of K.
        gap: relative, see `solve`.
        parts: see `solve`.

    Raises:
        InputError: as `solve`, or a point has the wrong number of budgets.
    """
    solver = Solver(problem, gap=gap, parts=parts)
    points = [whole(b if isinstance(b, tuple) else (b,)) for b in budgets]
    # Ascending, because an answer for a smaller budget is also one for a larger.
    solutions = {point: solver.at(point) for point in sorted(set(points))}
    return [solutions[point] for point in points]


class Solver:
    """A problem under changing budgets; what one answer teaches, the next one uses.

    Args:
        problem: see `Problem`.
        gap: relative, see `solve`.
        parts: see `solve`.
        allowed: options by the names of choices that may not take others; at least one of each.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        gap: float = GAP,
        parts: int = PARTS,
        allowed: Mapping[str, Collection[int]] | None = None,
    ) -> None:
        if not (math.isfinite(gap) and gap >= 0):
            raise InputError(
                f"The gap must be a number from 0 on, not {gap}",
                "This is an argument of the allocation solver",
                "Use for example gap=1e-4",
            )
        self._problem, self._gap, self._parts = problem, gap, parts
        model = model_of(problem)
        if allowed:
            every = [np.arange(choice.options) for choice in problem.choices]
            kept = [
                np.isin(options, [*allowed.get(choice.name, options)])
                for choice, options in zip(problem.choices, every, strict=True)
            ]
            model = restrict(model, kept)
        self._bundle = Part(model)
        self._answers: dict[tuple[int, ...], Solution] = {}

    def at(self, budgets: tuple[int, ...]) -> Solution:
        """The best assignment within these budgets instead of the problem's own."""
        if budgets not in self._answers:
            self._answers[budgets] = self._solve(budgets)
        return self._answers[budgets]

    def _solve(self, budgets: tuple[int, ...]) -> Solution:
        problem, bundle = self._problem, self._bundle
        if len(budgets) != len(problem.budgets):
            raise InputError(
                f"{len(budgets)} budgets for a problem with {len(problem.budgets)}",
                "This is a point of a front",
                "Give one integer per budget of the problem",
            )
        # Nothing can use more than `EXACT`, so that no larger budget says more.
        limits = np.clip(np.array(whole(budgets), dtype=object), -EXACT, EXACT).astype(np.int64)
        # The prices need not be exact: a tenth of the gap is left to them.
        slack = allowance(self._gap / 10, bundle.best(limits).bound, bundle.worth(limits))
        dual = bundle.minimise(limits, slack)
        bound, best = close(bundle, dual, limits, self._gap, self._parts)
        floor = tuple(int(least) for least in bundle.floor)
        prices = tuple(float(price) for price in dual.prices)
        if best is None:
            nothing: Status = "infeasible" if bound == -math.inf else "unknown"
            distance = 0.0 if nothing == "infeasible" else math.inf
            return Solution(nothing, {}, -math.inf, bound, distance, (), prices, floor)
        names = [choice.name for choice in problem.choices]
        assignment = {name: int(option) for name, option in zip(names, best.option, strict=True)}
        value, use = measure(problem, assignment)
        if bound - value <= ROUNDING * bundle.model.magnitude:
            bound = value
        distance = distance_of(value, bound)
        status: Status = "optimal" if distance <= self._gap else "feasible"
        return Solution(status, assignment, value, bound, distance, use, prices, floor)
