"""Max-plus variable elimination over a model: the exact maximum, who attains it, max-marginals.

The order is greedy: always the choice whose elimination looks at the fewest combinations
(min-weight, which on series-parallel graphs such as those of residual networks attains the
treewidth).  One plan serves any numbers in the tables, such as values at changing prices.

Bertele and Brioschi, Nonserial Dynamic Programming, 1972; Dechter, Bucket elimination, 1999.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fxprune.errors import InputError
from fxprune.solver.listed import ListedStep, ranges, row_number
from fxprune.solver.model import Model
from fxprune.solver.problem import FloatArray, IntArray
from fxprune.solver.steps import DenseStep, Form, Step

# More combinations in one step than this, and the problem is refused. Dense steps look at them a
# slice at a time, 0.1 s per pass; listed ones write them all down, several numbers each.
_WIDEST = 200_000_000
_WIDEST_LISTED = 4_000_000


class TooEntangled(InputError):  # noqa: N818 - a property of the problem
    """The choices are so entangled that even the best step of elimination is too large."""


@dataclass(frozen=True, slots=True, eq=False)
class Sweep:
    """One pass upward: every table (the model's, then the steps' messages) and the maximum.

    Attributes:
        plan: whose steps were taken.
        tables: table i < n is the model's; step i made table n + i.
        total: the largest total; -inf if every combination is forbidden.
    """

    plan: Plan
    tables: tuple[FloatArray, ...]
    total: float

    def best(self) -> IntArray:
        """The option [choices] of every choice at the maximum, which must be finite."""
        option: IntArray = np.zeros((1, len(self.plan.model.options)), dtype=np.int64)
        for step in reversed(self.plan.steps):
            option[0, step.choice] = step.column(self.tables, option)[0].argmax()
        return option.ravel()

    def near(self, window: float, most: int) -> tuple[IntArray, bool]:
        """The assignments whose total is at most `window` below the maximum (finite).

        Assignments are completed choice by choice, each knowing what its best completion lacks to
        the maximum, so that none is begun in vain.

        Returns:
            At most `most` assignments [r, choices], and whether these are all.  If not, they were
            found by always keeping those that lack least.
        """
        model = self.plan.model
        option = np.zeros((1, len(model.options)), dtype=np.int64)
        lack, complete = np.zeros(1), True
        for step in reversed(self.plan.steps):
            place = row_number(dict(enumerate(option.T)), step.out.scope, model.sizes)
            _, first, alike = np.unique(place, return_index=True, return_inverse=True)
            total = step.column(self.tables, option[first])
            more = total.max(axis=1)[:, None] - total
            row, picked = _pairs((more <= window) & np.isfinite(more), alike)
            lack = lack[row] + more[alike[row], picked]
            stays = np.flatnonzero(lack <= window)
            if len(stays) > most:
                stays = stays[np.sort(np.argpartition(lack[stays], most)[:most])]
                complete = False
            option, lack = option[row[stays]], lack[stays]
            option[:, step.choice] = picked[stays]
        return option, complete

    def marginals(self) -> FloatArray:
        """What the maximum (finite) becomes for every entry imposed, [N]: the max-marginals."""
        steps, start = self.plan.steps, len(self.plan.model.tables)
        contexts: dict[int, FloatArray] = {}
        for i in reversed(range(len(steps))):
            if not steps[i].out.scope:
                contexts[start + i] = np.asarray(self.total - self.tables[start + i])
            contexts |= steps[i].backward(self.tables, contexts.pop(start + i))
        own = [(contexts[i] + table).ravel() for i, table in enumerate(self.tables[:start])]
        return np.concatenate(own or [np.zeros(0)])


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The steps of an elimination, in order."""

    model: Model
    steps: tuple[Step, ...]

    def sweep(self, weights: FloatArray) -> Sweep:
        """Maximises the total of `weights` [N], flat as the model's numbers, over assignments."""
        tables = self.model.split(weights)
        total = 0.0
        for step in self.steps:
            tables.append(step.forward(tables))
            if not step.out.scope:
                total += float(tables[-1])
        return Sweep(self, tuple(tables), total)


def plan_of(model: Model) -> Plan:
    """An elimination order and its steps.

    Raises:
        TooEntangled: even the best step found is too large.
    """
    sizes = model.sizes
    forms = [Form(table.scope, table.shape, table.rows) for table in model.tables]
    near: dict[int, set[int]] = {}  # choice -> live tables
    for number, form in enumerate(forms):
        for v in form.scope:
            near.setdefault(v, set()).add(number)
    work = {v: _combinations((forms[i] for i in near[v]), sizes) for v in near}
    steps: list[Step] = []
    while near:
        choice = min(near, key=lambda v: (work[v], v))
        listed = any(forms[i].rows is not None for i in near[choice])
        if work.pop(choice) > (_WIDEST_LISTED if listed else _WIDEST):
            raise TooEntangled(
                f"The choices of this allocation problem are too entangled: at best, one of them "
                f"still meets {_combinations((forms[i] for i in near[choice]), sizes):.1e} "
                "combinations of the others",
                "This is the elimination order of the solver",
                "Give the choices fewer options, or replace a wide factor by derived choices",
            )
        inputs = {number: forms[number] for number in sorted(near.pop(choice))}
        scope = tuple(sorted({v for form in inputs.values() for v in form.scope} - {choice}))
        step: Step
        if listed:
            step = ListedStep.make(choice, sizes[choice], inputs, scope)
        else:
            scopes = tuple(form.scope for form in inputs.values())
            out = Form(scope, tuple(sizes[v] for v in scope))
            step = DenseStep(choice, tuple(inputs), scopes, sizes[choice], out)
        steps.append(step)
        for v in scope:
            near[v] = near[v].difference(inputs) | {len(forms)}
        forms.append(step.out)
        for v in scope:
            work[v] = _combinations((forms[i] for i in near[v]), sizes)
    return Plan(model, tuple(steps))


def _combinations(forms: Iterable[Form], sizes: tuple[int, ...]) -> int:
    """How many combinations a step over these tables looks at, at most."""
    forms = list(forms)
    around = {v for form in forms for v in form.scope}
    dense = 1
    for v in around:
        dense *= sizes[v]
    fewest = dense
    for form in forms:
        if form.rows is not None:
            listed = form.count
            for v in around.difference(form.scope):
                listed *= sizes[v]
            fewest = min(fewest, listed)
    return fewest


def _pairs(allowed: npt.NDArray[np.bool_], group: IntArray) -> tuple[IntArray, IntArray]:
    """All (i, o) with allowed[group[i], o]."""
    option = np.nonzero(allowed)[1]
    count = allowed.sum(axis=1)
    start = np.cumsum(count) - count
    i, j = ranges(start[group], (start + count)[group])
    return i, option[j]
