"""Which kernels are timed side by side: about as many as a network has, of all kinds.

What else runs decides what a kernel finds in the caches, so that all are to have company alike,
whenever they are measured.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import cycle, islice

from fxprune.backends.region import Region

TOGETHER = 32
MOST_NUMBERS = 2**24
"""In all tensors of kernels that are timed together: where these are large, there are fewer."""


def batches(regions: Collection[Region]) -> Iterator[list[Region]]:
    """All of these in random order, as many at once as are timed together."""
    batch: list[Region] = []
    for region in random.Random(0).sample([*regions], len(regions)):
        if batch and not _fit([*batch, region]):
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


def _fit(regions: Collection[Region]) -> bool:
    return len(regions) <= TOGETHER and _numbers(regions) <= MOST_NUMBERS


def _numbers(regions: Iterable[Region]) -> int:
    return sum(region.numbers for region in regions)
