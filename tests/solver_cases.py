"""Small allocation problems and independent ways to solve them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from fxprune.solver import Choice, Factor, Problem, SparseFactor

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Grid:
    """Value [n_1, ..., n_m] and use [K, n_1, ..., n_m] of every assignment."""

    value: FloatArray
    use: IntArray

    @property
    def allowed(self) -> npt.NDArray[np.bool_]:
        return np.isfinite(self.value)

    def best(self, budgets: Sequence[int]) -> float:
        """The largest value within the budgets; -inf if there is none."""
        limits = np.array(budgets).reshape(-1, *[1] * self.value.ndim)
        return float(self.value[(self.use <= limits).all(axis=0)].max(initial=-math.inf))

    def floor(self) -> tuple[int, ...]:
        """The least use per budget of the allowed assignments; () if there are none."""
        if not self.allowed.any():
            return ()
        return tuple(int(use[self.allowed].min()) for use in self.use)


def grid(problem: Problem) -> Grid:
    """Every assignment of a small problem, tried."""
    names = [choice.name for choice in problem.choices]
    shape = tuple(choice.options for choice in problem.choices)
    places = np.indices(shape)
    value = np.zeros(shape)
    use = np.stack([np.full(shape, fixed, dtype=np.int64) for fixed in problem.fixed] or [])
    for factor in problem.factors:
        index = tuple(places[names.index(name)] for name in factor.scope)
        if isinstance(factor, SparseFactor):
            sizes = tuple(shape[names.index(name)] for name in factor.scope)
            dense_value = np.full(sizes, -math.inf)
            dense_cost = np.zeros((len(use), *sizes), dtype=np.int64)
            dense_value[tuple(factor.rows.T)] = factor.value
            dense_cost[(slice(None), *factor.rows.T)] = factor.cost
        else:
            dense_value, dense_cost = factor.value, factor.cost
        value += dense_value[index]
        for k in range(len(use)):
            use[k] += dense_cost[k][index]
    return Grid(value, use)


def random_problem(rng: np.random.Generator, budgets: int, choices: int = 5) -> Problem:
    """Up to so many choices of up to four options, and factors of every form."""
    count = int(rng.integers(1, choices + 1))
    options = rng.integers(1, 5, count)
    factors: list[Factor | SparseFactor] = []
    for number in range(int(rng.integers(0, 8))):
        arity = int(min(count, rng.choice([0, 1, 2, 2, 2, 3, 4])))
        scope = rng.choice(count, arity, replace=rng.random() < 0.1)
        factors.append(_random_factor(rng, f"f{number}", scope, options, budgets))
    names = tuple(Choice(f"c{i}", int(size)) for i, size in enumerate(options))
    fixed = tuple(int(use) for use in rng.integers(0, 5, budgets))
    problem = Problem(names, tuple(factors), (0,) * budgets, fixed)
    return replace(problem, budgets=_random_budgets(rng, problem))


def _random_factor(
    rng: np.random.Generator, name: str, scope: IntArray, options: IntArray, budgets: int
) -> Factor | SparseFactor:
    shape = tuple(options[scope])
    names = tuple(f"c{i}" for i in scope)
    value = rng.normal(2.0, 3.0, shape)
    if rng.random() < 0.5:
        value = np.round(value)  # ties
    cost = rng.integers(0 if rng.random() < 0.8 else -5, 20, (budgets, *shape))
    if len(scope) and len(set(scope)) == len(scope) and rng.random() < 0.3:
        listed = rng.random(shape) < 0.5
        rows = rng.permutation(np.argwhere(listed))
        place = tuple(rows.T)
        return SparseFactor(name, names, rows, cost[(slice(None), *place)], value[place])
    if rng.random() < 0.3:
        value = np.where(rng.random(shape) < rng.choice([0.2, 0.9]), -math.inf, value)
    return Factor(name, names, cost, np.asarray(value))


def _random_budgets(rng: np.random.Generator, problem: Problem) -> tuple[int, ...]:
    tried = grid(problem)
    if not tried.allowed.any():
        return (10,) * len(problem.budgets)
    low = np.array([use[tried.allowed].min() for use in tried.use])
    high = np.array([use[tried.allowed].max() for use in tried.use])
    wanted = low + (high - low) * rng.random(len(low)) ** (1 / len(low))
    return tuple(int(w) - int(rng.random() < 0.05) for w in wanted)


def chain(rng: np.random.Generator, length: int, options: int, budgets: int = 1) -> Problem:
    """A chain of choices, value and cost growing with both neighbours; budgets at half of all."""
    names = [f"c{i}" for i in range(length)]
    factors = []
    total = np.zeros(budgets, dtype=np.int64)
    for left, right in pairwise(names):
        steps = rng.random((options, options))
        value = steps.cumsum(axis=0).cumsum(axis=1) ** 0.6
        work = rng.integers(1, 50, (budgets, options, options)).cumsum(axis=1).cumsum(axis=2)
        total += work[:, -1, -1]
        factors.append(Factor(f"{left}-{right}", (left, right), work, value))
    choices = tuple(Choice(name, options) for name in names)
    half = tuple(int(use) // 2 for use in total)
    return Problem(choices, tuple(factors), half, (0,) * budgets)


def by_highs(problem: Problem, gap: float) -> tuple[float, float]:
    """Value and bound from the whole problem as one linearised program, as MDP poses it.

    Products of one-hot vectors are replaced by one variable per combination (Sun et al., MDP, CVPR
    2025, where the program stays nonlinear); dense factors only.
    """
    offset = np.cumsum([0, *(choice.options for choice in problem.choices)])
    first = {c.name: int(o) for c, o in zip(problem.choices, offset, strict=False)}
    width = int(offset[-1])
    data: list[tuple[int, int, float]] = []
    right: list[float] = []
    for choice in problem.choices:
        data += [(len(right), first[choice.name] + o, 1.0) for o in range(choice.options)]
        right.append(1.0)
    gain, cost = [np.zeros(width)], [np.zeros((len(problem.budgets), width), dtype=np.int64)]
    for factor in problem.factors:
        assert isinstance(factor, Factor)
        for axis, name in enumerate(factor.scope):
            for option in range(factor.value.shape[axis]):
                for entry in np.argwhere(np.indices(factor.value.shape)[axis].ravel() == option):
                    data.append((len(right), width + int(entry[0]), 1.0))
                data.append((len(right), first[name] + option, -1.0))
                right.append(0.0)
        gain.append(factor.value.ravel())
        cost.append(factor.cost.reshape(len(problem.budgets), -1))
        width += factor.value.size
    rows, columns, entries = zip(*data, strict=True)
    matrix = csr_array((entries, (rows, columns)), shape=(len(right), width))
    use = np.concatenate(cost, axis=1)
    room = np.array(problem.budgets) - np.array(problem.fixed)
    scale = np.maximum(np.abs(use).max(axis=1), 1.0)
    result = milp(
        -np.concatenate(gain),
        integrality=(np.arange(width) < offset[-1]).astype(np.int64),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(matrix, right, right),
            LinearConstraint(use / scale[:, None], -np.inf, room / scale),
        ],
        options={"mip_rel_gap": gap},
    )
    assert result.fun is not None
    assert result.mip_dual_bound is not None
    return -float(result.fun), -float(result.mip_dual_bound)
