"""Branch and bound: parts of the problem, each at prices of its own.

A choice that many tables look at, such as the width of a trunk, may leave a wide gap: at one price
two of its options are worth the same, one below the budget and one above it, and a mixture of the
two is all that the dual sees.  Apart they have different prices and close bounds.  So the options
of such a choice are split in two, best bound first, until labels settle what is left of each part.

Every part knows a bound; together they bound the whole, at whatever point the search ends.  The
first two halves are kept with the whole, whose other budgets start from all that they have learnt.
"""

from __future__ import annotations

import heapq
from itertools import count

import numpy as np

from fxprune.solver.dual import Bundle, Dual, Mask, in_two
from fxprune.solver.model import Model
from fxprune.solver.problem import FloatArray, IntArray
from fxprune.solver.reduction import ceilings, goal_of, highest, keep
from fxprune.solver.within import best_within

# Labels kept per join, and entries of the tables left for these: one attempt after the other.
_ATTEMPTS = ((300, 4_000), (3_000, 1_500), (15_000, 1_500))
# A point has a share in the mixture of the dual from here on.
_SHARE = 1e-7


def by_branching(
    bundle: Bundle, dual: Dual, budgets: IntArray, gap: float, bound: float, most: int
) -> float:
    """A bound, at most the given one; the bundle learns the best assignments met.

    Args:
        bundle: of the whole problem.
        dual: prices and bound to start from.
        budgets: [K].
        gap: relative, at which to stop.
        bound: of the whole problem, as known before.
        most: parts that are looked at, at most.
    """
    number = count()
    parts: list[tuple[float, int, Bundle, Dual]] = [(-bound, next(number), bundle, dual)]
    closed = -np.inf
    for _ in range(most):
        bound = max(closed, -parts[0][0]) if parts else closed
        if not parts or bound <= goal_of(bundle, budgets, gap, bound):
            break
        above, _, part, dual = heapq.heappop(parts)
        below, ceiling = -above, ceilings(part.sweep(dual.prices), dual)
        far = dual.bound - goal_of(bundle, budgets, gap, bound)
        barren = part.is_barren(dual.prices, far)
        if not barren:
            below = min(below, _by_labels(part, dual, ceiling, bundle, budgets, gap, bound))
        goal = goal_of(bundle, budgets, gap, bound)
        if below <= max(goal, closed):
            closed = max(closed, below)
            continue
        part.mark_barren(dual.prices, far)
        if part is bundle:
            halves = part.halves(*split) if (split := _split(part, part.model, budgets)) else []
        else:
            # What cannot reach the goal may go; what is left is smaller, and split the same.
            closed = max(closed, goal)
            halves = _parts_of(part, keep(part.model, ceiling, goal), budgets)
            halves = halves or _parts_of(part, part.model, budgets)
        if not halves:
            if barren:
                below = min(below, _by_labels(part, dual, ceiling, bundle, budgets, gap, bound))
            closed = max(closed, below)
        for half in halves:
            half.look_at(dual.prices)
            slack = goal_of(bundle, budgets, gap, bound) - bundle.worth(budgets)
            better = half.minimise(budgets, slack / 10)
            if (found := half.incumbent(budgets)) is not None:
                bundle.learn(found)
            if better.bound > -np.inf:
                heapq.heappush(parts, (-min(below, better.bound), next(number), half, better))
    return max(closed, *(-part[0] for part in parts), bundle.worth(budgets))


def _by_labels(
    part: Bundle,
    dual: Dual,
    ceiling: FloatArray,
    bundle: Bundle,
    budgets: IntArray,
    gap: float,
    bound: float,
) -> float:
    """A bound of the part, from labels; at least what would be close enough."""
    below = dual.bound
    for width, entries in _ATTEMPTS:
        goal = goal_of(bundle, budgets, gap, bound)
        target = max(goal, highest(ceiling, entries))
        if below <= target:
            break
        reduced = keep(part.model, ceiling, target)
        answer = best_within(reduced, budgets, dual.prices, target, width)
        below = min(below, answer.bound)
        if answer.point is not None:
            bundle.learn(answer.point)
        elif target > goal:  # too far from the optimum: halves are worth more than labels
            break
    return below


def _parts_of(part: Bundle, model: Model, budgets: IntArray) -> list[Bundle]:
    """The model of a part in two, or nothing."""
    split = _split(part, model, budgets)
    return [] if split is None else in_two(model, *split)


def _split(part: Bundle, model: Model, budgets: IntArray) -> tuple[int, Mask] | None:
    """A choice by which the points of the dual's mixture differ, and the lower of its options."""
    weight = part.mixture(budgets)
    mixed = [p.option for p, w in zip(part.points, weight, strict=True) if w > _SHARE]
    if not mixed:
        return None
    low, high = np.min(mixed, axis=0), np.max(mixed, axis=0)
    tables = np.zeros(len(low), dtype=np.int64)
    for table in model.tables:
        tables[list(table.scope)] += 1
    for choice in np.argsort(-tables, kind="stable"):
        options = model.options[choice]
        between = options[(options >= low[choice]) & (options < high[choice])]
        if not tables[choice] or not len(between):
            continue
        lower = options <= between[(len(between) - 1) // 2]
        if not lower.all():
            return int(choice), lower
    return None
