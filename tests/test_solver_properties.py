"""What must hold for every allocation problem, whatever its answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.solver import Factor, Problem, Solver, SparseFactor, measure, solve
from tests.solver_cases import random_problem

GAP = 1e-6
problems = st.builds(
    lambda seed, budgets: random_problem(np.random.default_rng(seed), budgets, choices=6),
    st.integers(0, 2**32 - 1),
    st.integers(1, 3),
)
# Solving takes longer on a busy machine than hypothesis expects of an example.
unhurried = settings(deadline=None, max_examples=150)


def about(value: float) -> float:
    """What two certified values may differ by."""
    return 1e-9 + 2 * GAP * abs(value) if np.isfinite(value) else 0.0


@unhurried
@given(problems)
def test_the_certificate_is_sound(problem: Problem) -> None:
    solution = solve(problem, gap=GAP)
    assert solution.bound >= solution.value
    if not solution.assignment:
        assert solution.status == "infeasible"
        return
    assert measure(problem, solution.assignment) == (solution.value, solution.use)
    assert all(use <= budget for use, budget in zip(solution.use, problem.budgets, strict=True))
    assert all(use >= least for use, least in zip(solution.use, solution.floor, strict=True))
    assert all(price >= 0 for price in solution.prices)
    assert solution.gap <= GAP


@unhurried
@given(problems, st.integers(0, 2), st.integers(1, 20))
def test_more_budget_is_never_worth_less(problem: Problem, which: int, more: int) -> None:
    budgets = list(problem.budgets)
    budgets[which % len(budgets)] += more
    before = solve(problem, gap=GAP).value
    assert solve(replace(problem, budgets=tuple(budgets)), gap=GAP).value >= before - about(before)


@unhurried
@given(problems, st.randoms(use_true_random=False))
def test_the_order_of_choices_and_factors_does_not_matter(problem: Problem, random: object) -> None:
    choices, factors = list(problem.choices), list(problem.factors)
    random.shuffle(choices)  # type: ignore[attr-defined]
    random.shuffle(factors)  # type: ignore[attr-defined]
    shuffled = replace(problem, choices=tuple(choices), factors=tuple(factors))
    one, other = solve(problem, gap=0.0), solve(shuffled, gap=0.0)
    assert one.status == other.status
    assert one.floor == other.floor
    if one.assignment:
        assert abs(one.value - other.value) <= about(one.value)


@unhurried
@given(problems, st.integers(0, 100), st.integers(0, 100))
def test_fixing_an_option_never_helps(problem: Problem, which: int, option: int) -> None:
    choice = problem.choices[which % len(problem.choices)]
    value = np.full(choice.options, -np.inf)
    value[option % choice.options] = 0.0
    cost = np.zeros((len(problem.budgets), choice.options), dtype=np.int64)
    fixed = replace(
        problem, factors=(*problem.factors, Factor("fixed", (choice.name,), cost, value))
    )
    free = solve(problem, gap=GAP).value
    assert solve(fixed, gap=GAP).value <= free + about(free)


@unhurried
@given(problems, st.data())
def test_allowed_options_are_as_good_as_forbidding_the_others(
    problem: Problem, data: st.DataObject
) -> None:
    some = {
        choice.name: data.draw(st.sets(st.integers(0, choice.options - 1), min_size=1))
        for choice in problem.choices[::2]
    }
    bounds = []
    for name, options in some.items():
        rows = np.array(sorted(options), dtype=np.int64)[:, None]
        cost = np.zeros((len(problem.budgets), len(rows)), dtype=np.int64)
        bounds.append(SparseFactor(f"some {name}", (name,), rows, cost, np.zeros(len(rows))))
    bounded = solve(replace(problem, factors=(*problem.factors, *bounds)), gap=GAP)
    found = Solver(problem, gap=GAP, allowed=some).at(problem.budgets)
    assert found.status == bounded.status
    assert found.floor == bounded.floor
    if found.assignment:
        assert all(found.assignment[name] in options for name, options in some.items())
        assert measure(problem, found.assignment) == (found.value, found.use)
        assert abs(found.value - bounded.value) <= about(found.value)


@unhurried
@given(problems, st.integers(1, 1000))
def test_the_unit_of_the_costs_does_not_matter(problem: Problem, unit: int) -> None:
    def scaled(factor: Factor | SparseFactor) -> Factor | SparseFactor:
        return replace(factor, cost=factor.cost * unit)

    coarse = replace(
        problem,
        factors=tuple(scaled(factor) for factor in problem.factors),
        budgets=tuple(budget * unit for budget in problem.budgets),
        fixed=tuple(use * unit for use in problem.fixed),
    )
    one, other = solve(problem, gap=0.0), solve(coarse, gap=0.0)
    assert one.status == other.status
    if one.assignment:
        assert abs(one.value - other.value) <= about(one.value)
