"""A reduced model as a mixed-integer program over its local polytope, for HiGHS.

    maximise    sum_f sum_e value_f(e) z_f(e)
    subject to  sum_o x_v(o) = 1                              x_v(o) in {0, 1}
                sum_{e with option o of v} z_f(e) = x_v(o)    z_f(e) >= 0
                sum_f sum_e cost_f,k(e) z_f(e) <= budget_k

with e running over the allowed combinations of factor f.  Integral x force integral z, so the
program is exact for factors of any number of choices.  Budgets are met exactly: what HiGHS returns
is counted in integers, and what is over a budget by less than its tolerance is cut off by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from fxprune.solver.model import Model, Point
from fxprune.solver.problem import FloatArray, IntArray
from fxprune.solver.silence import without_lines

# HiGHS works to 1e-6 absolute; objective and budget rows are scaled to this size.
_SIZE = 1e4
_RETRIES = 20
_INFEASIBLE = 2  # scipy's code


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What was found, and a bound on every value within the budgets."""

    point: Point | None
    bound: float


@dataclass(frozen=True, slots=True, eq=False)
class _Program:
    """Minimise loss . y subject to matrix y = right, cost y <= room, 0 <= y <= most.

    Columns: x, all options of all choices, then z, all entries of tables over several choices.
    `loss` is what an entry's value lacks to its table's best (they add up to `best`), `cost` [K, n]
    is what its cost exceeds its table's least by (they add up to `least` [K]).  `spread` is the
    largest loss possible.  `first` [choices + 1] is where the options of each choice begin.
    """

    loss: FloatArray
    cost: IntArray
    most: FloatArray
    matrix: csr_array
    right: FloatArray
    first: IntArray
    best: float
    least: IntArray
    spread: float


def maximum_within(model: Model, budgets: IntArray, gap: float, nodes: int) -> Answer:
    """The best assignment of the model within the budgets, by branch and cut.

    Args:
        model: already reduced; HiGHS does not survive hundreds of thousands of entries.
        budgets: [K], for the model's use including its base cost.
        gap: absolute, at which HiGHS may stop.
        nodes: of the search tree, at which HiGHS gives up.  A count and no time, so that the
            answer does not depend on the machine.
    """
    program = _emit(model)
    if program is None:
        return Answer(None, -math.inf)
    room = budgets - model.base_cost - program.least
    if (room < 0).any():
        return Answer(None, -math.inf)
    over: list[IntArray] = []
    while True:
        option, below = _run(program, room, over, gap, nodes)
        bound = below + model.base_value
        if option is None:
            return Answer(None, bound)
        point = model.point(option)
        if (point.use <= budgets).all():
            return Answer(point, bound)
        if len(over) == _RETRIES:
            return Answer(None, bound)
        over.append(program.first[:-1] + option)


def _run(
    program: _Program, room: IntArray, over: list[IntArray], gap: float, nodes: int
) -> tuple[IntArray | None, float]:
    """The options found, if any, and the bound that HiGHS vouches for."""
    unit = program.spread / _SIZE
    constraints = [LinearConstraint(program.matrix, program.right, program.right)]
    for cost, left in zip(program.cost, room, strict=True):
        step = max(1, int(np.gcd.reduce(cost)))
        size = max(1.0, int(cost.max()) / step / _SIZE)
        row = csr_array(cost[None] / (step * size))
        constraints.append(LinearConstraint(row, -np.inf, int(left) // step / size))
    for columns in over:
        row = csr_array(
            (np.ones(len(columns)), (np.zeros(len(columns)), columns)), shape=(1, len(program.loss))
        )
        constraints.append(LinearConstraint(row, -np.inf, len(columns) - 1.0))
    with without_lines(b"HighsMipSolverData::"):
        result = milp(
            program.loss / unit,
            # Integral x would do; with z integral too, HiGHS takes two thirds of the time.
            integrality=np.ones(len(program.loss), dtype=np.int64),
            bounds=Bounds(0.0, program.most),
            constraints=constraints,
            options={"mip_rel_gap": gap / program.spread, "node_limit": nodes},
        )
    if result.status == _INFEASIBLE:
        return None, -math.inf
    below = result.mip_dual_bound
    bound = math.inf if below is None else program.best - float(below) * unit
    if result.x is None:
        return None, bound
    pairs = zip(program.first[:-1], program.first[1:], strict=True)
    option = [int(result.x[start:stop].argmax()) if stop > start else 0 for start, stop in pairs]
    return np.array(option, dtype=np.int64), bound


def _emit(model: Model) -> _Program | None:
    """The program, or None if some table forbids everything."""
    first = np.concatenate([[0], np.cumsum(model.sizes)]).astype(np.int64)
    budgets, options, choices = len(model.base_cost), int(first[-1]), len(model.sizes)
    loss, cost = [np.zeros(options)], [np.zeros((budgets, options), dtype=np.int64)]
    most = np.ones(options)
    # One row per choice: it takes one option.  Then the marginals of every larger table.
    rows = [np.repeat(np.arange(choices), model.sizes)]
    columns = [np.arange(options)]
    entries = [np.ones(options)]
    height, width = choices, options
    best, least, spread = 0.0, np.zeros(budgets, dtype=np.int64), 0.0
    for table in model.tables:
        allowed = np.isfinite(table.value)
        if not allowed.any():
            return None
        place = np.nonzero(allowed) if table.rows is None else tuple(table.rows[allowed].T)
        value, price = table.value[allowed], table.cost[:, allowed]
        best += float(value.max())
        least += price.min(axis=1)
        spread += float(np.ptp(value))
        value, price = value.max() - value, price - price.min(axis=1)[:, None]
        if len(table.scope) == 1:
            start, stop = first[table.scope[0]], first[table.scope[0] + 1]
            most[start:stop] = allowed
            loss[0][start:stop][place] += value
            cost[0][:, start:stop][:, place[0]] += price
            continue
        loss.append(value)
        cost.append(price)
        for v, option in zip(table.scope, place, strict=True):
            size = model.sizes[v]
            rows += [height + option, height + np.arange(size)]
            columns += [width + np.arange(len(value)), first[v] + np.arange(size)]
            entries += [np.ones(len(value)), -np.ones(size)]
            height += size
        width += len(value)
    matrix = csr_array(
        (np.concatenate(entries), (np.concatenate(rows), np.concatenate(columns))),
        shape=(height, width),
    )
    return _Program(
        loss=np.concatenate(loss),
        cost=np.concatenate(cost, axis=1),
        most=np.concatenate([most, np.ones(width - options)]),
        matrix=matrix,
        right=(np.arange(height) < choices).astype(np.float64),
        first=first,
        best=best,
        least=least,
        spread=max(spread, np.finfo(float).tiny),
    )
