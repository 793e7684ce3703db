"""Allocation: which widths and blocks are worth most within all budgets, with a certificate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fxprune.axes import Atom
from fxprune.passes.allocation.channels import Choose, ordered
from fxprune.passes.allocation.forest import along_forest
from fxprune.passes.allocation.forms import NO_FORMS, Forms
from fxprune.passes.allocation.ladders import Ladder
from fxprune.passes.allocation.nested import lies_within, options_between
from fxprune.passes.allocation.values import value_tables
from fxprune.passes.allocation.widths import (
    AlikeChoices,
    Choices,
    SeparateChoices,
    Tables,
    factors,
)
from fxprune.passes.blocks import Block
from fxprune.passes.importance import Importance
from fxprune.passes.infer import Analysis
from fxprune.passes.merges import Merge
from fxprune.plan import Plan
from fxprune.solver import Problem, Solution, Solver, TooEntangled, front, measure

CostTables = Callable[[Choices], Tables]

# Relative. On networks of all kinds it takes about as long to get there as to ten times the gap.
GAP = 1e-4


@dataclass(frozen=True)
class Allocation:
    """One answer of the solver.

    Attributes:
        sizes: how many positions of every group stay; none if no choice keeps the budgets.
        dropped: residual blocks that go.
        merged: spans that become one layer each.
        costs: what the tables say it costs, per budget.
        solution: with its certificate.
    """

    sizes: Mapping[Atom, int]
    dropped: tuple[Block, ...]
    merged: tuple[Merge, ...]
    costs: tuple[float, ...]
    solution: Solution

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of what is dropped or merged."""
        return (*(block.name for block in self.dropped), *(merge.name for merge in self.merged))

    @property
    def gone(self) -> frozenset[str]:
        """Nodes of the captured model that go with the dropped blocks."""
        return frozenset().union(*(block.gone for block in self.dropped))


@dataclass(frozen=True)
class Allocator:
    """One allocation problem, which is solved for many limits while measurements correct it."""

    choices: Choices
    problem: Problem
    costs: tuple[Tables, ...]
    units: tuple[float, ...]
    solver: Solver

    @staticmethod
    def build(
        analysis: Analysis,
        ladders: Mapping[Atom, Ladder],
        importance: Importance,
        costs: Sequence[CostTables],
        units: Sequence[float],
        forms: Forms = NO_FORMS,
    ) -> Allocator:
        """Set the problem up, as exactly as it can be solved.

        Where concatenations entangle the widths too much, first what blocks are worth depends less
        exactly on them, then costs do; in the end, only a forest of interactions is left. The
        certificate is about the tables that were solved; the closed loop measures what they miss.

        Args:
            costs: tables of each budget's cost.
            units: what each cost is rounded up to, since the solver counts in whole numbers.
            forms: the blocks that may be dropped and the spans that may be merged.
        """
        for kind in (Choices, AlikeChoices, SeparateChoices):
            choices = kind(ladders, forms)
            value = value_tables(analysis, importance, choices)
            tables = tuple(cost(choices) for cost in costs)
            try:
                return Allocator.of(choices, value, tables, units)
            except TooEntangled:
                continue
        value, *reduced = along_forest((value, *tables), choices.sums)
        return Allocator.of(choices, value, reduced, units)

    @staticmethod
    def of(
        choices: Choices, value: Tables, costs: Sequence[Tables], units: Sequence[float]
    ) -> Allocator:
        """The problem of these tables.

        Raises:
            TooEntangled: the solver cannot eliminate its choices.
        """
        found, fixed = factors(choices, value, costs, units)
        # More than any network needs: the solver is built before limits are known.
        roomy = (math.ceil(2 * _dense(t) / unit) for t, unit in zip(costs, units, strict=True))
        problem = Problem(choices.choices(), found, tuple(roomy), fixed)
        return Allocator(choices, problem, tuple(costs), tuple(units), Solver(problem, gap=GAP))

    def solve(self, limits: Sequence[float]) -> Allocation:
        """The best widths with every cost within its limit, as the tables tell costs."""
        return self.read(self.solver.at(self._whole(limits)))

    def between(
        self, limits: Sequence[float], least: Allocation | None, most: Allocation | None
    ) -> Allocation | None:
        """`solve` among the networks that have all of one and nothing that another one lacks.

        Its certificate is about all networks, not only these. None if none of these keeps limits.

        Args:
            least: no width falls below what this one has, and none of its blocks goes.
            most: no width rises above what this one has, and none of its dropped blocks stays.
        """
        options = (None if a is None else a.solution.assignment for a in (least, most))
        allowed, budgets = options_between(self.choices, *options), self._whole(limits)
        found = Solver(self.problem, gap=GAP, allowed=allowed).at(budgets)
        if not found.assignment:
            return None
        return self.read(found.among_more(self.solver.at(budgets), GAP))

    def lies_within(self, one: Allocation, other: Allocation) -> bool:
        """Whether `one` has nothing that `other` lacks, and merges the same."""
        return lies_within(self.choices, one.solution.assignment, other.solution.assignment)

    def costs_of(self, allocation: Allocation) -> tuple[float, ...]:
        """What these tables say of a network, per budget."""
        return tuple(tables.at(allocation.solution.assignment) for tables in self.costs)

    def within(self, limits: Sequence[float]) -> Problem:
        """The problem with limits on its first budgets, and none that binds on the others."""
        return replace(
            self.problem, budgets=(*self._whole(limits), *self.problem.budgets[len(limits) :])
        )

    def front(self, limits: Sequence[float]) -> list[Allocation]:
        """`solve` for many limits of the only budget at once."""
        (unit,) = self.units
        solutions = front(self.problem, [math.floor(limit / unit) for limit in limits], gap=GAP)
        return [self.read(solution) for solution in solutions]

    def floor(self) -> float:
        """The least that the only budget can come to, by its table."""
        (unit,) = self.units
        (floor,) = self.solver.at(self.problem.budgets).floor
        return floor * unit

    def dense_costs(self) -> tuple[float, ...]:
        """What the tables say of the dense network, per budget."""
        return tuple(map(_dense, self.costs))

    def smallest(self) -> Allocation:
        """The best at no more than what every group at its smallest width costs, without blocks."""
        narrowest = dict.fromkeys(self.choices.domains, 0) | self.choices.forms.barest()
        _, use = measure(self.problem, narrowest)
        return self.read(self.solver.at(use))

    def _whole(self, limits: Sequence[float]) -> tuple[int, ...]:
        """The limits of the first budgets in the solver's units."""
        units = self.units[: len(limits)]
        return tuple(math.floor(limit / unit) for limit, unit in zip(limits, units, strict=True))

    def read(self, solution: Solution) -> Allocation:
        """What the solver's answer says of groups and blocks."""
        options = solution.assignment
        if not options:
            return Allocation({}, (), (), (), solution)
        sizes = {
            atom: ladder.widths[options[ladder.group.name]]
            for atom, ladder in self.choices.ladders.items()
        }
        parts = self.choices.forms.of_options(options)
        dropped = tuple(part for part in parts if isinstance(part, Block))
        merged = tuple(part for part in parts if isinstance(part, Merge))
        costs = tuple(tables.at(options) for tables in self.costs)
        return Allocation(sizes, dropped, merged, costs, solution)


def plan_of(
    sizes: Mapping[Atom, int],
    analysis: Analysis,
    importance: Importance,
    meta: Mapping[str, object],
    dropped: Sequence[Block] = (),
    merged: Sequence[Merge] = (),
    choose: Choose = ordered,
) -> Plan:
    """Keep so many positions of every group, all blocks but the dropped ones, and merge spans.

    Args:
        choose: says which positions.
    """
    gone = frozenset().union(*(block.tensors for block in dropped))
    kept = choose(analysis, importance, sizes, gone)
    return Plan(
        kept={group.name: tuple(kept[group.atom].tolist()) for group in analysis.groups},
        sizes={group.name: group.size for group in analysis.groups},
        meta=dict(meta),
        dropped=tuple(block.addition for block in dropped),
        merged=tuple(merge.span.nodes for merge in merged),
        orders=analysis.orders,
    )


def _dense(tables: Tables) -> float:
    """What the dense network costs: every choice at its last option."""
    return tables.at(dict.fromkeys(tables.domains, -1))
