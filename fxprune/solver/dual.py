"""The Lagrangian bound: prices on the budgets at which the relaxed problem is worth least.

For prices p >= 0 let L(p) = max_x value(x) - p . use(x), one elimination.  Then L(p) + p . budget
bounds every feasible value, and the least such bound is found by cutting planes (Kelley, The
cutting-plane method for solving convex programs, 1960): each x met so far bounds L from below, and
the next prices are those that minimise the model of L made of these.  With one budget the minimum
of the model lies on the slope between two known points, one within the budget and one not: the
classic search along the upper hull of all (use, value), which ends after finitely many eliminations
with the exact minimum.  With several, HiGHS solves the model, a linear program in few variables.

Points and evaluations are kept: they hold for all budgets, so that the next budget of a front
starts from everything that earlier ones have found.
"""

from __future__ import annotations

import math
from bisect import insort
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from fxprune.solver.elimination import Plan, Sweep, plan_of
from fxprune.solver.model import Model, Point
from fxprune.solver.problem import FloatArray, IntArray

# Rounding errors of an elimination, relative to the model's magnitude, stay well below this.
ROUNDING = 1e-11
_ROUNDS = 500  # of cutting planes; real problems need about 10 per budget
_SHARE = 1e-7  # of a mixture, from which on a point is in it


@dataclass(frozen=True, slots=True, eq=False)
class Dual:
    """The best prices [K] found and their bound; -inf proves that nothing is within the budgets."""

    prices: FloatArray
    bound: float


class Bundle:
    """A model with all points and evaluations of L met so far.

    Attributes:
        floor: [K], the least use of each budget; empty if every combination is forbidden.
        points: all assignments met, the best first, no two alike in value and use.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.plan: Plan = plan_of(model)
        self.points: list[Point] = []
        self._prices: list[FloatArray] = []
        self._relaxed: list[float] = []
        self._seen: set[tuple[float, bytes]] = set()
        self._forbidden = np.where(np.isfinite(model.flat_value), 0.0, -np.inf)
        self._cost = model.flat_cost.astype(np.float64)
        budgets = len(model.base_cost)
        self.floor: IntArray = np.zeros(0, dtype=np.int64)
        if math.isfinite(self.evaluate(np.zeros(budgets))):
            least = [self.cheapest(np.eye(budgets)[k]) for k in range(budgets)]
            self.floor = np.array([p.use[k] for k, p in enumerate(least)], dtype=np.int64)

    @property
    def possible(self) -> bool:
        """Whether any combination is allowed, the budgets aside."""
        return bool(self.points)

    def sweep(self, prices: FloatArray) -> Sweep:
        """The maximum of value minus priced cost over all allowed assignments."""
        return self.plan.sweep(self._less(self.model.flat_value, prices))

    def evaluate(self, prices: FloatArray) -> float:
        """L(prices), by one elimination; keeps the assignment that attains it."""
        sweep = self.sweep(prices)
        relaxed = sweep.total + self.model.base_value - float(prices @ self.model.base_cost)
        if math.isfinite(relaxed):
            self._prices.append(prices)
            self._relaxed.append(relaxed)
            self.learn(self.model.point(sweep.best()))
        return relaxed

    def look_at(self, prices: FloatArray) -> None:
        """`evaluate`, unless that has been done."""
        if not any(np.array_equal(prices, known) for known in self._prices):
            self.evaluate(prices)

    def cheapest(self, direction: FloatArray) -> Point:
        """The allowed assignment with the least direction . use, whatever it is worth."""
        sweep = self.plan.sweep(self._less(self._forbidden, direction))
        return self.learn(self.model.point(sweep.best()))

    def _less(self, flat: FloatArray, prices: FloatArray) -> FloatArray:
        """`flat - prices @ cost`, without waking up the threads of a BLAS."""
        for price, cost in zip(prices, self._cost, strict=True):
            if price:
                flat = flat - price * cost
        return flat

    def learn(self, point: Point) -> Point:
        """Keeps a point, from wherever, unless one like it is known."""
        if (key := (point.value, point.use.tobytes())) not in self._seen:
            self._seen.add(key)
            insort(self.points, point, key=lambda known: -known.value)
        return point

    def incumbent(self, budgets: IntArray) -> Point | None:
        """The best point met that is within the budgets."""
        return next((p for p in self.points if (p.use <= budgets).all()), None)

    def worth(self, budgets: IntArray) -> float:
        """The value of the incumbent; -inf without one."""
        incumbent = self.incumbent(budgets)
        return -math.inf if incumbent is None else incumbent.value

    def best(self, budgets: IntArray) -> Dual:
        """The lowest of the bounds evaluated so far; -inf if every combination is forbidden."""
        if not self.possible:
            return Dual(np.zeros(len(budgets)), -math.inf)
        bounds = np.array(self._relaxed) + np.array(self._prices) @ budgets
        i = int(bounds.argmin())
        return Dual(self._prices[i], float(bounds[i]))

    def minimise(self, budgets: IntArray, slack: float = 0.0) -> Dual:
        """The least bound, to within `slack`; ends early once an incumbent attains its bound."""
        if not self.possible or (self.floor > budgets).any():
            return Dual(np.zeros(len(budgets)), -math.inf)
        slack = max(slack, ROUNDING * self.model.magnitude)
        for _ in range(_ROUNDS):
            dual, worth = self.best(budgets), self.worth(budgets)
            known = len(self.points)
            if dual.bound - worth <= slack:
                break
            use = np.array([point.use - budgets for point in self.points], dtype=np.float64)
            value = np.array([point.value for point in self.points])
            if worth == -math.inf and (direction := _violated(use)) is not None:
                excess = float(direction @ (self.cheapest(direction).use - budgets))
                if excess > ROUNDING * float(direction @ np.abs(use).max(axis=0)):
                    return Dual(direction, -math.inf)
            else:
                prices, least = (_slope if len(budgets) == 1 else _master)(use, value)
                if dual.bound - least <= slack:
                    break
                self.evaluate(prices)
            if len(self.points) == known:
                break
        return self.best(budgets)

    def mixture(self, budgets: IntArray) -> list[Point]:
        """The points of the mixture within the budgets that is worth most; none without one.

        Args:
            budgets: [K].
        """
        use = np.array([point.use - budgets for point in self.points], dtype=np.float64)
        value = np.array([point.value for point in self.points])
        result = linprog(
            (value.max() - value) / max(float(np.ptp(value)), np.finfo(float).tiny),
            A_ub=(use / np.maximum(np.abs(use).max(axis=0), 1.0)).T,
            b_ub=np.zeros(len(budgets)),
            A_eq=np.ones((1, len(use))),
            b_eq=np.ones(1),
        )
        shares = np.zeros(len(use)) if result.x is None else result.x
        return [point for point, share in zip(self.points, shares, strict=True) if share > _SHARE]


def _slope(use: FloatArray, value: FloatArray) -> tuple[FloatArray, float]:
    """Slope [1] and height of the upper hull of (use, value) at use 0: `_master` for one budget."""
    inside, outside = use[:, 0] <= 0, use[:, 0] > 0
    run = use[outside, 0] - use[inside, 0, None]
    rise = value[outside] - value[inside, None]
    crossing = value[inside, None] - use[inside, 0, None] * rise / run
    i = int(crossing.max(axis=1).argmax())
    # A point that uses all of the budget crosses there at every slope, and none may lie above.
    return np.array([max(0.0, float((rise[i] / run[i]).max()))]), float(crossing[i].max())


def _master(use: FloatArray, value: FloatArray) -> tuple[FloatArray, float]:
    """Prices [K] that minimise max_i value_i - prices . use_i, where some mixture of use is <= 0.

    And that minimum, a lower bound of the dual.
    """
    scale = np.maximum(np.abs(use).max(axis=0), 1.0)
    height = max(float(np.ptp(value)), np.finfo(float).tiny)
    count, budgets = use.shape
    result = linprog(
        np.eye(budgets + 1)[0],
        A_ub=np.hstack([-np.ones((count, 1)), -use / scale]),
        b_ub=(value.max() - value) / height,
        bounds=[(None, None)] + [(0, None)] * budgets,
    )
    if result.x is None:
        return np.zeros(budgets), -math.inf
    prices = np.maximum(result.x[1:], 0.0) * height / scale
    return prices, float((value - use @ prices).max())


def _violated(use: FloatArray) -> FloatArray | None:
    """Weights [K] >= 0 under which every mixture of use is above 0; None if some is not."""
    scale = np.maximum(np.abs(use).max(axis=0), 1.0)
    count, budgets = use.shape
    result = linprog(
        -np.eye(budgets + 1)[0],
        A_ub=np.hstack([np.ones((count, 1)), -use / scale]),
        b_ub=np.zeros(count),
        A_eq=np.array([[0.0] + [1.0] * budgets]),
        b_eq=np.ones(1),
        bounds=[(None, None)] + [(0, None)] * budgets,
    )
    if result.x is None or result.x[0] <= ROUNDING:
        return None
    return np.asarray(np.maximum(result.x[1:], 0.0) / scale, dtype=np.float64)
