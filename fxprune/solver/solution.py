"""The answer to an allocation problem, and how it is counted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from fxprune.solver.problem import Problem, SparseFactor, every

Status: TypeAlias = Literal["optimal", "feasible", "infeasible", "unknown"]


@dataclass(frozen=True, slots=True)
class Solution:
    """The answer with its certificate.

    Attributes:
        status: "optimal" (gap reached), "feasible" (gap not reached), "infeasible" (proved), or
            "unknown" (no feasible answer found, none excluded; never with a single budget).
        assignment: the option of every choice; empty without a feasible answer.
        value: of the assignment; -inf without one.
        bound: no assignment within the budgets is worth more.
        gap: (bound - value) / max(|bound|, |value|).
        use: per budget, including the fixed use.
        prices: per budget, what one more unit of it would be worth at the bound.  If budgets
            that can be met one by one cannot be met together: weights under which even the least
            weighted use exceeds the weighted budgets, or zeros if only the search proved it.
        floor: per budget, the least use that any allowed assignment can reach, the other budgets
            ignored.  Empty if every combination is forbidden, whatever the budgets.
    """

    status: Status
    assignment: Mapping[str, int]
    value: float
    bound: float
    gap: float
    use: tuple[int, ...]
    prices: tuple[float, ...]
    floor: tuple[int, ...]

    def among_more(self, best: Solution, gap: float) -> Solution:
        """The same answer, certified among more assignments than it was looked for in.

        Args:
            best: the answer found among all of these.
            gap: up to which this one is called optimal.
        """
        bound = max(best.bound, self.value)
        distance = distance_of(self.value, bound)
        status: Status = "optimal" if distance <= gap else "feasible"
        return replace(
            self, status=status, bound=bound, gap=distance, prices=best.prices, floor=best.floor
        )


def distance_of(value: float, bound: float) -> float:
    """How far a value is from a bound, relative."""
    return (bound - value) / max(abs(bound), abs(value)) if bound > value else 0.0


def measure(problem: Problem, assignment: Mapping[str, int]) -> tuple[float, tuple[int, ...]]:
    """Value and use per budget of an assignment; the value is -inf if a combination is forbidden.

    The value is rounded once, so that it does not depend on the order of the factors.
    """
    values: list[float] = []
    use = list(problem.fixed)
    for factor in problem.factors:
        place: tuple[int, ...] = tuple(assignment[name] for name in factor.scope)
        if isinstance(factor, SparseFactor):
            found = np.flatnonzero((factor.rows == np.array(place)).all(axis=1))
            if not len(found):
                return -math.inf, tuple(use)
            place = (int(found[0]),)
        values.append(float(factor.value[place]))
        use = [u + int(c) for u, c in zip(use, factor.cost[every(place)], strict=True)]
    return math.fsum(values), tuple(use)
