"""From the Lagrangian bound to the optimum: drop what cannot matter, solve the rest exactly.

At fixed prices, the max-marginal of an option (or of one entry of a table) bounds what any
assignment with it can be worth within the budgets.  For a target t below the bound, all entries
whose max-marginal is below t are dropped.  If the best of what remains is worth v, then nothing is
worth more than max(v, t): the optimum is found as soon as v >= t, and otherwise the bound has come
down to t.  So t is chosen for the *size* of what remains, small first, and no good incumbent is
needed; the incumbent only ends the descent, at the target that already proves it.

With one budget, `branch` does this in parts, by labels; with several, or if these are too many,
branch and cut solves what remains (`polytope`).
"""

from __future__ import annotations

import math

from fxprune.solver.branch import by_branching
from fxprune.solver.dual import ROUNDING, Bundle, Dual
from fxprune.solver.elimination import Sweep
from fxprune.solver.model import Point
from fxprune.solver.polytope import maximum_within
from fxprune.solver.problem import FloatArray, IntArray
from fxprune.solver.reduction import ceilings, goal_of, highest, keep

# Assignments tried, in the order in which the prices favour them.
_ASSIGNMENTS = 100
# Entries of the tables left for branch and cut, one attempt after the other.
_ENTRIES = (100, 200, 400, 800, 1_600, 6_400, 25_000)


def close(
    bundle: Bundle, dual: Dual, budgets: IntArray, gap: float, nodes: int
) -> tuple[float, Point | None]:
    """A bound and the best assignment within the budgets, no more than the gap apart.

    They are further apart only if the last attempt was still too small, or met the node limit.
    A bound of -inf proves that nothing is within the budgets.

    Args:
        bundle: in which the dual was found; learns what is found here.
        dual: prices and bound to start from.
        budgets: [K].
        gap: relative.
        nodes: of branch and cut, per attempt.
    """
    bound = dual.bound
    if bound == -math.inf:
        return bound, None
    sweep = bundle.sweep(dual.prices)
    if bound > goal_of(bundle, budgets, gap, bound):
        bound = _enumerate(bundle, sweep, budgets, bound, bundle.worth(budgets))
    if bound <= goal_of(bundle, budgets, gap, bound):
        return bound, bundle.incumbent(budgets)
    if len(budgets) == 1:
        bound = by_branching(bundle, dual, budgets, gap, bound)
    ceiling: FloatArray | None = None
    for entries in _ENTRIES:
        if bound <= (goal := goal_of(bundle, budgets, gap, bound)):
            break
        if ceiling is None:
            ceiling = ceilings(sweep, dual)
        target = max(goal, highest(ceiling, entries))
        reduced = Bundle(keep(bundle.model, ceiling, target))
        below = _close_reduced(reduced, budgets, target, goal - bundle.worth(budgets), nodes)
        bound = min(bound, max(below, target))
        if (found := reduced.incumbent(budgets)) is not None:
            bundle.learn(found)
    return bound, bundle.incumbent(budgets)


def _enumerate(
    bundle: Bundle, sweep: Sweep, budgets: IntArray, bound: float, target: float
) -> float:
    """Bound after trying the assignments that the prices favour; the bundle learns the best.

    These are all that are worth the target within the budgets, if they are few enough.  `bound`
    must be the one at the prices of the sweep.
    """
    model = bundle.model
    window = bound - target + ROUNDING * model.magnitude
    options, complete = sweep.near(window, _ASSIGNMENTS)
    value, use = model.measure(options)
    value[(use > budgets).any(axis=1)] = -math.inf
    if len(value) and value.max() > -math.inf:
        bundle.learn(model.point(options[value.argmax()]))
    if not complete:
        return bound
    return max(target, bundle.worth(budgets))


def _close_reduced(
    bundle: Bundle, budgets: IntArray, target: float, gap: float, nodes: int
) -> float:
    """Bound of a reduced model, `gap` above what the bundle then knows, or below the target."""
    dual = bundle.minimise(budgets, gap)
    bound = dual.bound
    if bound == -math.inf:
        return bound
    sweep = bundle.sweep(dual.prices)
    for exactly in (False, True):
        worth = bundle.worth(budgets)
        if bound < target or bound <= worth + gap:
            break
        if not exactly:
            bound = _enumerate(bundle, sweep, budgets, bound, max(target, worth))
            continue
        target = max(target, worth + gap)
        reduced = keep(bundle.model, ceilings(sweep, dual), target)
        answer = maximum_within(reduced, budgets, gap, nodes)
        bound = min(bound, max(answer.bound, target))
        if answer.point is not None:
            bundle.learn(answer.point)
    return bound
