"""Allocation on network-shaped synthetic problems: certificate, time, memory, and rivals.

    python -m benchmarks.solver_synthetic [--networks resnet50 ...] [--coarse] [--no-rivals]

Prints one Markdown table per question.  Seconds are CPU seconds of the process, one thread.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from benchmarks.instance import Instance
from benchmarks.rivals import RIVALS
from benchmarks.solver_networks import NETWORKS, RESOURCES, instance
from fxprune.solver import Solution, front, measure, solve

SHARES = (0.8, 0.6, 0.5, 0.4, 0.25)
MIXED = ((0.6, 0.6, 0.6), (0.5, 0.7, 0.6), (0.4, 0.5, 0.6))
POINTS = 50

_T = TypeVar("_T")


def timed(work: Callable[[], _T]) -> tuple[_T, float]:
    """The result and the CPU seconds it took."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def peak(work: Callable[[], object]) -> float:
    """Megabytes allocated at most while working, beyond what was there before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def row(cells: list[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def header(title: str, cells: list[str]) -> None:
    print(f"\n## {title}\n")
    row(cells)
    row(["---"] * len(cells))


def certificate(solution: Solution) -> list[str]:
    if not solution.assignment:
        return [solution.status, ""]
    return [f"{solution.value:.3f}", f"{solution.gap:.1e}"]


def against_rivals(problem: Instance, name: str, rivals: list[str]) -> None:
    dense = problem.count(problem.dense())[1]
    for share in SHARES:
        budget = int(share * dense)
        task = problem.problem((budget,))
        solution, seconds = timed(partial(solve, task))
        megabytes = peak(partial(solve, task))
        cells = [name, f"{share:.0%}", *certificate(solution), f"{seconds:.2f}", f"{megabytes:.0f}"]
        for rival in rivals:
            options, spent = timed(partial(RIVALS[rival], problem, budget))
            if options is None or not solution.assignment:
                cells.append("none")
                continue
            value, latency = problem.count(options)
            assert latency <= budget, (rival, latency, budget)
            loss = round(100 * (1 - value / solution.value), 2) + 0.0  # no minus zero
            cells.append(f"{loss:.2f} % in {spent:.1f} s")
        row(cells)


def whole_front(problem: Instance, name: str) -> None:
    task = problem.problem((0,))
    floor, dense = solve(task).floor[0], problem.count(problem.dense())[1]
    budgets = [floor + (dense - floor) * i // POINTS for i in range(1, POINTS + 1)]
    solutions, seconds = timed(partial(front, task, budgets))
    gaps = sorted(solution.gap for solution in solutions)
    row([name, f"{gaps[POINTS // 2]:.1e}", f"{gaps[-1]:.1e}", f"{seconds:.2f}"])


def three_budgets(problem: Instance, name: str) -> None:
    dense = measure(problem.problem((0,) * 3), problem.dense())[1]
    for shares in MIXED:
        budgets = tuple(int(share * use) for share, use in zip(shares, dense, strict=True))
        task = problem.problem(budgets)
        solution, seconds = timed(partial(solve, task))
        used = [f"{use / whole:.1%}" for use, whole in zip(solution.use, dense, strict=True)]
        wanted = " / ".join(f"{share:.0%}" for share in shares)
        row([name, wanted, *certificate(solution), f"{seconds:.2f}", " / ".join(used)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--coarse", action="store_true", help="8 options per group")
    parser.add_argument("--no-rivals", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rivals = [] if arguments.no_rivals else list(RIVALS)
    problems = {
        name: instance(name, coarse=arguments.coarse, seed=arguments.seed)
        for name in arguments.networks
    }
    header(
        "One latency budget; rivals: loss of value against ours, and their time",
        ["network", "latency", "value", "gap", "CPU s", "MB", *rivals],
    )
    for name, problem in problems.items():
        against_rivals(problem, name, rivals)
    header(f"A front of {POINTS} budgets", ["network", "median gap", "largest gap", "CPU s"])
    for name, problem in problems.items():
        whole_front(problem, name)
    header(
        f"Three budgets: {', '.join(RESOURCES)}",
        ["network", "of dense", "value", "gap", "CPU s", "used"],
    )
    for name, problem in problems.items():
        three_budgets(problem, name)


if __name__ == "__main__":
    main()
