"""Which kernels are timed side by side: about as many as a network has, of all kinds.

What else runs decides what a kernel finds in the caches, so that all are to have company alike,
whenever they are measured. Neighbours slow a machine down for seconds, and with it all kernels that
are timed together then: so some of these are known, and tell how fast it is (`python -m
benchmarks.pace`).
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from statistics import median

from fxprune.backends.region import Region

TOGETHER = 32
MOST_NUMBERS = 2**24
"""In all tensors of kernels that are timed together: where these are large, there are fewer."""
UNKNOWN = 0.75
"""Share of both that kernels take which are not known yet."""


def batches(regions: Collection[Region]) -> Iterator[list[Region]]:
    """All of these in random order, as many at once as leave room for company."""
    batch: list[Region] = []
    for region in random.Random(0).sample([*regions], len(regions)):
        if batch and not _fit([*batch, region], UNKNOWN):
            yield batch
            batch = []
        batch.append(region)
    if batch:
        yield batch


def company(batch: Sequence[Region], others: Collection[Region]) -> list[Region]:
    """What to time a batch with, to make it as many: some others, or else the batch again."""
    some = [*(others or batch)]
    found: list[Region] = []
    for region in islice(cycle(random.Random(0).sample(some, len(some))), TOGETHER):
        if _fit([*batch, *found, region]):
            found.append(region)
    return found


def references(known: Mapping[Region, float]) -> list[Region]:
    """The kernels by which a pace is told: the slower half, which is timed best.

    Args:
        known: seconds.
    """
    slowest = sorted(known, key=lambda region: known[region], reverse=True)
    return slowest[: (len(slowest) + 1) // 2]


def pace(told: Iterable[tuple[Region, float]], known: Mapping[Region, float]) -> float:
    """How many times longer kernels took than they are known to: once, if none of them is known.

    Args:
        told: seconds that each took.
        known: seconds.
    """
    times = [seconds / known[region] for region, seconds in told if region in known]
    return median(times) if times else 1.0


def _fit(regions: Collection[Region], share: float = 1.0) -> bool:
    numbers = sum(region.numbers for region in regions)
    return len(regions) <= share * TOGETHER and numbers <= share * MOST_NUMBERS
