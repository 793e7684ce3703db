"""Rehearsals: slim networks that are measured only to put the tables right where they are needed.

Sums of kernels, put right in the dense network, can be off in narrow ones. Where candidates are
measured they put that right themselves; another machine, to which the tables are carried, has
nothing else to go by.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from fxprune.budget import Budget
from fxprune.choose import build_allocator, gauge_of
from fxprune.closed_loop import rehearsed
from fxprune.gauges import TimedGauge
from fxprune.prepare import Prepared
from fxprune.progress import Tell

SHARES = (0.8, 0.65, 0.5, 0.35)
"""Of the dense latency: what the networks that are rehearsed are to take."""


def rehearse(prepared: Prepared, tell: Tell) -> None:
    """Slim the network to several shares of its latency, and have the cache keep what is seen.

    Shares that are known or out of reach are left out; backends that cannot profile tell nothing.
    """
    for done, share in enumerate(SHARES):
        tell("Rehearsing slim networks", done, len(SHARES))
        gauges = [
            gauge_of(Budget("latency", share, relative=True, backend=place), prepared)
            for place in prepared.timed
        ]
        if all(gauge.familiar for gauge in gauges):
            continue
        allocation = build_allocator(prepared, gauges).solve([gauge.limit for gauge in gauges])
        if not allocation.sizes:
            break
        rehearsed(allocation, gauges, partial(prepared.slim, meta={}))
        told = {g.budget.backend: g.timed for g in gauges if isinstance(g, TimedGauge)}
        prepared = replace(prepared, timed=told)
