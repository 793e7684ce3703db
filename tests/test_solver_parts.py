"""The solver's parts: elimination, its max-marginals, labels, the dual."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.solver_networks import instance
from fxprune.solver import Choice, Factor, Problem, SparseFactor, sum_factor
from fxprune.solver.build import model_of, restrict
from fxprune.solver.dual import Bundle
from fxprune.solver.elimination import plan_of
from fxprune.solver.join import Leaf, tree_of
from fxprune.solver.labels import Labels, undominated
from fxprune.solver.model import Model
from fxprune.solver.nearby import look_nearby
from fxprune.solver.within import best_within
from tests.solver_cases import chain, grid, random_problem


def random_models(count: int, budgets: int = 1) -> list[tuple[Problem, Model]]:
    """Random problems of which at least one assignment is allowed, as models."""
    problems = [random_problem(np.random.default_rng([77, i]), budgets) for i in range(count)]
    possible = [problem for problem in problems if grid(problem).allowed.any()]
    return [(problem, model_of(problem)) for problem in possible]


def test_elimination_finds_the_maximum_and_who_attains_it() -> None:
    for problem, model in random_models(200):
        sweep = plan_of(model).sweep(model.flat_value)
        best = grid(problem).value.max()
        assert sweep.total + model.base_value == pytest.approx(best, abs=1e-9)
        assert model.point(sweep.best()).value == pytest.approx(best, abs=1e-9)


def test_a_max_marginal_is_the_maximum_with_that_entry_imposed() -> None:
    checked = 0
    for problem, model in random_models(120):
        value = grid(problem).value
        marginals = plan_of(model).sweep(model.flat_value).marginals() + model.base_value
        for table, marginal in zip(model.tables, model.split(marginals), strict=True):
            rows = np.argwhere(np.ones(table.shape, bool)) if table.rows is None else table.rows
            for row, found in zip(rows, marginal.ravel(), strict=True):
                place: list[int | slice] = [slice(None)] * value.ndim
                for v, option in zip(table.scope, row, strict=True):
                    place[v] = int(option)
                assert found == pytest.approx(value[tuple(place)].max(), abs=1e-9)
                checked += 1
    assert checked > 500


def test_a_row_with_its_context_is_its_max_marginal() -> None:
    checked = 0
    for _, model in random_models(120):
        tree = tree_of(model)
        assert tree is not None
        around, _ = tree.contexts(np.array([0.3]))
        weights = model.flat_value - 0.3 * model.flat_cost[0]
        marginals = model.split(plan_of(model).sweep(weights).marginals())
        leaves = [(n, a) for n, a in zip(tree.nodes, around, strict=True) if isinstance(n, Leaf)]
        for table, marginal, (leaf, rest) in zip(model.tables, marginals, leaves[1:], strict=True):
            wanted = marginal[np.isfinite(table.value)].ravel()
            assert leaf.value - 0.3 * leaf.cost[0] + rest == pytest.approx(wanted, abs=1e-9)
            checked += len(wanted)
    assert checked > 500


@pytest.mark.parametrize("budgets", [1, 2, 3])
def test_labels_find_the_best_and_bound_what_they_drop(budgets: int) -> None:
    dropped = found = 0
    for seed in range(30):
        problem = chain(np.random.default_rng([5, seed]), 6, 4, budgets)
        best = grid(problem).best(problem.budgets)
        model, limits, prices = model_of(problem), np.array(problem.budgets), np.full(budgets, 0.01)
        full = best_within(model, limits, prices, -math.inf, width=10_000)
        if full.point is None:
            assert best == full.bound == -math.inf
            continue
        assert full.point.value == pytest.approx(best)
        assert full.bound == pytest.approx(best)
        assert (full.point.use <= limits).all()
        few = best_within(model, limits, prices, -math.inf, width=2)
        assert few.bound >= best - 1e-9
        dropped += few.bound > best + 1e-9
        found += 1
    assert found > 25
    assert dropped > 10


def test_a_budget_without_a_price_holds_though_labels_do_not_look_at_it() -> None:
    open_ = 0
    for seed in range(30):
        problem = chain(np.random.default_rng([6, seed]), 6, 4, 3)
        best = grid(problem).best(problem.budgets)
        answer = best_within(
            model_of(problem),
            np.array(problem.budgets),
            np.array([0.0, 0.01, 0.02]),
            -math.inf,
            width=10_000,
        )
        assert answer.bound >= best - 1e-9
        if answer.point is not None:
            assert (answer.point.use <= problem.budgets).all()
        open_ += answer.bound > best + 1e-9
    assert open_ > 5


@pytest.mark.parametrize("budgets", [1, 2, 3])
def test_a_label_goes_only_if_another_of_its_row_is_as_good(budgets: int) -> None:
    rng = np.random.default_rng(budgets)
    gone = 0
    for _ in range(100):
        row, cost = rng.integers(0, 5, 80), rng.integers(0, 8, (budgets, 80)).astype(float)
        value = rng.integers(0, 8, 80).astype(float)
        place = np.arange(80)
        prices = rng.random(budgets) + 0.1
        stays = undominated(Labels(row, value, cost, place, place, value), prices, 4.0)
        gone += 80 - len(stays.row)
        assert (np.diff(stays.row) >= 0).all()
        assert len(np.unique(stays.left)) == len(stays.left)
        for i in np.setdiff1d(place, stays.left):
            alike = (stays.row == row[i]) & (stays.value >= value[i])
            assert (alike & (stays.cost <= cost[:, [i]]).all(axis=0)).any()
    assert gone > 1000


def test_near_lists_exactly_the_assignments_within_the_window() -> None:
    for problem, model in random_models(120):
        value = grid(problem).value
        options, complete = plan_of(model).sweep(model.flat_value).near(3.0, most=10_000)
        assert complete
        found = model.measure(options)[0]
        # Choices that nothing looks at stay at their first option.
        seen = sorted({v for table in model.tables for v in table.scope})
        one_each = tuple(slice(None) if v in seen else slice(0, 1) for v in range(value.ndim))
        wide = value[one_each]
        # Rounding may put an assignment on either side of the window's edge.
        assert (wide >= wide.max() - 3.0 + 1e-9).sum() <= len(found)
        assert len(found) <= (wide >= wide.max() - 3.0 - 1e-9).sum()
        assert len(np.unique(options, axis=0)) == len(options)


def test_near_keeps_the_best_when_there_are_too_many() -> None:
    model = model_of(chain(np.random.default_rng(0), length=6, options=5))
    sweep = plan_of(model).sweep(model.flat_value)
    everything, complete = sweep.near(math.inf, most=10**6)
    assert complete
    assert len(everything) == 5**6
    few, complete = sweep.near(math.inf, most=50)
    assert not complete
    assert len(few) == 50
    assert model.measure(few)[0].max() == pytest.approx(sweep.total)


def test_a_factor_means_the_same_dense_or_listed() -> None:
    rng = np.random.default_rng(3)
    names = ("a", "b", "c")
    choices = tuple(Choice(name, 6) for name in names)
    allowed = rng.random((6, 6, 6)) < 0.1
    value = np.where(allowed, rng.random((6, 6, 6)), -math.inf)
    cost = rng.integers(0, 9, (1, 6, 6, 6))
    side = Factor("g", ("c", "a"), rng.integers(0, 9, (1, 6, 6)), rng.random((6, 6)))
    rows = np.argwhere(allowed)[::-1]
    place = tuple(rows.T)
    factors = (
        Factor("f", names, cost, value),
        SparseFactor("f", names, rows, cost[:, *place], value[place]),
    )
    models = [model_of(Problem(choices, (f, side), (9,), (0,))) for f in factors]
    assert [[table.rows is None for table in model.tables] for model in models] == [[False]] * 2
    totals = [plan_of(model).sweep(model.flat_value).total for model in models]
    assert totals[0] == totals[1]


def test_sums_are_eliminated_over_their_allowed_combinations_only() -> None:
    sizes = list(range(8, 257, 8))
    sums = list(range(16, 513, 8))
    zero = np.zeros((1, 32), dtype=np.int64)
    problem = Problem(
        (Choice("a", 32), Choice("b", 32), Choice("s", 63)),
        (
            Factor("a", ("a",), zero, np.sqrt(sizes)),
            Factor("b", ("b",), zero, np.sqrt(sizes)),
            Factor("s", ("s",), np.array(sums)[None], np.zeros(63)),
            sum_factor("sum", [("a", sizes), ("b", sizes)], ("s", sums), 1),
        ),
        (100,),
        (0,),
    )
    model = model_of(problem)
    assert len(model.flat_value) == 32 * 32
    assert plan_of(model).sweep(model.flat_value).total == pytest.approx(32.0)


@pytest.mark.parametrize(("name", "around"), [("resnet50", 2), ("densenet121", 3), ("vgg16", 1)])
def test_networks_are_eliminated_with_few_choices_at_once(name: str, around: int) -> None:
    plan = plan_of(model_of(instance(name, coarse=True).problem((1,))))
    assert max(len(step.out.scope) for step in plan.steps) == around


def test_restricting_leaves_the_values_of_what_stays() -> None:
    rng = np.random.default_rng(5)
    for problem, model in random_models(100):
        keep = [rng.random(size) < 0.7 for size in model.sizes]
        keep = [kept if kept.any() else np.ones_like(kept) for kept in keep]
        smaller = restrict(model, keep)
        value = grid(problem).value[np.ix_(*keep)]
        assert smaller.sizes == value.shape
        total = plan_of(smaller).sweep(smaller.flat_value).total + smaller.base_value
        assert total == pytest.approx(value.max(), abs=1e-9)


def test_the_dual_is_the_height_of_the_hull_for_one_budget() -> None:
    for problem, model in random_models(150):
        tried = grid(problem)
        (budget,) = problem.budgets
        if tried.best(problem.budgets) == -math.inf:
            continue
        use = tried.use[0][tried.allowed].astype(float) - budget
        value = tried.value[tried.allowed]
        dual = Bundle(model).minimise(np.array([budget]))
        inside, outside = use <= 0, use > 0
        height = value[inside].max()
        for u, v in zip(use[inside], value[inside], strict=True):
            line = v + (value[outside] - v) * -u / (use[outside] - u)
            height = max(height, line.max(initial=-math.inf))
        assert dual.bound == pytest.approx(height, abs=1e-9)


def test_prices_of_several_budgets_minimise_the_bound() -> None:
    rng = np.random.default_rng(8)
    bundle = Bundle(model_of(chain(rng, length=8, options=6, budgets=3)))
    budgets = np.array(chain(np.random.default_rng(8), 8, 6, 3).budgets)
    dual = bundle.minimise(budgets)
    assert (dual.prices >= 0).all()
    for _ in range(100):
        other = dual.prices * rng.lognormal(0.0, 0.3, 3)
        bundle.evaluate(other)
    assert bundle.best(budgets).bound >= dual.bound - 1e-6 * abs(dual.bound)


def test_knowing_more_points_never_raises_the_bound() -> None:
    problem = chain(np.random.default_rng(9), length=10, options=8)
    bundle = Bundle(model_of(problem))
    alone = Bundle(model_of(replace(problem))).minimise(np.array(problem.budgets)).bound
    for share in (0.3, 0.7, 1.3):
        bundle.minimise(np.array([int(share * problem.budgets[0])]))
    assert bundle.minimise(np.array(problem.budgets)).bound == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize("budgets", [1, 2])
def test_nothing_better_is_one_change_away_from_what_is_found_nearby(budgets: int) -> None:
    checked = 0
    for problem, model in random_models(150, budgets):
        bundle, limits = Bundle(model), np.array(problem.budgets)
        if (bundle.floor > limits).any():
            continue
        bundle.minimise(limits)
        look_nearby(bundle, limits)
        everything = grid(problem)
        for point in bundle.points:
            assert everything.value[tuple(point.option)] == pytest.approx(point.value, abs=1e-9)
            assert (everything.use[(slice(None), *point.option)] == point.use).all()
        found = bundle.incumbent(limits)
        if found is None:
            continue
        for choice, options in enumerate(everything.value.shape):
            for option in range(options):
                other = (*found.option[:choice], option, *found.option[choice + 1 :])
                if (everything.use[(slice(None), *other)] <= limits).all():
                    assert everything.value[other] <= found.value + 1e-9
                    checked += 1
    assert checked > 100


def test_a_budget_between_corners_is_filled() -> None:
    """Ten blocks that cost something as soon as they are there: no price leads to some width."""
    width = np.arange(33)
    cost = np.where(width, 8 + width, 0)
    blocks = [Choice(f"block {i}", len(width)) for i in range(10)]
    factors = tuple(
        Factor(block.name, (block.name,), cost=cost[None], value=(1.2 + 0.001 * i) * width)
        for i, block in enumerate(blocks)
    )
    problem = Problem(tuple(blocks), factors, (260,), (0,))
    bundle, limits = Bundle(model_of(problem)), np.array(problem.budgets)
    bundle.minimise(limits)
    corner = bundle.worth(limits)
    look_nearby(bundle, limits)
    found = bundle.incumbent(limits)
    assert found is not None
    six = sum((1.2 + 0.001 * i) * 32 for i in range(4, 10))  # 240 of the budget
    assert corner == pytest.approx(six)
    assert found.value == pytest.approx(six + 12 * 1.203)  # 8 + 12 for the next one
    assert found.use[0] == 260
