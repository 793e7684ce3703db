"""The long run of the generated-network test.

    python -m tests.fuzz_long --graphs 10000 --seed 0

Every seed is one random network with random kept positions, put through all checks of
`tests.properties`. Printed are the seeds, what was counted, how often each typing rule fired, and
for each failure the command that repeats it alone. The exit status is the number of failures, at
most 100.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload

from fxprune.passes import tracker
from fxprune.passes.capture import Captured, capture
from fxprune.passes.export import capture_by_export
from fxprune.passes.rules import RULES
from fxprune.passes.rules.base import Rule
from tests.generate import generate
from tests.properties import examine

How = Callable[[nn.Module, tuple[Any, ...]], Captured]


def by_export(model: nn.Module, inputs: tuple[Any, ...]) -> Captured:
    """Capture by `torch.export`, even where symbolic tracing would do."""
    return Captured(*capture_by_export(model, inputs, {}), "torch.export")


CAPTURES: dict[str, How] = {"default": capture, "export": by_export}


# The CPU splits these before a rule sees them; some devices keep them whole.
ON_OTHER_DEVICES = frozenset({"contraction.linear", "recurrent.fused_cell"})


def name_of(rule: Rule) -> str:
    """A rule by its family and its own name."""
    return f"{rule.__module__.rpartition('.')[2]}.{rule.__name__}"


class CountingRules:
    """The table of rules, counting what it is asked for: by rule and by operator."""

    def __init__(self) -> None:
        self.rules: Counter[str] = Counter()
        self.operators: Counter[str] = Counter()

    def find(self, func: OpOverload) -> Rule:
        found = RULES.find(func)
        self.rules[name_of(found)] += 1
        self.operators[func.overloadpacket.__name__] += 1
        return found


@contextmanager
def counted_rules() -> Iterator[CountingRules]:
    """Count the rules that inference applies inside."""
    counting = CountingRules()
    tracker.RULES, before = counting, tracker.RULES  # type: ignore[assignment]
    try:
        yield counting
    finally:
        tracker.RULES = before


@dataclass
class Tally:
    """What came out of some seeds."""

    graphs: int = 0
    nodes: int = 0
    groups: int = 0
    slimmed: int = 0
    worst: float = 0.0
    captures: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    operators: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        self.graphs += other.graphs
        self.nodes += other.nodes
        self.groups += other.groups
        self.slimmed += other.slimmed
        self.worst = max(self.worst, other.worst)
        for mine, theirs in (
            (self.captures, other.captures),
            (self.rules, other.rules),
            (self.operators, other.operators),
        ):
            mine.update(theirs)
        self.failures |= other.failures


def run_seed(seed: int, how: str = "default") -> Tally:
    """All checks on the network number `seed`; what fails is noted, not raised."""
    torch.set_num_threads(1)
    tally = Tally(graphs=1)
    with counted_rules() as counting:
        try:
            case = generate(seed)
            seen = examine(case.model, case.inputs, seed, case.samples, CAPTURES[how])
        except Exception as error:
            tally.failures[seed] = f"{type(error).__name__}: {error}"
        else:
            tally.nodes = len(seen.captured.module.graph.nodes)
            tally.groups = len(seen.analysis.groups)
            tally.slimmed = seen.verification.slimmed
            tally.worst = seen.verification.max_error
            tally.captures[seen.captured.capture] += 1
    tally.rules, tally.operators = counting.rules, counting.operators
    return tally


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Random networks through every check.")
    parser.add_argument("--graphs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--capture", choices=sorted(CAPTURES), default="default")
    options = parser.parse_args(arguments)
    seeds = range(options.seed, options.seed + options.graphs)
    print(f"seeds {seeds.start} to {seeds.stop - 1}, torch {torch.__version__}", flush=True)
    total, started = Tally(), time.perf_counter()
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        ways = [options.capture] * len(seeds)
        for tally in pool.map(run_seed, seeds, ways, chunksize=10):
            total.add(tally)
            for seed, what in tally.failures.items():
                again = f"python -m tests.fuzz_long --graphs 1 --seed {seed}"
                print(f"FAILED seed {seed}: {what}\n    {again} --capture {options.capture}")
            if total.graphs % 100 == 0:
                seconds = time.perf_counter() - started
                print(f"{total.graphs} graphs in {seconds:.0f} s", flush=True)
    show(total)
    return min(100, len(total.failures))


def show(total: Tally) -> None:
    """Print what was counted."""
    captures = ", ".join(f"{count} by {name}" for name, count in total.captures.items())
    print(f"{total.graphs} graphs ({captures}), {len(total.failures)} failures")
    print(f"{total.nodes} nodes, {total.groups} groups, {total.slimmed} slimmed results compared")
    print(f"largest relative error {total.worst:.3g}")
    silent = sorted({name_of(rule) for rule in RULES} - set(total.rules) - ON_OTHER_DEVICES)
    print(f"typing rules that never fired: {', '.join(silent) or 'none'}")
    for title, counter in (("rule", total.rules), ("operator", total.operators)):
        print(f"\n{title:<40}{'calls':>12}")
        for name, count in counter.most_common():
            print(f"{name:<40}{count:>12}")


if __name__ == "__main__":
    sys.exit(main())
