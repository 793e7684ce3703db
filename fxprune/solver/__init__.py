"""A certified solver for choices with tables of value and cost under budgets.

 1. `dual`: an exact Lagrangian bound, by max-plus variable elimination (`elimination`, `steps`,
    `listed`) and cutting planes in the prices of the budgets.
 2. `close`: the assignments that the prices favour are tried; then every option and combination
    that cannot belong to a better answer is dropped, and
 3. `branch`: what remains is solved in parts, by dominance among partial assignments (`within`),
    after a look at what is one or two changes away from known answers (`nearby`).

The answer comes with a bound on what any other could be worth.  The bound rests on float64 sums
(relative rounding errors far below 1e-11) and on nothing else; HiGHS only suggests prices and where
to split.  Budgets are checked in integers.
"""

from fxprune.solver.blackbox import Search, Trial, search
from fxprune.solver.elimination import TooEntangled
from fxprune.solver.front import Solver, front, solve
from fxprune.solver.problem import Choice, Factor, Problem, SparseFactor
from fxprune.solver.solution import Solution, Status, measure
from fxprune.solver.sums import sum_factor

__all__ = [
    "Choice",
    "Factor",
    "Problem",
    "Search",
    "Solution",
    "Solver",
    "SparseFactor",
    "Status",
    "TooEntangled",
    "Trial",
    "front",
    "measure",
    "search",
    "solve",
    "sum_factor",
]
