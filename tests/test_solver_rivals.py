"""The rivals of the benchmark do what their papers say, and never better than the optimum."""

from __future__ import annotations

import os

import numpy as np
import pytest

from benchmarks.instance import Instance, Term
from benchmarks.rivals import RIVALS, exact_knapsack, recurrence
from benchmarks.silence import without_lines
from benchmarks.solver_networks import instance
from fxprune.solver import solve


@pytest.mark.parametrize("name", list(RIVALS))
@pytest.mark.parametrize("network", ["resnet18", "mobilenet_v2"])
def test_a_rival_stays_within_the_budget_and_below_the_bound(name: str, network: str) -> None:
    problem = instance(network, coarse=True)
    budget = problem.count(problem.dense())[1] * 6 // 10
    options = RIVALS[name](problem, budget)
    assert options is not None
    value, latency = problem.count(options)
    bound = solve(problem.problem((budget,))).bound
    assert latency <= budget
    assert 0.5 * bound < value <= bound * (1 + 1e-9)


def test_a_rival_finds_nothing_below_the_floor() -> None:
    problem = instance("resnet18", coarse=True)
    floor = solve(problem.problem((0,))).floor[0]
    assert {name: rival(problem, floor // 2) for name, rival in RIVALS.items()} == dict.fromkeys(
        RIVALS
    )


def test_mdp_linearised_is_exact_on_its_ladder() -> None:
    problem = instance("mobilenet_v2", coarse=True)
    budget = problem.count(problem.dense())[1] // 2
    options = RIVALS["MDP"](problem, budget)
    assert options is not None
    assert problem.count(options)[0] == pytest.approx(
        solve(problem.problem((budget,))).value, rel=3e-4
    )


def two_groups() -> Instance:
    """b: one chunk worth 6 at 3000.  a: two chunks, worth 5 at 3000 and then 4 at 1000."""
    terms = [
        Term(
            f"makes {group}",
            (group,),
            np.array(value, dtype=float),
            np.array([cost]),
            reads=frozenset(),
            writes=frozenset({group}),
        )
        for group, value, cost in (("b", [0, 6], [1, 3001]), ("a", [0, 5, 9], [1, 3001, 4001]))
    ]
    return Instance({"b": np.array([1, 2]), "a": np.array([1, 2, 3])}, tuple(terms), (), (0,))


def test_halps_recurrence_misses_what_an_exact_knapsack_finds() -> None:
    # At 3000 the table holds b, so the first chunk of a is never taken, nor then the second.
    problem = two_groups()
    assert recurrence(1, problem, problem.dense(), 4002.0) == {"b": 1, "a": 0}
    assert exact_knapsack(problem, problem.dense(), 4002.5) == {"b": 0, "a": 2}
    assert solve(problem.problem((4002,))).value == 9.0


def test_only_the_lines_named_are_kept_off_standard_output(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with without_lines(b"Noise"):
        os.write(1, b"Noise from C\n")
        print("wanted")
        os.write(1, b"also wanted\nNoise again\n")
    print("after")
    assert capfd.readouterr().out == "wanted\nalso wanted\nafter\n"


def test_standard_output_comes_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), without_lines(b"Noise"):
        raise RuntimeError
    os.write(1, b"here\n")
    assert capfd.readouterr().out == "here\n"
