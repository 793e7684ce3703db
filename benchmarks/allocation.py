"""Allocation on real networks: certificate, time, memory, and what others reach.

    python -m benchmarks.allocation [networks...] --out docs/allocation.md

Torchvision's networks with random weights.  The problems are those that `fxprune.optimize` makes,
with squared weights as importance and roofline tables as latency (`real_networks`); the rivals are
our own implementations of what the papers describe (`rivals`).  Seconds are CPU seconds of this
process, one thread.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import math
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torchvision

from benchmarks.instance import Instance
from benchmarks.real_networks import Network, read
from benchmarks.rivals import RIVALS
from benchmarks.solver_synthetic import peak, timed
from fxprune.passes.allocation.widths import SeparateChoices
from fxprune.prepare import ALIGNMENT
from fxprune.solver import Problem, front, measure, solve

NETWORKS = (
    "resnet18", "resnet50", "resnet101", "vgg16_bn", "mobilenet_v2", "efficientnet_b0",
    "regnet_y_400mf", "densenet121",
)  # fmt: skip
SHARES = (0.8, 0.6, 0.5, 0.4, 0.25)
MIXED = (
    (0.6, 0.6, 0.6), (0.5, 0.7, 0.6), (0.7, 0.5, 0.6), (0.6, 0.5, 0.7), (0.8, 0.6, 0.4),
    (0.4, 0.5, 0.5),
)  # fmt: skip
POINTS = 50
GAP = 1e-4


@dataclass(frozen=True)
class Reached:
    """What a rival reached: its value, None if it found nothing, and its CPU seconds."""

    value: float | None
    seconds: float


@dataclass(frozen=True)
class Row:
    """One network at one share of its dense latency."""

    network: str
    share: float
    status: str
    value: float
    bound: float
    gap: float
    seconds: float
    megabytes: float
    rivals: dict[str, Reached]

    def cells(self) -> list[str]:
        """For the table."""
        ours = [self.network, f"{self.share:.0%}"]
        if self.status == "infeasible":
            return [*ours, "infeasible", *[""] * (4 + len(self.rivals))]
        ours += [f"{self.value:.3f}", f"{self.bound:.3f}", f"{self.gap:.4%}"]
        ours += [f"{self.seconds:.2f}", f"{self.megabytes:.0f}"]
        return ours + [
            "-" if r.value is None else f"{r.value:.2f} in {r.seconds:.1f} s"
            for r in self.rivals.values()
        ]


@dataclass(frozen=True)
class Size:
    """How large a network's problem is, and the seconds to read it and to set it up."""

    network: str
    groups: int
    choices: int
    options: int
    entries: int
    factors: int
    reading: float
    building: float
    separate: bool


@dataclass(frozen=True)
class Sweep:
    """A front: the largest gap and the seconds for all of its points."""

    network: str
    gap: float
    seconds: float


@dataclass(frozen=True)
class Mixed:
    """Latency, MACs and parameters at once."""

    network: str
    shares: tuple[float, ...]
    status: str
    value: float
    gap: float
    seconds: float
    megabytes: float


@dataclass(frozen=True)
class Results:
    """All of it, in the order in which it was found."""

    sizes: list[Size]
    rows: list[Row]
    fronts: list[Sweep]
    mixed: list[Mixed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--out", type=Path, help="Markdown file")
    parser.add_argument("--rivals", nargs="*", choices=list(RIVALS), default=list(RIVALS))
    parser.add_argument("--mixed", nargs="*", help="networks to solve under three budgets at once")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = Results([], [], [], [])
    command = " ".join(["python -m benchmarks.allocation", *sys.argv[1:]])
    mixed = arguments.networks if arguments.mixed is None else arguments.mixed
    for name in arguments.networks:
        torch.manual_seed(arguments.seed)
        model = torchvision.models.get_model(name, weights=None).eval()
        image = (torch.zeros(1, 3, 224, 224),)
        network, reading = timed(partial(read, model, image, ALIGNMENT))
        investigate(name, network, reading, arguments.rivals, results)
        if name in mixed:
            results.mixed.extend(three_budgets(name, network))
        if arguments.out is not None:
            arguments.out.write_text(as_markdown(results, command))
    print(as_markdown(results, command))


def investigate(
    name: str, network: Network, reading: float, rivals: Sequence[str], results: Results
) -> None:
    """One latency budget after the other, and the front."""
    allocator, building = timed(partial(network.allocator, network.latency))
    problem = allocator.problem
    instance = network.instance(allocator.choices)
    results.sizes.append(
        Size(
            network=name,
            groups=len(network.ladders),
            choices=len(problem.choices),
            options=sum(choice.options for choice in problem.choices),
            entries=sum(factor.value.size for factor in problem.factors),
            factors=len(problem.factors),
            reading=reading,
            building=building,
            separate=isinstance(allocator.choices, SeparateChoices),
        )
    )
    for share in SHARES:
        results.rows.append(against_rivals(name, share, problem, instance, rivals))
        print(" | ".join(results.rows[-1].cells()), flush=True)
    results.fronts.append(whole_front(name, problem, instance))
    print(results.fronts[-1], flush=True)


def against_rivals(
    name: str, share: float, problem: Problem, instance: Instance, rivals: Sequence[str]
) -> Row:
    """Ours and theirs at a share of the dense latency, all counted by the product's tables."""
    budget = int(share * measure(problem, instance.dense())[1][0])
    task = replace(problem, budgets=(budget,))
    solution, seconds = timed(partial(solve, task, gap=GAP))
    megabytes = peak(partial(solve, task, gap=GAP))
    reached = {}
    for rival in rivals:
        options, spent = timed(partial(RIVALS[rival], instance, budget))
        value = None
        if options is not None:
            value, (latency,) = measure(task, options)
            if latency > budget or value > solution.bound * (1 + 1e-9):
                raise RuntimeError(f"{rival} on {name}: {value} at {latency} of {budget}")
        reached[rival] = Reached(value, spent)
    return Row(
        name,
        share,
        solution.status,
        solution.value,
        solution.bound,
        solution.gap,
        seconds,
        megabytes,
        reached,
    )


def whole_front(name: str, problem: Problem, instance: Instance) -> Sweep:
    """Budgets evenly from the least latency to that of the dense network."""
    floor = solve(replace(problem, budgets=(0,))).floor[0]
    dense = measure(problem, instance.dense())[1][0]
    budgets = [floor + (dense - floor) * i // POINTS for i in range(1, POINTS + 1)]
    solutions, seconds = timed(partial(front, problem, budgets, gap=GAP))
    return Sweep(name, max(solution.gap for solution in solutions), seconds)


def three_budgets(name: str, network: Network) -> list[Mixed]:
    """Latency, MACs and parameters, each at a share of the dense network's."""
    allocator = network.allocator(network.latency, network.macs, network.params)
    found = []
    for shares in MIXED:
        pairs = zip(shares, allocator.dense_costs(), strict=True)
        budgets = tuple(math.floor(share * dense) for share, dense in pairs)
        task = replace(allocator.problem, budgets=budgets)
        solution, seconds = timed(partial(solve, task, gap=GAP))
        found.append(
            Mixed(
                name,
                shares,
                solution.status,
                solution.value,
                solution.gap,
                seconds,
                peak(partial(solve, task, gap=GAP)),
            )
        )
        print(found[-1], flush=True)
    return found


def as_markdown(results: Results, command: str) -> str:
    """The tables, with what they were made by."""
    text = io.StringIO()
    versions = ", ".join(
        f"{package} {importlib.metadata.version(package)}"
        for package in ("torch", "torchvision", "numpy", "scipy")
    )
    text.write(
        "# Allocation\n\n"
        f"Written by `{command}`.\nPython {platform.python_version()}, {versions}; {processor()}, "
        "one thread, CPU seconds.\n\n"
        "Torchvision's structures with random weights; importance is the squares of these weights; "
        "latencies are\na roofline model of a GPU at batch 128, not measured. The problem solved "
        "is the product's own, with its\nladders; every allocation is counted by the same tables. "
        f"The dense network is worth 100, and gaps are to be\nat most {GAP:.2%}.\n"
    )
    _problems(text, results.sizes)
    _rows(text, results.rows)
    _summary(text, results)
    _table(
        text,
        f"A front of {POINTS} budgets",
        ["network", "largest gap", "CPU s"],
        [[f.network, f"{f.gap:.4%}", f"{f.seconds:.2f}"] for f in results.fronts],
    )
    if not results.mixed:
        return text.getvalue()
    _table(
        text,
        "Latency, MACs and parameters at once",
        ["network", "of dense", "status", "value", "gap", "CPU s", "MB"],
        [
            [
                m.network,
                " / ".join(f"{share:.0%}" for share in m.shares),
                m.status,
                f"{m.value:.3f}" if m.status != "infeasible" else "",
                f"{m.gap:.4%}" if m.status != "infeasible" else "",
                f"{m.seconds:.2f}",
                f"{m.megabytes:.0f}",
            ]
            for m in results.mixed
        ],
    )
    return text.getvalue()


def processor() -> str:
    """What this machine calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _problems(text: io.StringIO, sizes: Sequence[Size]) -> None:
    cells = [
        [
            s.network + ("*" if s.separate else ""),
            *(f"{n}" for n in (s.groups, s.choices, s.options, s.factors, s.entries)),
            f"{s.reading:.1f}",
            f"{s.building:.1f}",
        ]
        for s in sizes
    ]
    head = ["network", "groups", "choices", "options", "factors", "table entries", "read s"]
    _table(text, "The problems", [*head, "build s"], cells)
    if any(s.separate for s in sizes):
        text.write("\n\\* concatenations to first order.\n")


def _rows(text: io.StringIO, rows: Sequence[Row]) -> None:
    rivals = list(rows[0].rivals) if rows else []
    head = ["network", "latency", "value", "bound", "gap", "CPU s", "MB", *rivals]
    _table(text, "One latency budget: our value, and the rivals'", head, [r.cells() for r in rows])
    text.write(
        "\n-: the method found nothing within the budget, or does not apply: HALP, SMCP and MDP "
        "know no concatenations.\nMDP runs on 8 widths per group, to which its program is "
        "limited. Values are those of the true joint tables.\n"
    )


def _summary(text: io.StringIO, results: Results) -> None:
    solved = [row for row in results.rows if row.status != "infeasible"]
    text.write("\n## Summary\n\n")
    if not solved:
        return
    gap, slowest = max(row.gap for row in solved), max(solved, key=lambda row: row.seconds)
    largest = max(row.megabytes for row in solved)
    text.write(
        f"- largest gap {gap:.4%}; most CPU seconds {slowest.seconds:.2f} ({slowest.network}, "
        f"{slowest.share:.0%}); most memory {largest:.0f} MB\n"
    )
    for rival in solved[0].rivals:
        pairs = [(row.value, row.rivals[rival].value) for row in solved]
        losses = [(ours - theirs) / ours for ours, theirs in pairs if theirs is not None]
        above = sum(loss < 0 for loss in losses)
        if losses:
            text.write(
                f"- {rival}: {len(losses)} of {len(solved)} found; loses "
                f"{sum(losses) / len(losses):.2%} of our value on average, at most "
                f"{max(losses):.2%}; above our value in {above} cases\n"
            )


def _table(
    text: io.StringIO, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    text.write(f"\n## {title}\n\n| {' | '.join(head)} |\n|{' --- |' * len(head)}\n")
    for row in rows:
        text.write(f"| {' | '.join(row)} |\n")


if __name__ == "__main__":
    main()
