"""Budgets on activation memory: gauges for the moments that could exceed them.

A deep network has dozens of moments that could, but only a few of them bind. So they are added one
by one: the allocation is solved, the moment that exceeds the limit most becomes a budget of its
own, and it is solved again until none does. The answer is the best for all of them, since it is the
best for some of them and keeps the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import fx

from fxprune.budget import Budget
from fxprune.gauges import Gauge
from fxprune.passes.allocate import Allocation, Allocator
from fxprune.passes.allocation.activations import Moment, critical, moments, peak
from fxprune.passes.allocation.widths import Choices, Tables
from fxprune.passes.blocks import Block
from fxprune.passes.infer import Analysis

Build = Callable[[Sequence[Gauge]], Allocator]


class MomentGauge(Gauge):
    """Bytes that are alive at one moment."""

    def __init__(self, budget: Budget, limit: float, whole: float, moment: Moment) -> None:
        self.budget = budget
        self.moment = moment
        self.limit, self.whole = limit, whole
        self.dense = float(moment.bytes({}))

    def tables(self, choices: Choices) -> Tables:
        return self.moment.tables(choices)

    def actual(self, slim: fx.GraphModule, allocation: Allocation) -> float:
        return float(self.moment.bytes(allocation.sizes, allocation.gone))


@dataclass(frozen=True)
class Peak:
    """One budget on activation memory, with the moments that could exceed it, worst one first."""

    budget: Budget
    gauges: tuple[MomentGauge, ...]

    @staticmethod
    def of(
        budget: Budget, module: fx.GraphModule, analysis: Analysis, blocks: Sequence[Block]
    ) -> Peak:
        """The budget on a captured model whose `blocks` may be dropped."""
        found = moments(module, analysis, blocks)
        whole = float(peak(found, {}))
        limit = budget.resolve(whole)
        over = critical(found, limit) or critical(found, limit - 1)
        worst_first = sorted(over, key=lambda moment: -moment.bytes({}))
        return Peak(budget, tuple(MomentGauge(budget, limit, whole, m) for m in worst_first))

    def exceeded(self, allocation: Allocation) -> list[Gauge]:
        """The moment that exceeds the limit most, if one does."""
        sizes, gone = allocation.sizes, allocation.gone
        worst = max(self.gauges, key=lambda gauge: gauge.moment.bytes(sizes, gone))
        return [worst] if worst.moment.bytes(sizes, gone) > worst.limit else []


def binding(peaks: Sequence[Peak], gauges: Sequence[Gauge], build: Build) -> list[Gauge]:
    """`gauges` with those moments of `peaks` that bind beside them, as the tables tell costs."""
    chosen = [*gauges, *(found.gauges[0] for found in peaks)]
    while True:
        allocation = build(chosen).solve([gauge.limit for gauge in chosen])
        if not allocation.sizes:
            return chosen
        exceeded = [gauge for found in peaks for gauge in found.exceeded(allocation)]
        if not exceeded:
            return chosen
        chosen += exceeded
