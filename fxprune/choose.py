"""The best network that keeps all budgets, by the way of searching that suits them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from fxprune.black_box import search_candidate, with_proxies
from fxprune.budget import Budget
from fxprune.closed_loop import Candidate, Slim, close_the_loop
from fxprune.gauges import (
    Gauge,
    LatencyGauge,
    MacsGauge,
    MemoryGauge,
    MetricGauge,
    ParamsGauge,
    TabledLatencyGauge,
    TimedGauge,
)
from fxprune.passes.allocate import Allocator
from fxprune.peaks import Peak, binding
from fxprune.prepare import Prepared
from fxprune.progress import Tell
from fxprune.reach import warn_of_frozen_parts

Search = Callable[[Sequence[Gauge]], tuple[Allocator, Candidate]]


@dataclass(frozen=True)
class Choice:
    """The network that was chosen.

    Attributes:
        allocator: the problem that it solves.
        limits: what every budget that was looked at comes to.
        calls: how often budgets that are functions were called.
        latencies: the gauge of every backend whose latency counts, as in `Prepared.timed`.
    """

    candidate: Candidate
    allocator: Allocator
    limits: tuple[float, ...]
    calls: int
    latencies: Mapping[str | None, TimedGauge]


def choose(prepared: Prepared, budgets: Sequence[Budget], slim: Slim, tell: Tell) -> Choice:
    """The most valuable network found that keeps every budget, as measured.

    Raises:
        BudgetError: no network within reach keeps them; with the least that can be reached.
    """
    peaks = [
        Peak.of(budget, prepared.module, prepared.analysis, prepared.forms.blocks())
        for budget in budgets
        if budget.resource == "activations"
    ]
    gauges = [gauge_of(b, prepared) for b in budgets if b.resource != "activations"]
    limits = tuple(gauge.limit for gauge in gauges)
    for gauge in gauges:
        warn_of_frozen_parts(prepared, gauge)
    functions = [gauge for gauge in gauges if isinstance(gauge, MetricGauge)]
    step = partial(tell, "Slimming and measuring")
    find: Search = partial(_by_loop, prepared, slim, step)
    if len(functions) == 1 and not prepared.timed:
        gauges = [gauge for gauge in gauges if gauge is not functions[0]]
        find = partial(_by_search, prepared, functions[0], slim, step)
    if peaks:
        gauges = binding(peaks, gauges, partial(build_allocator, prepared))
    while True:
        allocator, candidate = find(gauges)
        # What measuring changed may have brought another moment to the fore.
        exceeded = [gauge for peak in peaks for gauge in peak.exceeded(candidate.allocation)]
        if not exceeded:
            calls = sum(gauge.calls for gauge in functions)
            latencies = {g.budget.backend: g for g in gauges if isinstance(g, TimedGauge)}
            return Choice(candidate, allocator, limits, calls, latencies)
        gauges = [*gauges, *exceeded]


def gauge_of(budget: Budget, prepared: Prepared) -> Gauge:
    """How a budget, other than one on activations, is predicted and measured on this model."""
    if budget.resource == "latency":
        timed = prepared.timed[budget.backend]
        if timed.watch is None:
            return TabledLatencyGauge(budget, timed)
        return LatencyGauge(budget, timed)
    if budget.resource == "macs":
        return MacsGauge(budget, prepared.analysis)
    if budget.resource == "params":
        return ParamsGauge(budget, prepared.module, prepared.analysis)
    if budget.resource == "memory":
        return MemoryGauge(budget, prepared.module, prepared.analysis)
    return MetricGauge(budget, prepared.module, prepared.analysis)


def build_allocator(prepared: Prepared, gauges: Sequence[Gauge]) -> Allocator:
    """The problem that a network solves, with the costs that budgets limit."""
    return Allocator.build(
        prepared.analysis,
        prepared.ladders,
        prepared.importance,
        [gauge.tables for gauge in gauges],
        [gauge.unit for gauge in gauges],
        prepared.forms,
    )


def _by_loop(
    prepared: Prepared, slim: Slim, step: Callable[[int, int], None], gauges: Sequence[Gauge]
) -> tuple[Allocator, Candidate]:
    return close_the_loop(gauges, partial(build_allocator, prepared, gauges), slim, step)


def _by_search(
    prepared: Prepared,
    function: MetricGauge,
    slim: Slim,
    step: Callable[[int, int], None],
    gauges: Sequence[Gauge],
) -> tuple[Allocator, Candidate]:
    allocator = with_proxies(prepared, gauges)
    return allocator, search_candidate(function, gauges, allocator, slim, step)
