"""Branch and bound: parts of the problem, each at prices of its own.

A choice that many tables look at, such as the width of a trunk, may leave a wide gap: at one price
two of its options are worth the same, one below the budget and one above it, and a mixture of the
two is all that the dual sees.  Apart they have different prices and close bounds.  So the options
of such a choice are split in two, best bound first, until labels settle what is left of each part.

Every part knows a bound; together they bound the whole, at whatever point the search ends.

Budgets that lie side by side have the same prices, and labels fail at these for all of them.  So a
part remembers where they did; the next time it is split at once, into halves that it keeps, which
then start from all that they have learnt.
"""

from __future__ import annotations

import heapq
import math
from itertools import count

import numpy as np
import numpy.typing as npt

from fxprune.solver.build import restrict
from fxprune.solver.dual import Bundle, Dual
from fxprune.solver.model import Model
from fxprune.solver.nearby import look_nearby
from fxprune.solver.problem import FloatArray, IntArray
from fxprune.solver.reduction import ceilings, goal_of, highest, keep
from fxprune.solver.within import best_within

Mask = npt.NDArray[np.bool_]

# Labels kept per join, and entries of the tables left for these: one attempt after the other.
_ATTEMPTS = ((300, 4_000), (3_000, 1_500), (15_000, 1_500))


class Part(Bundle):
    """A part of the problem, or all of it, with what branching has learnt of it."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._barren: dict[bytes, float] = {}
        self._halves: dict[tuple[int, bytes], list[Part]] = {}

    def mark_barren(self, prices: FloatArray, far: float) -> None:
        """Remember that labels do not close a dual at these prices that is so far from its goal."""
        key = prices.tobytes()
        self._barren[key] = min(far, self._barren.get(key, math.inf))

    def is_barren(self, prices: FloatArray, far: float) -> bool:
        """Whether that was found before, at whatever budget."""
        return far >= self._barren.get(prices.tobytes(), math.inf)

    def halves(self, budgets: IntArray) -> list[Part]:
        """What it is split into for these budgets, or nothing; kept for the next ones."""
        if (split := _split(self, self.model, budgets)) is None:
            return []
        choice, lower = split
        key = choice, lower.tobytes()
        if key not in self._halves:
            self._halves[key] = _in_two(self.model, choice, lower)
        return self._halves[key]

    def halves_of(self, model: Model, budgets: IntArray) -> list[Part]:
        """`halves` of what is left of its model, for once."""
        split = _split(self, model, budgets)
        return [] if split is None else _in_two(model, *split)


def by_branching(
    bundle: Part, dual: Dual, budgets: IntArray, gap: float, bound: float, most: int
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
    look_nearby(bundle, budgets)
    number = count()
    parts: list[tuple[float, int, Part, Dual]] = [(-bound, next(number), bundle, dual)]
    closed = -np.inf
    for _ in range(most):
        bound = max(closed, -parts[0][0]) if parts else closed
        if not parts or bound <= goal_of(bundle, budgets, gap, bound):
            break
        above, _, part, dual = heapq.heappop(parts)
        below, far = -above, dual.bound - goal_of(bundle, budgets, gap, bound)
        halves = part.halves(budgets) if part.is_barren(dual.prices, far) else []
        if not halves:
            ceiling = ceilings(part.sweep(dual.prices), dual)
            below = min(below, _by_labels(part, dual, ceiling, bundle, budgets, gap, bound))
            goal = goal_of(bundle, budgets, gap, bound)
            if below <= max(goal, closed):
                closed = max(closed, below)
                continue
            part.mark_barren(dual.prices, far)
            # What cannot reach the goal may go; what is left is smaller, and split the same.
            closed = max(closed, goal)
            halves = part.halves_of(keep(part.model, ceiling, goal), budgets)
            halves = halves or part.halves_of(part.model, budgets)
        if not halves:
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
    part: Part,
    dual: Dual,
    ceiling: FloatArray,
    bundle: Part,
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


def _split(part: Part, model: Model, budgets: IntArray) -> tuple[int, Mask] | None:
    """A choice by which the points of the dual's mixture differ, and the lower of its options."""
    mixed = [point.option for point in part.mixture(budgets)]
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


def _in_two(model: Model, choice: int, lower: Mask) -> list[Part]:
    """The model with the lower options of a choice, and with the others; what is not possible goes.

    Args:
        lower: [options of the choice in this model].
    """
    halves = []
    for side in (lower, ~lower):
        kept = [np.ones(size, dtype=bool) for size in model.sizes]
        kept[choice] = side
        halves.append(Part(restrict(model, kept)))
    return [half for half in halves if half.possible]
