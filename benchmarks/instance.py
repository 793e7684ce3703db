"""An allocation problem layer by layer, for methods that look at one end of a layer at a time.

The solver needs no more than tables over choices.  Its rivals also ask which choices a layer reads
and which it writes: HALP charges a layer to what it writes, SMCP to what it reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fxprune.solver import Choice, Factor, Problem, SparseFactor

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Term:
    """What one layer is worth and costs.

    Attributes:
        name: of the layer.
        scope: the choices that it depends on.
        value: [n_1, ..., n_m], over the options of the scope.
        cost: [K, n_1, ..., n_m].
        reads: those choices of the scope that are the width of what it reads.
        writes: those that are the width of what it writes; both, if it works channel by channel.
    """

    name: str
    scope: tuple[str, ...]
    value: FloatArray
    cost: IntArray
    reads: frozenset[str]
    writes: frozenset[str]

    def place(self, options: Mapping[str, int]) -> tuple[int, ...]:
        """The index of the tables at the given options."""
        return tuple(options[name] for name in self.scope)

    def line(self, options: Mapping[str, int], group: str) -> tuple[slice | int, ...]:
        """The index of all options of one group of the scope, the others as given."""
        return tuple(slice(None) if name == group else options[name] for name in self.scope)


@dataclass(frozen=True, eq=False)
class Instance:
    """The widths to choose from, and what all layers are worth and cost.

    Attributes:
        ladders: the widths of every choice, ascending; concatenations are choices, too.
        terms: the layers.
        ties: of every concatenation (last of its scope) to its parts, parts before their sums.
        fixed: [K], what is spent whatever is chosen.
    """

    ladders: Mapping[str, IntArray]
    terms: tuple[Term, ...]
    ties: tuple[SparseFactor, ...]
    fixed: tuple[int, ...]

    def problem(self, budgets: tuple[int, ...]) -> Problem:
        """For the solver, with the first of the costs, as many as there are budgets."""
        count = len(budgets)
        choices = tuple(Choice(name, len(widths)) for name, widths in self.ladders.items())
        terms = [Factor(t.name, t.scope, t.cost[:count], t.value) for t in self.terms]
        ties = [
            replace(tie, cost=np.zeros((count, len(tie.value)), dtype=np.int64))
            for tie in self.ties
        ]
        return Problem(choices, (*terms, *ties), budgets, self.fixed[:count])

    def dense(self) -> dict[str, int]:
        """The last option of everything."""
        return {name: len(widths) - 1 for name, widths in self.ladders.items()}

    def groups(self) -> list[str]:
        """The groups that are chosen, not summed."""
        totals = {tie.scope[-1] for tie in self.ties}
        return [name for name in self.ladders if name not in totals]

    def complete(self, options: Mapping[str, int]) -> dict[str, int]:
        """The options with those of all concatenations."""
        full = dict(options)
        for tie, totals in zip(self.ties, self._totals, strict=True):
            *parts, total = tie.scope
            full[total] = totals[tuple(full[part] for part in parts)]
        return full

    def count(self, options: Mapping[str, int]) -> tuple[float, int]:
        """Value and latency, the first of the costs, of complete options."""
        value, latency = 0.0, self.fixed[0]
        for term in self.terms:
            place = term.place(options)
            value += float(term.value[place])
            latency += int(term.cost[(0, *place)])
        return value, latency

    @cached_property
    def around(self) -> Mapping[str, tuple[Term, ...]]:
        """The terms that look at each choice."""
        found: dict[str, list[Term]] = {name: [] for name in self.ladders}
        for term in self.terms:
            for name in term.scope:
                found[name].append(term)
        return {name: tuple(terms) for name, terms in found.items()}

    @cached_property
    def _totals(self) -> list[dict[tuple[int, ...], int]]:
        return [{tuple(row[:-1]): row[-1] for row in tie.rows.tolist()} for tie in self.ties]
