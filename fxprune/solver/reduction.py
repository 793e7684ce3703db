"""What a bound allows to drop, and when it is close enough."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fxprune.solver.build import restrict
from fxprune.solver.dual import ROUNDING, Bundle, Dual
from fxprune.solver.elimination import Sweep
from fxprune.solver.model import Model
from fxprune.solver.problem import FloatArray, IntArray

# Parts of the work stop a little inside the gap, so that rounding cannot put them outside.
_WITHIN = 0.99


def allowance(gap: float, bound: float, worth: float) -> float:
    """The absolute difference that a relative gap allows, wherever in between the optimum is."""
    return gap * max(worth, -bound, 0.0) if bound > -math.inf else 0.0


def goal_of(bundle: Bundle, budgets: IntArray, gap: float, bound: float) -> float:
    """The bound that would be close enough to what the bundle knows."""
    worth = bundle.worth(budgets)
    return worth + _WITHIN * allowance(gap, bound, worth)


def ceilings(sweep: Sweep, dual: Dual) -> FloatArray:
    """For every entry [N], a bound on what an assignment within the budgets with it is worth."""
    return sweep.marginals() + (dual.bound - sweep.total)


def highest(ceiling: FloatArray, count: int) -> float:
    """What so many of the entries reach; -inf if there are no more."""
    return float(np.partition(ceiling, -count)[-count]) if len(ceiling) > count else -math.inf


def keep(model: Model, ceiling: FloatArray, target: float) -> Model:
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
