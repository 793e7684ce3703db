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

from fxprune.errors import InputError
from fxprune.solver.listed import ListedStep
from fxprune.solver.model import Model
from fxprune.solver.problem import FloatArray, IntArray
from fxprune.solver.steps import DenseStep, Form, Step

# More combinations in one step than this, and the problem is refused: 0.1 s and more per pass.
_WIDEST = 200_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Steps in order.  Tables 0 to n-1 are the model's; step i makes table n + i."""

    model: Model
    steps: tuple[Step, ...]

    def maximise(self, weights: FloatArray) -> tuple[float, IntArray]:
        """The largest total of `weights` [N] (flat, as the model's) and the options attaining it.

        The options mean nothing if the total is -inf: then every combination is forbidden.
        """
        tables, total = self._upward(weights)
        option = np.zeros(len(self.model.options), dtype=np.int64)
        if np.isfinite(total):
            for step in reversed(self.steps):
                option[step.choice] = step.decode(tables, option)
        return total, option

    def marginals(self, weights: FloatArray) -> tuple[float, FloatArray]:
        """The largest total (which must be finite), and what it becomes for every entry imposed.

        The latter is [N], flat as the model's numbers: the max-marginals.
        """
        tables, total = self._upward(weights)
        start = len(self.model.tables)
        contexts: dict[int, FloatArray] = {}
        for i in reversed(range(len(self.steps))):
            step = self.steps[i]
            if not step.out.scope:
                contexts[start + i] = np.asarray(total - tables[start + i])
            contexts |= step.backward(tables, contexts.pop(start + i))
        flat = [(contexts[i] + table).ravel() for i, table in enumerate(tables[:start])]
        return total, np.concatenate(flat or [np.zeros(0)])

    def _upward(self, weights: FloatArray) -> tuple[list[FloatArray], float]:
        tables = self.model.split(weights)
        total = 0.0
        for step in self.steps:
            tables.append(step.forward(tables))
            if not step.out.scope:
                total += float(tables[-1])
        return tables, total


def plan_of(model: Model) -> Plan:
    """An elimination order and its steps.

    Raises:
        InputError: the choices are so entangled that even the best step found is too large.
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
        if work.pop(choice) > _WIDEST:
            raise InputError(
                f"The choices of this allocation problem are too entangled: at best, one of them "
                f"still meets {_combinations((forms[i] for i in near[choice]), sizes):.1e} "
                "combinations of the others",
                "This is the elimination order of the solver",
                "Give the choices fewer options, or replace a wide factor by derived choices",
            )
        inputs = {number: forms[number] for number in sorted(near.pop(choice))}
        scope = tuple(sorted({v for form in inputs.values() for v in form.scope} - {choice}))
        step: Step
        if any(form.rows is not None for form in inputs.values()):
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
