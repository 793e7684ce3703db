"""Budgets that are functions: met, with few readings, which are all reported."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fxprune.errors import InputError
from fxprune.solver import Choice, Factor, Problem, Solution, measure, search, solve
from tests.solver_cases import chain

FREE = (10**12,)
PROBLEM = chain(np.random.default_rng(0), length=10, options=12, budgets=2)


def proxy(budgets: int) -> Problem:
    """The chain with so many of its costs as proxies, and no budget that binds."""
    factors = tuple(
        Factor(f.name, f.scope, f.cost[:budgets], f.value)
        for f in PROBLEM.factors
        if isinstance(f, Factor)
    )
    return Problem(PROBLEM.choices, factors, FREE * budgets, (0,) * budgets)


def energy(solution: Solution) -> float:
    """A nonlinear function of both costs, growing with each."""
    _, (first, second) = measure(PROBLEM, solution.assignment)
    reading: float = 5.0 + 0.002 * first + 0.0001 * second**1.1
    return reading


@pytest.mark.parametrize("budgets", [1, 2])
@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_the_limit_is_met_and_nearly_used(budgets: int, share: float) -> None:
    problem = proxy(budgets)
    limit = share * energy(solve(problem))
    found = search(problem, energy, limit)
    assert found.best is not None
    assert 0.97 * limit < found.best.reading <= limit
    assert found.best.reading == energy(found.best.solution)
    assert found.evaluations <= 16


def test_a_second_proxy_that_matters_makes_the_answer_better() -> None:
    def only_second(solution: Solution) -> float:
        return float(measure(PROBLEM, solution.assignment)[1][1])

    limit = 0.4 * only_second(solve(proxy(2)))
    values = []
    for budgets in (1, 2):
        best = search(proxy(budgets), only_second, limit, tolerance=0.002).best
        assert best is not None
        values.append(best.solution.value)
    exact = solve(Problem(PROBLEM.choices, PROBLEM.factors, (FREE[0], int(limit)), (0, 0)))
    assert values[0] < values[1]
    assert values[1] > 0.99 * exact.value


def test_every_call_is_reported_and_none_is_repeated() -> None:
    calls: list[dict[str, int]] = []

    def counted(solution: Solution) -> float:
        calls.append(dict(solution.assignment))
        return energy(solution)

    found = search(proxy(2), counted, 0.6 * energy(solve(proxy(2))))
    assert [dict(trial.solution.assignment) for trial in found.trials] == calls
    assert len({tuple(sorted(call.items())) for call in calls}) == len(calls)


def test_a_loose_limit_takes_one_call() -> None:
    found = search(proxy(1), energy, math.inf)
    assert found.evaluations == 1
    assert found.best is not None
    assert found.best.solution.value == solve(proxy(1)).value


def test_a_limit_out_of_reach_gives_nothing_after_two_calls() -> None:
    found = search(proxy(1), energy, 1.0)
    assert (found.best, found.evaluations) == (None, 2)


def test_the_number_of_calls_is_kept() -> None:
    def jagged(solution: Solution) -> float:
        reading = energy(solution)
        return reading * (1 + 0.05 * math.sin(1e4 * reading))

    limit = 0.5 * energy(solve(proxy(1)))
    found = search(proxy(1), jagged, limit, evaluations=6, tolerance=0.0)
    assert found.evaluations <= 6
    assert found.best is not None
    assert found.best.reading <= limit


def test_the_budgets_of_the_tables_hold_as_well() -> None:
    problem = proxy(2)
    dense = solve(problem)
    tight = Problem(problem.choices, problem.factors, (dense.use[0] // 3, FREE[0]), (0, 0))
    found = search(tight, energy, 0.9 * energy(solve(tight)))
    assert found.best is not None
    assert all(trial.solution.use[0] <= dense.use[0] // 3 for trial in found.trials)


def test_an_infeasible_problem_needs_no_call() -> None:
    problem = Problem(PROBLEM.choices, PROBLEM.factors, (0, 0), (0, 0))
    found = search(problem, energy, 1.0)
    assert (found.best, found.evaluations) == (None, 0)


def test_a_function_that_steps_is_searched_to_its_edge() -> None:
    cost = np.arange(100)[None]
    problem = Problem(
        (Choice("a", 100),), (Factor("f", ("a",), cost, np.sqrt(np.arange(100))),), FREE, (0,)
    )
    found = search(problem, lambda s: float(s.assignment["a"] // 7 * 7), 30.0, tolerance=0.0)
    assert found.best is not None
    assert found.best.solution.assignment["a"] == 34  # 34 // 7 * 7 == 28, and 35 reads 35


@pytest.mark.parametrize(
    ("message", "problem", "reading"),
    [
        ("returned nan", proxy(1), math.nan),
        ("with 0 budgets", Problem((), (), (), ()), 0.0),
    ],
)
def test_what_makes_no_sense_is_refused(message: str, problem: Problem, reading: float) -> None:
    with pytest.raises(InputError, match=message):
        search(problem, lambda _: reading, 1.0)


def test_too_few_evaluations_are_refused() -> None:
    with pytest.raises(InputError, match="2 evaluations for a problem with 1 budgets"):
        search(proxy(1), energy, 1.0, evaluations=2)
