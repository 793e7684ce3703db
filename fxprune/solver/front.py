"""Certified answers for one budget or for many, which then share the search for prices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fxprune.errors import InputError
from fxprune.solver.close import allowance, close
from fxprune.solver.dual import ROUNDING, Bundle
from fxprune.solver.model import model_of
from fxprune.solver.problem import Problem, Solution, Status, measure

NODES = 100_000


def solve(problem: Problem, *, gap: float = 1e-4, nodes: int = NODES) -> Solution:
    """The best assignment within all budgets, with a certificate.

    Args:
        problem: see `Problem`.
        gap: relative; the answer is called optimal once bound and value are this close.
        nodes: how far branch and cut may go in each attempt to close the gap.

    Raises:
        InputError: the choices are too entangled for elimination, or the gap is no number >= 0.
    """
    return front(problem, [problem.budgets], gap=gap, nodes=nodes)[0]


def front(
    problem: Problem,
    budgets: Sequence[int | tuple[int, ...]],
    *,
    gap: float = 1e-4,
    nodes: int = NODES,
) -> list[Solution]:
    """`solve` at each of the budgets in place of the problem's own.

    Args:
        problem: see `Problem`.
        budgets: one integer (if the problem has one budget) or a tuple of K for every point.
        gap: relative, see `solve`.
        nodes: see `solve`.
    """
    if not (math.isfinite(gap) and gap >= 0):
        raise InputError(f"A gap is a number from 0 on, not {gap}", "", "Use for example 1e-4")
    points = [(b,) if isinstance(b, int) else tuple(b) for b in budgets]
    for point in points:
        if len(point) != len(problem.budgets):
            raise InputError(
                f"The point {point} has {len(point)} budgets, the problem {len(problem.budgets)}",
                "This is a point of a front",
                "Give one integer per budget of the problem",
            )
    bundle = Bundle(model_of(problem))
    # Ascending, because an answer for a smaller budget also holds for a larger one.
    solutions = {p: _at(problem, bundle, p, gap, nodes) for p in sorted(set(points))}
    return [solutions[point] for point in points]


def _at(
    problem: Problem, bundle: Bundle, budgets: tuple[int, ...], gap: float, nodes: int
) -> Solution:
    limits = np.array(budgets, dtype=np.int64)
    first, known = bundle.best(limits), bundle.incumbent(limits)
    # The prices need not be exact: a tenth of the gap is left to them.
    dual = bundle.minimise(limits, allowance(gap / 10, first.bound, known))
    bound, best = dual.bound, None
    if bound > -math.inf:
        bound, best = close(bundle, dual, limits, gap, nodes)
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
    distance = (bound - value) / max(abs(bound), abs(value)) if bound > value else 0.0
    status: Status = "optimal" if distance <= gap else "feasible"
    return Solution(status, assignment, value, bound, distance, use, prices, floor)
