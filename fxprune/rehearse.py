"""Rehearsals: slim networks that are measured only to put the tables right where they are needed.

Sums of kernels, put right in the dense network, can be off in narrow ones. Where candidates are
measured they put that right themselves; another machine, to which the tables are carried, has
nothing else to go by.
"""

from __future__ import annotations

from fxprune.budget import Budget
from fxprune.choose import build_allocator, gauge_of
from fxprune.prepare import Prepared
from fxprune.progress import Tell

SHARES = (0.8, 0.65, 0.5, 0.35)
"""Of the dense latency: what the networks that are rehearsed are to take."""


def rehearse(prepared: Prepared, tell: Tell) -> None:
    """Slim the network to several shares of its latency, and have the cache keep what is seen.

    Shares that are out of reach are left out, and backends that cannot profile tell nothing.
    """
    gauges = [
        gauge_of(Budget("latency", 1.0, relative=True, backend=place), prepared)
        for place, timed in prepared.timed.items()
        if timed.watch is not None and timed.profile
    ]
    if not gauges:
        return
    for done, share in enumerate(SHARES):
        tell("Rehearsing slim networks", done, len(SHARES))
        for gauge in gauges:
            gauge.limit = share * gauge.dense
        allocator = build_allocator(prepared, gauges)
        allocation = allocator.solve([gauge.limit for gauge in gauges])
        if not allocation.sizes:
            break
        slim = prepared.slim(allocation, {})
        for gauge in gauges:
            gauge.glance(slim, allocation)
            gauge.learn(allocation)
