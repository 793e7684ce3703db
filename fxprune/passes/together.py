"""Which kernels are timed side by side: about as many as a network has, of all kinds.

What else runs decides what a kernel finds in the caches, so that all are to have company alike,
whenever they are measured. Neighbours slow a machine down for seconds, and with it all kernels that
are timed together then, depthwise ones more than others: so some of these are always the same, and
tell how much slower it is than when they were timed first (`python -m benchmarks.pace`).
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from math import exp, log
from statistics import fmean

from fxprune.backends.region import Region

TOGETHER = 32
MOST_NUMBERS = 2**24
"""In all tensors of kernels that are timed together: where these are large, there are fewer."""


def _convolution(width_in: int, width_out: int, size: int, kernel: int, groups: int = 1) -> Region:
    return Region(
        "conv",
        1,
        width_in,
        width_out,
        groups,
        (size, size),
        (kernel, kernel),
        padding=(kernel // 2, kernel // 2),
    )


REFERENCES = (
    _convolution(64, 64, 14, 3),
    _convolution(256, 64, 14, 1),
    _convolution(192, 192, 14, 3, groups=192),
    _convolution(96, 96, 28, 5, groups=96),
    _convolution(64, 256, 14, 1),
    _convolution(384, 384, 14, 3, groups=384),
    _convolution(32, 32, 28, 3),
    Region("linear", 1, 512, 512),
)
"""Kernels that are timed with all others, by which these are told at one pace. They take long
enough to be timed well, and little memory."""


def batches(regions: Collection[Region]) -> Iterator[list[Region]]:
    """All of these in random order, as many at once as are timed together with the references."""
    batch: list[Region] = []
    for region in random.Random(0).sample([*regions], len(regions)):
        if batch and not _fit([*batch, region, *REFERENCES]):
            yield batch
            batch = []
        batch.append(region)
    if batch:
        yield batch


def company(batch: Sequence[Region], others: Collection[Region]) -> list[Region]:
    """What to time a batch and the references with, to make it as many: some others.

    Args:
        others: kernels of the same network, as far as these can be timed; if there are none, it is
            the batch again.
    """
    some = [*(others or batch)]
    found: list[Region] = []
    for region in islice(cycle(random.Random(0).sample(some, len(some))), TOGETHER):
        if _fit([*batch, *REFERENCES, *found, region]):
            found.append(region)
    return found


def slowness(
    region: Region, timed: Iterable[tuple[Region, float]], known: Mapping[Region, float]
) -> float:
    """How many times longer references of the kind of `region` took than they are known to.

    All references, if there is none of its kind; 1 without any.

    Args:
        timed: kernels that were timed together with `region`, and the seconds that each took.
        known: seconds of the references.
    """
    times = [(other, log(seconds / known[other])) for other, seconds in timed if other in known]
    alike = [time for other, time in times if (other.groups > 1) == (region.groups > 1)]
    return exp(fmean(alike or [time for _, time in times] or [0.0]))


def _fit(regions: Collection[Region]) -> bool:
    numbers = sum(region.numbers for region in regions)
    return len(regions) <= TOGETHER and numbers <= MOST_NUMBERS
