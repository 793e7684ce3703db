"""From the Lagrangian bound to the optimum: drop what cannot matter, solve the rest exactly.

At fixed prices, the max-marginal of an option (or of one entry of a table) bounds what any
assignment with it can be worth within the budgets.  For a target t below the bound, all entries
whose max-marginal is below t are dropped.  If the best of what remains is worth v, then nothing is
worth more than max(v, t): the optimum is found as soon as v >= t, and otherwise the bound has come
down to t.  So t is chosen for the *size* of what remains, small first, and no good incumbent is
needed; the incumbent only ends the descent, at the target that already proves it.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fxprune.solver.build import restrict
from fxprune.solver.dual import ROUNDING, Bundle, Dual
from fxprune.solver.elimination import Sweep
from fxprune.solver.model import Model, Point
from fxprune.solver.polytope import maximum_within
from fxprune.solver.problem import FloatArray, IntArray

# Assignments tried, in the order in which the prices favour them.
_ASSIGNMENTS = 1_000
# Entries of the tables left for branch and cut, one attempt after the other.
_ENTRIES = (100, 200, 400, 800, 1_600, 6_400, 25_000)
# Parts of the work stop a little inside the gap, so that rounding cannot put them outside.
_WITHIN = 0.99


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
    ceiling: FloatArray | None = None
    for count in (0, *_ENTRIES):
        worth = bundle.worth(budgets)
        allowed = _WITHIN * allowance(gap, bound, worth)
        target = worth + allowed
        if bound <= target:
            break
        if count == 0:
            bound = _enumerate(bundle, sweep, budgets, bound, worth)
            continue
        if ceiling is None:
            ceiling = _ceilings(sweep, dual)
        if len(ceiling) > count:
            target = max(target, float(np.partition(ceiling, -count)[-count]))
        reduced = Bundle(_keep(bundle.model, ceiling, target))
        below = _close_reduced(reduced, budgets, target, allowed, nodes)
        bound = min(bound, max(below, target))
        if (found := reduced.incumbent(budgets)) is not None:
            bundle.learn(found)
    return bound, bundle.incumbent(budgets)


def allowance(gap: float, bound: float, worth: float) -> float:
    """The absolute difference that a relative gap allows, wherever in between the optimum is."""
    return gap * max(worth, -bound, 0.0) if bound > -math.inf else 0.0


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


def _ceilings(sweep: Sweep, dual: Dual) -> FloatArray:
    """For every entry [N], a bound on what an assignment within the budgets with it is worth."""
    return sweep.marginals() + (dual.bound - sweep.total)


def _keep(model: Model, ceiling: FloatArray, target: float) -> Model:
    """The model without the entries, and so without the options, below the target."""
    stays: npt.NDArray[np.bool_] = ceiling >= target - ROUNDING * model.magnitude
    options = [np.zeros(size, dtype=bool) for size in model.sizes]
    for table, mask in zip(model.tables, model.split(stays), strict=True):
        place = np.nonzero(mask) if table.rows is None else tuple(table.rows[mask].T)
        for v, option in zip(table.scope, place, strict=True):
            options[v][option] = True
    # A choice that no table looks at, or that has nothing left, keeps what it has.
    left = [kept if kept.any() else np.ones_like(kept) for kept in options]
    return restrict(model, left, stays)


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
        reduced = _keep(bundle.model, _ceilings(sweep, dual), target)
        answer = maximum_within(reduced, budgets, gap, nodes)
        bound = min(bound, max(answer.bound, target))
        if answer.point is not None:
            bundle.learn(answer.point)
    return bound
