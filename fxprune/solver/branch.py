"""Branch and bound under one budget: parts of the problem, each at prices of its own.

A choice that many tables look at, such as the width of a trunk, may leave a wide gap: at one price
two of its options are worth the same, one below the budget and one above it, and a mixture of the
two is all that the dual sees.  Apart they have different prices and close bounds.  So the options
of such a choice are split in two, best bound first, until labels settle what is left of each part.

Every part knows a bound; together they bound the whole, at whatever point the search ends.
"""

from __future__ import annotations

import heapq
from itertools import count

import numpy as np

from fxprune.solver.build import restrict
from fxprune.solver.dual import Bundle, Dual
from fxprune.solver.labels import best_within
from fxprune.solver.model import Model, Point
from fxprune.solver.problem import IntArray
from fxprune.solver.reduction import ceilings, goal_of, highest, keep

# Entries of the tables left for labels, labels kept per join (one attempt after the other), parts.
_ENTRIES = 12_000
_WIDTHS = (300, 5_000)
_PARTS = 500


def by_branching(bundle: Bundle, dual: Dual, budgets: IntArray, gap: float, bound: float) -> float:
    """A bound, at most the given one; the bundle learns the best assignments met.

    Args:
        bundle: of the whole problem.
        dual: prices and bound to start from.
        budgets: [1].
        gap: relative, at which to stop.
        bound: of the whole problem, as known before.
    """
    number = count()
    parts: list[tuple[float, int, Bundle, Dual]] = [(-bound, next(number), bundle, dual)]
    closed = -np.inf
    while parts and next(number) < _PARTS:
        bound = max(closed, -parts[0][0])
        if bound <= goal_of(bundle, budgets, gap, bound):
            break
        above, _, part, dual = heapq.heappop(parts)
        below = min(-above, _by_labels(part, dual, bundle, budgets, gap, bound))
        cut = None
        if below > max(goal_of(bundle, budgets, gap, bound), closed):
            cut = _where_to_split(part, dual, budgets)
        if cut is None:
            closed = max(closed, below)
            continue
        for model in _halves(part.model, *cut):
            half = Bundle(model)
            if not half.possible:
                continue
            half.evaluate(dual.prices)
            slack = goal_of(bundle, budgets, gap, bound) - bundle.worth(budgets)
            better = half.minimise(budgets, slack / 10)
            if (found := half.incumbent(budgets)) is not None:
                bundle.learn(found)
            heapq.heappush(parts, (-min(below, better.bound), next(number), half, better))
    return max(closed, *(-part[0] for part in parts), bundle.worth(budgets))


def _by_labels(
    part: Bundle, dual: Dual, bundle: Bundle, budgets: IntArray, gap: float, bound: float
) -> float:
    """A bound of the part, from labels; at least what would be close enough."""
    if dual.bound == -np.inf:
        return dual.bound
    below = dual.bound
    ceiling = ceilings(part.sweep(dual.prices), dual)
    for width in _WIDTHS:
        target = max(goal_of(bundle, budgets, gap, bound), highest(ceiling, _ENTRIES))
        if below <= target:
            break
        reduced = keep(part.model, ceiling, target)
        answer = best_within(reduced, int(budgets[0]), float(dual.prices[0]), target, width)
        below = min(below, answer.bound)
        if answer.point is None:  # too far from the optimum: halves are worth more than labels
            break
        bundle.learn(answer.point)
    return below


def _where_to_split(part: Bundle, dual: Dual, budgets: IntArray) -> tuple[int, int] | None:
    """The choice, and the last option of its lower half, in which the points of the dual differ."""
    low, high = _sides(part, dual, budgets)
    if low is None or high is None:
        return None
    tables = np.zeros(len(low.option), dtype=np.int64)
    for table in part.model.tables:
        tables[list(table.scope)] += 1
    differ = np.flatnonzero((low.option != high.option) & (tables > 0))
    if not len(differ):
        return None
    choice = int(differ[tables[differ].argmax()])
    ends = sorted((int(low.option[choice]), int(high.option[choice])))
    options = part.model.options[choice]
    between = options[(options >= ends[0]) & (options < ends[1])]
    return choice, int(between[(len(between) - 1) // 2])


def _sides(part: Bundle, dual: Dual, budgets: IntArray) -> tuple[Point | None, Point | None]:
    """The points nearest to the bound at its price, within the budget and over it."""

    def relaxed(point: Point) -> float:
        return point.value - float(dual.prices @ point.use)

    inside = [point for point in part.points if (point.use <= budgets).all()]
    outside = [point for point in part.points if (point.use > budgets).any()]
    return max(inside, key=relaxed, default=None), max(outside, key=relaxed, default=None)


def _halves(model: Model, choice: int, last: int) -> list[Model]:
    """The model with the options of a choice up to `last`, and with those after it."""
    halves = []
    for side in (model.options[choice] <= last, model.options[choice] > last):
        kept = [np.ones(size, dtype=bool) for size in model.sizes]
        kept[choice] = side
        halves.append(restrict(model, kept))
    return halves
