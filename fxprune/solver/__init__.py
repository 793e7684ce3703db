"""A certified solver for choices with tables of value and cost under budgets.

Three stages (see `dual`, `close`): an exact Lagrangian bound by max-plus variable elimination, the
removal of every option and combination that cannot belong to a better answer, and branch and cut
on the few that remain.  The answer comes with a bound on what any other answer could be worth.
"""

from fxprune.solver.blackbox import Search, Trial, search
from fxprune.solver.front import Solver, front, solve
from fxprune.solver.problem import (
    Choice,
    Factor,
    Problem,
    Solution,
    SparseFactor,
    Status,
    measure,
    sum_factor,
)

__all__ = [
    "Choice",
    "Factor",
    "Problem",
    "Search",
    "Solution",
    "Solver",
    "SparseFactor",
    "Status",
    "Trial",
    "front",
    "measure",
    "search",
    "solve",
    "sum_factor",
]
