"""The certified solver against brute force, against HiGHS, and at its edges."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.solver_networks import instance
from fxprune.errors import InputError
from fxprune.solver import (
    Choice,
    Factor,
    Problem,
    SparseFactor,
    branch,
    close,
    front,
    measure,
    solve,
    sum_factor,
    within,
)
from tests.solver_cases import by_highs, chain, grid, random_problem

PAIR = np.array([[1.0, 2.0], [3.0, 5.0]])
PRICE = np.array([[[1, 4], [2, 7]]])


def pair_problem(budget: int, **changes: object) -> Problem:
    """Two choices of two options, worth 1 2 / 3 5, at a cost of 1 4 / 2 7."""
    problem = Problem(
        (Choice("a", 2), Choice("b", 2)), (Factor("f", ("a", "b"), PRICE, PAIR),), (budget,), (0,)
    )
    return replace(problem, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("budgets", [1, 2, 3])
def test_random_problems_are_solved_as_brute_force_solves_them(budgets: int) -> None:
    seen = {"optimal": 0, "infeasible": 0}
    for seed in range(1700):
        problem = random_problem(np.random.default_rng([budgets, seed]), budgets)
        gap = (0.0, 1e-6, 0.02)[seed % 3]
        tried = grid(problem)
        best = tried.best(problem.budgets)
        solution = solve(problem, gap=gap)
        seen[solution.status] += 1
        assert solution.floor == tried.floor(), seed
        if best == -math.inf:
            assert solution.status == "infeasible", seed
            continue
        rounding = 1e-9 * (1 + abs(best))
        assert solution.status == "optimal", seed
        assert solution.gap <= gap, seed
        assert solution.bound >= best - rounding, seed
        assert best - solution.value <= gap * max(abs(best), abs(solution.bound)) + rounding, seed
        assert measure(problem, solution.assignment) == (solution.value, solution.use), seed
        assert all(u <= b for u, b in zip(solution.use, problem.budgets, strict=True)), seed
    assert seen["optimal"] > 800
    assert seen["infeasible"] > 100


@pytest.mark.parametrize("budgets", [1, 2, 3])
@pytest.mark.parametrize("attempts", [(), ((10_000, 10_000),), ((1, 6), (20, 10_000))])
def test_parts_and_labels_give_what_brute_force_gives(
    budgets: int, attempts: tuple[tuple[int, int], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(close, "_ASSIGNMENTS", 1)
    monkeypatch.setattr(branch, "_ATTEMPTS", attempts)
    seen = Counter[str]()
    for i in range(250):
        problem = random_problem(np.random.default_rng([10, i]), budgets, 7)
        best = grid(problem).best(problem.budgets)
        solution = solve(problem, gap=0, parts=10_000)
        assert solution.value == pytest.approx(best, rel=1e-9, abs=1e-9), i
        assert solution.status == ("infeasible" if best == -math.inf else "optimal"), i
        seen[solution.status] += 1
    assert seen["optimal"] > 120
    assert seen["infeasible"] > 10


@pytest.mark.parametrize("budgets", [1, 2, 3])
def test_too_few_labels_and_parts_leave_a_bound_that_holds(
    budgets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(close, "_ASSIGNMENTS", 1)
    monkeypatch.setattr(branch, "_ATTEMPTS", ((1, 12_000),))
    monkeypatch.setattr(within, "_PAIRS", 2)
    monkeypatch.setattr(within, "_LAST", 4)
    open_ = 0
    for i in range(30):
        problem = chain(np.random.default_rng([11, i]), 6, 4, budgets)
        solution = solve(problem, gap=0, parts=3)
        best = grid(problem).best(problem.budgets)
        assert solution.value - 1e-6 <= best <= solution.bound + 1e-6, i
        open_ += solution.gap > 0
    assert open_ > 10


@pytest.mark.parametrize("budgets", [2, 3])
def test_more_of_any_budget_is_never_worth_less(budgets: int) -> None:
    for i in range(10):
        problem = chain(np.random.default_rng([12, i]), 8, 5, budgets)
        here = solve(problem, gap=1e-5)
        assert here.status == "optimal"
        for k in range(budgets):
            more = list(problem.budgets)
            more[k] += problem.budgets[k] // 10
            assert solve(replace(problem, budgets=tuple(more)), gap=1e-5).bound >= here.value


def test_a_trunk_that_all_blocks_share_is_closed_by_parts_of_it() -> None:
    # Half of the trunk's widths cost far less than the others: at one price, all or nothing.
    rng = np.random.default_rng(3)
    names = [f"block{i}" for i in range(8)]
    worth = np.cumsum(rng.gamma(2.0, 1.0, 8))
    factors = []
    for name in names:
        own = np.cumsum(rng.gamma(2.0, 1.0, 8))
        cost = 1000 * np.ceil(np.arange(1, 9) / 2)[:, None] * np.ceil(np.arange(1, 9) / 4)
        factors.append(Factor(name, ("trunk", name), cost[None].astype(int), worth[:, None] * own))
    choices = (Choice("trunk", 8), *(Choice(name, 8) for name in names))
    problem = Problem(choices, tuple(factors), (31_000,), (0,))
    solution = solve(problem, gap=1e-9)
    assert solution.status == "optimal"
    assert solution.value == pytest.approx(by_highs(problem, 1e-7)[0], rel=1e-6)


@pytest.mark.parametrize(("budget", "value"), [(1, 1.0), (2, 3.0), (6, 3.0), (7, 5.0), (9, 5.0)])
def test_the_best_pair_within_each_budget(budget: int, value: float) -> None:
    solution = solve(pair_problem(budget))
    assert (solution.status, solution.value, solution.gap) == ("optimal", value, 0.0)


def test_a_budget_below_the_floor_is_infeasible_and_names_the_floor() -> None:
    solution = solve(pair_problem(0))
    assert (solution.status, solution.floor, solution.assignment) == ("infeasible", (1,), {})
    assert solution.value == solution.bound == -math.inf


def test_a_budget_may_be_as_large_as_one_likes() -> None:
    problem = chain(np.random.default_rng(1), length=5, options=4, budgets=2)
    loose = solve(replace(problem, budgets=(10**30, problem.budgets[1])), gap=0)
    enough = solve(replace(problem, budgets=(10**6, problem.budgets[1])), gap=0)
    assert (loose.status, loose.value) == ("optimal", enough.value)


def test_the_fixed_use_counts() -> None:
    assert solve(pair_problem(6, fixed=(5,))).value == 1.0
    assert solve(pair_problem(5, fixed=(5,))).floor == (6,)


def test_budgets_that_contradict_each_other_are_infeasible_though_each_can_be_met() -> None:
    opposed = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
    problem = Problem(
        (Choice("a", 4),), (Factor("f", ("a",), opposed, np.zeros(4)),), (1, 1), (0, 0)
    )
    solution = solve(problem)
    assert (solution.status, solution.floor) == ("infeasible", (0, 0))
    weighted = np.array(solution.prices) @ (opposed - 1)
    assert weighted.min() > 0


def test_a_contradiction_that_only_whole_numbers_have_is_found_too() -> None:
    # Half of each option would use (2, 2); no option does.
    cost = np.array([[0, 4], [4, 0]])
    problem = Problem((Choice("a", 2),), (Factor("f", ("a",), cost, np.zeros(2)),), (3, 3), (0, 0))
    assert solve(problem).status == "infeasible"


def test_without_factors_anything_is_optimal() -> None:
    solution = solve(Problem((Choice("a", 3),), (), (5,), (4,)))
    assert (solution.status, solution.value, solution.use) == ("optimal", 0.0, (4,))
    assert solution.assignment == {"a": 0}


def test_without_choices_the_fixed_use_decides() -> None:
    assert solve(Problem((), (), (5,), (4,))).status == "optimal"
    assert solve(Problem((), (), (3,), (4,))).status == "infeasible"


def test_without_budgets_the_largest_value_wins() -> None:
    problem = Problem(
        (Choice("a", 2), Choice("b", 2)),
        (Factor("f", ("a", "b"), np.zeros((0, 2, 2), dtype=np.int64), PAIR),),
        (),
        (),
    )
    solution = solve(problem)
    assert (solution.value, solution.use, solution.prices) == (5.0, (), ())


def test_values_that_are_all_zero_leave_no_gap() -> None:
    solution = solve(pair_problem(3, factors=(Factor("f", ("a", "b"), PRICE, 0 * PAIR),)))
    assert (solution.status, solution.value, solution.bound, solution.gap) == ("optimal", 0, 0, 0)


def test_when_everything_is_forbidden_there_is_no_floor() -> None:
    never = np.full((2, 2), -math.inf)
    solution = solve(pair_problem(99, factors=(Factor("f", ("a", "b"), PRICE, never),)))
    assert (solution.status, solution.floor) == ("infeasible", ())


def test_a_factor_without_choices_is_a_constant() -> None:
    constant = Factor("c", (), np.array([3]), np.array(10.0))
    solution = solve(pair_problem(5, factors=(*pair_problem(0).factors, constant)))
    assert (solution.value, solution.use) == (13.0, (5,))


def test_a_choice_twice_in_a_scope_means_its_diagonal() -> None:
    problem = Problem((Choice("a", 2),), (Factor("f", ("a", "a"), PRICE, PAIR),), (6,), (0,))
    solution = solve(problem)
    assert (solution.value, solution.floor) == (1.0, (1,))
    assert solve(replace(problem, budgets=(7,))).value == 5.0


def test_separate_parts_share_one_budget() -> None:
    parts = [f"{name}{i}" for i in range(4) for name in "ab"]
    factors = tuple(Factor(f"f{i}", (f"a{i}", f"b{i}"), PRICE, PAIR) for i in range(4))
    choices = tuple(Choice(name, 2) for name in parts)
    solution = solve(Problem(choices, factors, (18,), (0,)))
    # Two parts in full (7 each) and two at a cost of 2: 5 + 5 + 3 + 3.
    assert (solution.status, solution.value, solution.use) == ("optimal", 16.0, (18,))


def test_concatenated_widths_are_a_sum_choice() -> None:
    sizes = [8, 16, 24]
    sums = [16, 24, 32, 40, 48]
    cost = np.array(sums)[None]
    problem = Problem(
        (Choice("a", 3), Choice("b", 3), Choice("a+b", 5)),
        (
            Factor("a", ("a",), np.zeros((1, 3), dtype=np.int64), np.array([1.0, 2.0, 3.0])),
            Factor("b", ("b",), np.zeros((1, 3), dtype=np.int64), np.array([1.0, 5.0, 6.0])),
            Factor("use", ("a+b",), cost, np.zeros(5)),
            sum_factor("sum", [("a", sizes), ("b", sizes)], ("a+b", sums), 1),
        ),
        (32,),
        (0,),
    )
    solution = solve(problem)
    assert solution.assignment == {"a": 1, "b": 1, "a+b": 2}
    assert solution.value == 7.0


def test_a_sum_leaves_out_combinations_that_it_has_no_option_for() -> None:
    factor = sum_factor("sum", [("a", [1, 2]), ("b", [1, 4])], ("s", [5, 2]), 2)
    assert factor.rows.tolist() == [[0, 0, 1], [0, 1, 0]]
    assert factor.cost.shape == (2, 2)


def test_a_merged_layer_costs_the_same_as_ternary_factor_and_with_a_derived_choice() -> None:
    rng = np.random.default_rng(0)
    first = Factor("l1", ("s", "a"), rng.integers(1, 99, (1, 6, 5)), rng.random((6, 5)))
    second = Factor("l2", ("a", "t"), rng.integers(1, 99, (1, 5, 6)), rng.random((5, 6)))
    merged = rng.integers(1, 99, (1, 6, 6))
    cost = np.zeros((1, 6, 5, 6), dtype=np.int64)
    cost[:, :, 0] = merged  # option 0 of `a` is "absorbed"
    ternary = Factor("m", ("s", "a", "t"), cost, np.zeros((6, 5, 6)))
    tie = np.full((5, 2), -math.inf)
    tie[0, 1] = tie[1:, 0] = 0.0
    binary = (
        Factor("tie", ("a", "is"), np.zeros((1, 5, 2), dtype=np.int64), tie),
        Factor("m", ("s", "is", "t"), np.stack([0 * merged, merged], axis=2), np.zeros((6, 2, 6))),
    )
    choices = (Choice("s", 6), Choice("a", 5), Choice("t", 6))
    for budget in (20, 40, 90):
        one = solve(Problem(choices, (first, second, ternary), (budget,), (0,)), gap=0)
        two = solve(
            Problem((*choices, Choice("is", 2)), (first, second, *binary), (budget,), (0,)), gap=0
        )
        assert one.status == two.status == "optimal"
        assert one.value == pytest.approx(two.value, rel=1e-12)


def test_budgets_hold_to_the_last_unit_among_large_numbers() -> None:
    # One unit in 10**13 is far below what branch and cut can see.
    rng = np.random.default_rng(1)
    cost = rng.integers(10**11, 10**12, (12, 1, 4)).cumsum(axis=2)
    factors = tuple(Factor(f"f{i}", (f"c{i}",), cost[i], rng.random(4).cumsum()) for i in range(12))
    problem = Problem(tuple(Choice(f"c{i}", 4) for i in range(12)), factors, (0,), (0,))
    problem = replace(problem, budgets=(int(cost[:, 0, 2].sum()),))
    exact = solve(problem, gap=0)
    assert exact.status == "optimal"
    again = solve(replace(problem, budgets=exact.use), gap=0)
    assert (again.value, again.use) == (exact.value, exact.use)
    less = solve(replace(problem, budgets=(exact.use[0] - 1,)), gap=0)
    assert less.use[0] < exact.use[0]
    assert less.value < exact.value


def test_the_same_problem_gives_the_same_answer() -> None:
    problem = chain(np.random.default_rng(2), length=15, options=12)
    assert solve(problem) == solve(problem)


def test_a_problem_is_not_changed_by_solving_it() -> None:
    problem = chain(np.random.default_rng(3), length=6, options=6)
    before = [(f.cost.copy(), f.value.copy()) for f in problem.factors]
    solve(problem)
    for factor, (cost, value) in zip(problem.factors, before, strict=True):
        assert (factor.cost == cost).all()
        assert (factor.value == value).all()


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        solve(chain(np.random.default_rng(seed), length=16, options=10, budgets=2))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vgg16"])
@pytest.mark.parametrize("share", [0.6, 0.4])
def test_networks_with_coarse_ladders_are_solved_as_highs_solves_them(
    name: str, share: float
) -> None:
    network = instance(name, coarse=True)
    dense = measure(network.problem((0,)), network.dense())[1]
    problem = network.problem((int(share * dense[0]),))
    value, bound = by_highs(problem, gap=1e-5)
    solution = solve(problem, gap=1e-5)
    assert solution.status == "optimal"
    assert solution.value == pytest.approx(value, rel=2e-5)
    assert value <= solution.bound * (1 + 1e-9)
    assert solution.value <= bound * (1 + 1e-9)


@pytest.mark.parametrize("budgets", [2, 3])
def test_several_budgets_are_met_as_highs_meets_them(budgets: int) -> None:
    for seed in range(3):
        problem = chain(np.random.default_rng([40, seed]), 9, 5, budgets)
        value, bound = by_highs(problem, gap=1e-6)
        solution = solve(problem, gap=1e-6)
        assert solution.status == "optimal"
        assert solution.value == pytest.approx(value, rel=3e-6)
        assert value <= solution.bound * (1 + 1e-6)
        assert solution.value <= bound * (1 + 1e-6)


@pytest.mark.parametrize(
    ("name", "share"), [("resnet50", 0.5), ("densenet121", 0.4), ("resnet101", 0.4)]
)
def test_networks_with_fine_ladders_are_certified(name: str, share: float) -> None:
    network = instance(name)
    dense = measure(network.problem((0,)), network.dense())[1]
    solution = solve(network.problem((int(share * dense[0]),)))
    assert solution.status == "optimal"
    assert solution.gap <= 1e-4
    assert 0.99 * share * dense[0] < solution.use[0] <= share * dense[0]


def test_three_budgets_of_a_network_hold_together() -> None:
    network = instance("resnet18", coarse=True)
    dense = measure(network.problem((0, 0, 0)), network.dense())[1]
    budgets = (int(0.5 * dense[0]), int(0.6 * dense[1]), int(0.5 * dense[2]))
    solution = solve(network.problem(budgets))
    assert solution.status == "optimal"
    assert all(use <= budget for use, budget in zip(solution.use, budgets, strict=True))
    for k in range(3):
        looser = list(budgets)
        looser[k] = dense[k]
        assert solve(network.problem(tuple(looser))).value >= solution.value * (1 - 1e-4)


def test_prices_are_what_a_unit_of_budget_is_worth() -> None:
    problem = chain(np.random.default_rng(4), length=20, options=20)
    (budget,) = problem.budgets
    step = budget // 100
    less, here, more = front(problem, [budget - step, budget, budget + step])
    assert (more.value - here.value) / step <= here.prices[0] * 1.1
    assert here.prices[0] <= (here.value - less.value) / step * 1.1


def test_a_limit_of_parts_leaves_a_true_bound() -> None:
    problem = chain(np.random.default_rng(5), length=14, options=8, budgets=2)
    exact = solve(problem, gap=0)
    limited = solve(problem, gap=0, parts=0)
    assert (exact.status, limited.status) == ("optimal", "feasible")
    assert limited.value <= exact.value <= limited.bound


def test_a_front_says_what_single_solves_say_in_the_order_asked_for() -> None:
    problem = chain(np.random.default_rng(6), length=12, options=8)
    (budget,) = problem.budgets
    budgets = [budget, budget // 2, 2 * budget, budget // 3, budget]
    for wanted, solution in zip(budgets, front(problem, budgets), strict=True):
        alone = solve(replace(problem, budgets=(wanted,)))
        assert solution.status == alone.status == "optimal"
        assert solution.value == pytest.approx(alone.value, rel=2e-4)
        assert solution.use[0] <= wanted


def test_a_front_never_falls_and_every_point_is_certified() -> None:
    problem = chain(np.random.default_rng(7), length=14, options=10)
    whole = 2 * problem.budgets[0]
    solutions = front(problem, [whole * i // 25 for i in range(1, 26)])
    values = [solution.value for solution in solutions]
    assert values == sorted(values)
    assert {s.status for s in solutions if s.assignment} == {"optimal"}
    assert solutions[-1].value > 1.5 * next(v for v in values if v > -math.inf)


def test_a_front_over_several_budgets_takes_tuples() -> None:
    problem = chain(np.random.default_rng(8), length=8, options=6, budgets=2)
    a, b = problem.budgets
    tight, loose = front(problem, [(a // 2, b), (a, b)])
    assert tight.value < loose.value


def test_too_many_entangled_choices_are_refused_with_advice() -> None:
    names = [f"c{i}" for i in range(14)]
    cost = np.ones((1, 8, 8), dtype=np.int64)
    factors = tuple(
        Factor(f"{a}{b}", (a, b), cost, np.eye(8))
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    )
    problem = Problem(tuple(Choice(name, 8) for name in names), factors, (9,), (0,))
    with pytest.raises(InputError, match=r"too entangled.*fewer options"):
        solve(problem)


ONE = (Choice("a", 2),)
COST, VALUE = np.array([[1, 2]]), np.array([1.0, 2.0])
WRONG: list[Any] = [1.0, 1j]


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("at least one option, not 0", lambda: Choice("a", 0)),
        ("share a name.*'a'", lambda: Problem((*ONE, *ONE), (), (1,), (0,))),
        ("1 fixed uses for 2 budgets", lambda: Problem(ONE, (), (1, 1), (0,))),
        ("must be integers, not float64", lambda: Factor("f", ("a",), COST * WRONG[0], VALUE)),
        ("real numbers, not complex", lambda: Factor("f", ("a",), COST, VALUE * WRONG[1])),
        ("do not match", lambda: Factor("f", ("a",), COST[0], VALUE)),
        ("finite, or -inf", lambda: Factor("f", ("a",), COST, VALUE * math.nan)),
        ("finite, or -inf", lambda: Factor("f", ("a",), COST, VALUE * math.inf)),
        ("1 dimensions for 2 choices", lambda: Factor("f", ("a", "b"), COST, VALUE)),
        (
            "'b', which is no choice",
            lambda: Problem(ONE, (Factor("f", ("b",), COST, VALUE),), (1,), (0,)),
        ),
        (
            "1 cost tables for 2 budgets",
            lambda: Problem(ONE, (Factor("f", ("a",), COST, VALUE),), (1, 1), (0, 0)),
        ),
        (
            r"shape \(2,\) for choices with \(3,\)",
            lambda: Problem((Choice("a", 3),), (Factor("f", ("a",), COST, VALUE),), (1,), (0,)),
        ),
        (
            r"beyond exact arithmetic",
            lambda: Problem(ONE, (Factor("f", ("a",), COST * 2**53, VALUE),), (1,), (0,)),
        ),
        (
            "listed twice",
            lambda: SparseFactor("f", ("a",), np.array([[0], [0]]), COST, VALUE),
        ),
        (
            "comes twice",
            lambda: SparseFactor("f", ("a", "a"), np.array([[0, 0], [1, 1]]), COST, VALUE),
        ),
        (
            "not integers of shape",
            lambda: SparseFactor("f", ("a",), np.array([0, 1]), COST, VALUE),
        ),
        (
            "outside of",
            lambda: Problem(
                ONE,
                (SparseFactor("f", ("a",), np.array([[0], [2]]), COST, VALUE),),
                (1,),
                (0,),
            ),
        ),
        ("must be integers, not", lambda: Problem(ONE, (), (WRONG[0],), (0,))),
        ("must be integers, not", lambda: front(Problem(ONE, (), (1,), (0,)), [WRONG[0]])),
        ("gap must be a number", lambda: solve(Problem(ONE, (), (1,), (0,)), gap=-1.0)),
        ("2 budgets for a problem with 1", lambda: front(Problem(ONE, (), (1,), (0,)), [(1, 1)])),
    ],
)
def test_what_makes_no_sense_is_refused(message: str, make: object) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]
