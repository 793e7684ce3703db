"""Gauges: what a budget predicts from tables, and what a slim network turns out to use."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial

import numpy as np
from torch import fx

from fxprune.budget import Budget
from fxprune.errors import InputError
from fxprune.measurement import Interval
from fxprune.passes.allocate import Allocation
from fxprune.passes.allocation import costs
from fxprune.passes.allocation.widths import Choices, Tables
from fxprune.passes.infer import Analysis
from fxprune.passes.latency import LatencyModel
from fxprune.passes.merge import merged
from fxprune.passes.seen import is_familiar
from fxprune.sizes import count_params, weight_bytes
from fxprune.stopwatch import Times
from fxprune.timed import Timed

CLEAR = 0.01
"""How well the latency of a candidate is to be known, as a share of it: two thirds of how far the
aim is from a limit."""
ROUGHLY = 0.02
"""The same for a network that is no candidate, but puts tables right."""
CONFIRMED = 0.005
"""How well that of a candidate in the window is to be known when it is compiled once more, if this
can be had in the time."""


class Gauge(ABC):
    """One budget: its limit, its tables, and how to find out what a candidate really uses."""

    budget: Budget
    limit: float
    dense: float
    whole: float
    """What the dense network uses of the budget's resource: what messages compare with."""
    aim: float = 1.0
    """Share of the limit to aim at, so that noise does not carry the candidate over it."""
    unit: float = 1.0
    """What costs are counted in by the solver."""
    lowest: float = 0.97
    """Share of the limit under which a better candidate is looked for."""
    margin: float = 0.0
    """Share of the limit by which a candidate should lie inside of that window, so that it still
    does when measured once more."""

    @abstractmethod
    def tables(self, choices: Choices) -> Tables:
        """The cost as tables over the choices."""

    @property
    def known(self) -> int:
        """The number of slim networks that have put the tables right."""
        return 0

    @property
    def familiar(self) -> bool:
        """Whether the tables are as right near the limit as they can be without candidates."""
        return True

    def rehearse(self, slim: fx.GraphModule, allocation: Allocation) -> float:
        """Put the tables right by a network that is no candidate; what it uses, nan if unknown."""
        del slim, allocation
        return math.nan

    @abstractmethod
    def actual(self, slim: fx.GraphModule, allocation: Allocation) -> float:
        """What a candidate really uses."""

    def learn(self, allocation: Allocation) -> bool:
        """Put the tables right by the candidate that was measured last; whether they changed."""
        del allocation
        return False

    def surely_keeps(self, used: float) -> bool:
        """Whether what uses so much would keep the limit if it were measured once more."""
        return used <= self.limit * (1 - self.margin)


def surely_keep(gauges: Sequence[Gauge], used: Sequence[float]) -> bool:
    """Whether what uses so much would keep every limit if it were measured once more."""
    return all(gauge.surely_keeps(each) for gauge, each in zip(gauges, used, strict=True))


class MacsGauge(Gauge):
    """Multiply-accumulates of one forward pass on the example inputs."""

    def __init__(self, budget: Budget, analysis: Analysis) -> None:
        self.budget = budget
        self._analysis = analysis
        self.dense = self.whole = float(costs.macs(analysis))
        self.limit = budget.resolve(self.dense)

    def tables(self, choices: Choices) -> Tables:
        return costs.macs_tables(self._analysis, choices)

    def actual(self, slim: fx.GraphModule, allocation: Allocation) -> float:
        gone, merged = allocation.gone, allocation.merged
        return float(costs.macs(self._analysis, allocation.sizes, gone, merged))


class ParamsGauge(Gauge):
    """Number of parameters."""

    def __init__(self, budget: Budget, module: fx.GraphModule, analysis: Analysis) -> None:
        self.budget = budget
        self._module, self._analysis = module, analysis
        self.dense = self.whole = float(count_params(module))
        self.limit = budget.resolve(self.dense)

    def tables(self, choices: Choices) -> Tables:
        return costs.params_tables(self._module, self._analysis, choices)

    def actual(self, slim: fx.GraphModule, allocation: Allocation) -> float:
        return float(count_params(merged(slim)))


class MemoryGauge(Gauge):
    """Bytes of weights: parameters and buffers."""

    def __init__(self, budget: Budget, module: fx.GraphModule, analysis: Analysis) -> None:
        self.budget = budget
        self._module, self._analysis = module, analysis
        self.dense = self.whole = float(weight_bytes(module))
        self.limit = budget.resolve(self.dense)

    def tables(self, choices: Choices) -> Tables:
        return costs.memory_tables(self._module, self._analysis, choices)

    def actual(self, slim: fx.GraphModule, allocation: Allocation) -> float:
        return float(weight_bytes(merged(slim)))


class MetricGauge(Gauge):
    """Any function of the slim module. Its prediction is that it follows the MACs.

    Attributes:
        calls: how often the function was called.
    """

    lowest = 0.9

    def __init__(self, budget: Budget, module: fx.GraphModule, analysis: Analysis) -> None:
        self.budget = budget
        self.calls = 0
        self._analysis = analysis
        self.dense = self.whole = self._evaluate(module)
        self.limit = budget.resolve(self.dense)
        self.unit = abs(self.dense) * 1e-7 or 1.0

    def tables(self, choices: Choices) -> Tables:
        tables = costs.macs_tables(self._analysis, choices)
        per_mac = self.dense / costs.macs(self._analysis)
        scaled = {scope: table * per_mac for scope, table in tables.by_scope.items()}
        return Tables(tables.domains, tables.constant * per_mac, scaled)

    def actual(self, slim: fx.GraphModule, allocation: Allocation) -> float:
        return self._evaluate(slim)

    def _evaluate(self, module: fx.GraphModule) -> float:
        assert callable(self.budget.resource)
        self.calls += 1
        try:
            value = float(self.budget.resource(module))
        except Exception as error:
            raise InputError(
                f"The budget function fails on a slim module: {type(error).__name__}: {error}",
                f"budget {self.budget.name}",
                "It is called with a torch.fx.GraphModule and returns a number",
            ) from error
        if not np.isfinite(value):
            raise InputError(f"The budget function returns {value}", f"budget {self.budget.name}")
        return value


class TimedGauge(Gauge):
    """Seconds of one forward pass, by tables.

    Attributes:
        timed: the tables, with all that slim networks told.
    """

    unit = 1e-9

    def __init__(self, budget: Budget, timed: Timed) -> None:
        self.budget = budget
        self.dense = self.whole = timed.seconds
        self.limit = budget.resolve(self.dense)
        self.timed = timed

    def model(self, choices: Choices) -> LatencyModel:
        """The latency of the whole network, right near the limit."""
        return self.timed.model(choices, self.limit)

    def tables(self, choices: Choices) -> Tables:
        return self.model(choices).tables

    @property
    def known(self) -> int:
        return len(self.timed.seen)


class LatencyGauge(TimedGauge):
    """Seconds of one forward pass, as measured."""

    aim = 0.985
    margin = 0.0075

    def __init__(self, budget: Budget, timed: Timed) -> None:
        super().__init__(budget, timed)
        assert timed.watch is not None, "nothing can be measured elsewhere"
        self._watch = timed.watch

    def learn(self, allocation: Allocation) -> bool:
        before, self.timed = self.timed, self.timed.having_seen(allocation)
        return self.timed is not before

    @property
    def familiar(self) -> bool:
        near = (is_familiar(some, self.limit) for some in self.timed.seen)
        return not self.timed.profile or any(near)

    def rehearse(self, slim: fx.GraphModule, allocation: Allocation) -> float:
        if self.familiar:
            return math.nan
        found = self._seconds(
            self._watch.time(slim, lambda times: times.share.is_known_to(ROUGHLY))
        )
        self.learn(allocation)
        return found.value

    def actual(self, slim: fx.GraphModule, allocation: Allocation) -> float:
        found = self._seconds(self._watch.time(slim, self._known))
        if self.lowest * self.limit <= found.value <= self.limit:
            # Of several candidates some lie inside by chance: what both times come to counts.
            found = self._seconds(
                self._watch.again(slim, partial(self._known, tolerance=CONFIRMED))
            )
        return found.value

    def _known(self, times: Times, tolerance: float = CLEAR) -> bool:
        """Whether its latency is known, or known to be outside of the window."""
        found, least = self._seconds(times), self.lowest * self.limit
        # Not until it lies inside, which it will by chance.
        return found.is_known_to(tolerance) or found.high < least or found.low > self.limit

    def _seconds(self, found: Times) -> Interval:
        """Seconds with their confidence interval."""
        if not self.budget.relative:
            return found.seconds
        # Relative to the dense network as it ran beside the candidate, drift and all.
        share = found.share
        return Interval(*(self.dense * bound for bound in (share.value, share.low, share.high)))


class TabledLatencyGauge(TimedGauge):
    """Seconds of one forward pass on another machine, as its tables tell."""

    def __init__(self, budget: Budget, timed: Timed) -> None:
        super().__init__(budget, timed)
        self._tables: Tables | None = None

    def tables(self, choices: Choices) -> Tables:
        self._tables = super().tables(choices)
        return self._tables

    def actual(self, slim: fx.GraphModule, allocation: Allocation) -> float:
        assert self._tables is not None, "an allocation is made from tables"
        return self._tables.at(allocation.solution.assignment)
