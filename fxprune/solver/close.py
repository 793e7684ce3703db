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

from fxprune.solver.dual import ROUNDING, Bundle, Dual
from fxprune.solver.model import Model, Point
from fxprune.solver.polytope import maximum_within
from fxprune.solver.problem import FloatArray, IntArray

# Entries of the tables left for branch and cut, one attempt after the other.
_ENTRIES = (100, 200, 400, 800, 1_600, 6_400, 25_000, 60_000)
# Parts of the work stop a little inside the gap, so that rounding cannot put them outside.
_WITHIN = 0.99
# What remains is priced and reduced again as long as that drops this share of it.
_WORTHWHILE = 0.3


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
    incumbent, bound = bundle.incumbent(budgets), dual.bound
    ceiling: FloatArray | None = None
    for count in _ENTRIES:
        value = -math.inf if incumbent is None else incumbent.value
        allowed = allowance(gap, bound, incumbent)
        if bound - value <= allowed:
            break
        if ceiling is None:
            ceiling = _ceilings(bundle, dual, budgets)
        target = value + _WITHIN * allowed
        if len(ceiling) > count:
            target = max(target, float(np.partition(ceiling, -count)[-count]))
        reduced = _keep(bundle, ceiling, target)
        below, found = _best_of(reduced, budgets, target, _WITHIN * allowed, nodes)
        bound = min(bound, max(below, target))
        if found is not None:
            bundle.learn(found)
        incumbent = bundle.incumbent(budgets)
        if math.isinf(target):
            break
    return bound, incumbent


def allowance(gap: float, bound: float, incumbent: Point | None) -> float:
    """The absolute difference that a relative gap allows, whatever the optimum turns out to be."""
    least = -bound if incumbent is None else max(incumbent.value, -bound)
    return gap * max(least, 0.0)


def _ceilings(bundle: Bundle, dual: Dual, budgets: IntArray) -> FloatArray:
    """For every entry [N], a bound on what an assignment within the budgets with it is worth."""
    total, entries = bundle.plan.marginals(bundle.weights(dual.prices))
    return entries + (dual.bound - total)


def _keep(bundle: Bundle, ceiling: FloatArray, target: float) -> Model:
    """The bundle's model without the entries, and so without the options, below the target."""
    model = bundle.model
    stays: npt.NDArray[np.bool_] = ceiling >= target - ROUNDING * model.magnitude
    options = [np.zeros(size, dtype=bool) for size in model.sizes]
    for table, mask in zip(model.tables, model.split(stays), strict=True):
        place = np.nonzero(mask) if table.rows is None else tuple(table.rows[mask].T)
        for v, option in zip(table.scope, place, strict=True):
            options[v][option] = True
    free = [kept if kept.any() else np.ones_like(kept) for kept in options]
    return model.restrict(free, stays)


def _best_of(
    model: Model, budgets: IntArray, target: float, gap: float, nodes: int
) -> tuple[float, Point | None]:
    """Bound and best of the model, `gap` apart, or a bound below the target."""
    incumbent: Point | None = None
    while True:
        bundle = Bundle(model)
        dual = bundle.minimise(budgets, gap)
        incumbent = _better(incumbent, bundle.incumbent(budgets))
        value = -math.inf if incumbent is None else incumbent.value
        if dual.bound < target or dual.bound - value <= gap:
            return dual.bound, incumbent
        target = max(target, value + gap)
        reduced = _keep(bundle, _ceilings(bundle, dual, budgets), target)
        if reduced.flat_value.size > (1 - _WORTHWHILE) * model.flat_value.size:
            break
        model = reduced
    answer = maximum_within(reduced, budgets, gap, nodes)
    incumbent = _better(incumbent, answer.point)
    return min(dual.bound, max(answer.bound, target)), incumbent


def _better(one: Point | None, other: Point | None) -> Point | None:
    if one is None or other is None:
        return other if one is None else one
    return other if other.value > one.value else one
