"""From the Lagrangian bound to the optimum: drop what cannot matter, solve the rest exactly.

At fixed prices, the max-marginal of an option (or of one entry of a table) bounds what any
assignment with it can be worth within the budgets.  For a target t below the bound, all entries
whose max-marginal is below t are dropped.  If the best of what remains is worth v, then nothing is
worth more than max(v, t): the optimum is found as soon as v >= t, and otherwise the bound has come
down to t.  So t is chosen for the *size* of what remains, small first, and no good incumbent is
needed; the incumbent only ends the descent, at the target that already proves it.

The assignments that the prices favour are tried first; then `branch` does the above in parts.
"""

from __future__ import annotations

import math

from fxprune.solver.branch import Part, by_branching
from fxprune.solver.dual import ROUNDING, Dual
from fxprune.solver.model import Point
from fxprune.solver.problem import IntArray
from fxprune.solver.reduction import goal_of

# Assignments tried, in the order in which the prices favour them.
_ASSIGNMENTS = 100


def close(
    bundle: Part, dual: Dual, budgets: IntArray, gap: float, parts: int
) -> tuple[float, Point | None]:
    """A bound and the best assignment within the budgets, no more than the gap apart.

    They are further apart only if there were more parts to look at.  A bound of -inf proves that
    nothing is within the budgets.

    Args:
        bundle: in which the dual was found; learns what is found here.
        dual: prices and bound to start from.
        budgets: [K].
        gap: relative.
        parts: to look at when branching, at most.
    """
    bound = dual.bound
    if bound == -math.inf:
        return bound, None
    if bound > goal_of(bundle, budgets, gap, bound):
        bound = _enumerate(bundle, dual, budgets)
    if bound > goal_of(bundle, budgets, gap, bound):
        bound = by_branching(bundle, dual, budgets, gap, bound, parts)
    return bound, bundle.incumbent(budgets)


def _enumerate(bundle: Part, dual: Dual, budgets: IntArray) -> float:
    """Bound after trying the assignments that the prices favour; the bundle learns the best.

    These are all that are worth as much as the incumbent within the budgets, if they are few.
    """
    model, worth = bundle.model, bundle.worth(budgets)
    window = dual.bound - worth + ROUNDING * model.magnitude
    options, complete = bundle.sweep(dual.prices).near(window, _ASSIGNMENTS)
    value, use = model.measure(options)
    value[(use > budgets).any(axis=1)] = -math.inf
    if len(value) and value.max() > -math.inf:
        bundle.learn(model.point(options[value.argmax()]))
    return bundle.worth(budgets) if complete else dual.bound
