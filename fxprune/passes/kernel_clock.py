"""The seconds of kernels, by the backend's own profiles where it has some, or else by the clock.

Measurements are cached, and shared between layers and models. Those of kernels that are timed side
by side are told at one pace of the machine, whatever it was when each was timed (`together`).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from fxprune.backends import profiles
from fxprune.backends.base import Backend
from fxprune.backends.region import Region
from fxprune.backends.settings import Settings
from fxprune.cache import Cache, Key
from fxprune.errors import FxpruneError
from fxprune.measure import PROTOCOL, Timing, measure
from fxprune.passes.layers import Layer
from fxprune.passes.together import REFERENCES, batches, company, slowness

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

KERNEL_TIMING = Timing(tolerance=0.02, min_samples=12, max_seconds=0.5, warm_up=0.005)


@dataclass
class KernelClock:
    """Measures kernels, each once; the cache keeps them.

    Attributes:
        beside: kernels of the network that these are to run in.
        known: seconds of kernels.
        wanted: the layers that kernels are for.
        references: seconds of those kernels by which others are told at one pace; None until they
            are needed, and as many as can be timed.
    """

    backend: Backend
    settings: Settings
    device: str
    cache: Cache
    step: Callable[[int, int], None] | None
    beside: tuple[Region, ...]
    known: dict[Region, float] = field(default_factory=dict)
    wanted: dict[Region, Layer] = field(default_factory=dict)
    references: Mapping[Region, float] | None = None

    def measure(self, wanted: Iterable[tuple[Region, Layer]]) -> None:
        """Have all of these regions known; an error names the layer that one is for."""
        self.wanted |= wanted
        self.known |= self._recall(self.wanted.keys() - self.known.keys())
        self._tell()
        for batch in batches([region for region in self.wanted if region not in self.known]):
            told = self._together(batch)
            for region in batch:
                seconds = told[region] if told else self._by_the_clock(region)
                self.cache.put(self._key(region), {"seconds": seconds})
                self.known[region] = seconds
                self._tell()

    def read(self, regions: Iterable[Region]) -> Array:
        """Seconds of regions that are known."""
        return np.array([self.known[region] for region in regions])

    def _recall(self, regions: Iterable[Region]) -> dict[Region, float]:
        """Seconds of those of these regions that the cache knows."""
        some = [*regions]
        found = self.cache.get_many([self._key(region) for region in some])
        entries = zip(some, found, strict=True)
        return {region: float(entry["seconds"]) for region, entry in entries if entry is not None}

    def _key(self, region: Region) -> Key:
        backend = self.backend
        protocol = f"{PROTOCOL} {profiles.PROTOCOL}"
        device, version = backend.device(self.device), backend.version()
        return Key(device, backend.name, version, self.settings, region.signature(), protocol)

    def _tell(self) -> None:
        if self.step is not None:
            self.step(len(self.known), len(self.wanted))

    def _together(self, batch: Sequence[Region]) -> Mapping[Region, float] | None:
        """Seconds of regions that run with as much company as a network has, if that is told."""
        if self.references is None:
            self.references = self._timed_references()
        network = dict.fromkeys((*self.known, *self.beside))
        others = company(batch, network.keys())
        told = self._side_by_side(batch, others, self.references)
        own = {region: s for region, s in self.references.items() if region in batch}
        return None if told is None else {**told, **own}

    def _timed_references(self) -> Mapping[Region, float]:
        """Those that the cache knows, and the others as far as the backend can tell."""
        known = self._recall(REFERENCES)
        missing = [region for region in REFERENCES if region not in known]
        if not missing:
            return known
        try:
            found = self._side_by_side(missing, company(missing, REFERENCES), known) or {}
        except FxpruneError as error:
            logger.warning("Kernels cannot be told at one pace: %s", error)
            return known
        for region, seconds in found.items():
            self.cache.put(self._key(region), {"seconds": seconds})
        return {**known, **found}

    def _side_by_side(
        self, batch: Sequence[Region], others: Sequence[Region], references: Mapping[Region, float]
    ) -> dict[Region, float] | None:
        """Seconds of the regions of a batch in one model with others, if the backend can tell.

        At the pace at which references were timed first; that of a kernel which cannot be timed
        with them is not known.
        """
        some = [*batch, *references, *others]
        try:
            told = self.backend.region_seconds(some, self.settings, self.device)
        except FxpruneError as error:
            logger.info("%d kernels together: %s", len(some), error)
        else:
            return None if told is None else _at_one_pace(batch, some, told, references)
        # One of them fails, and is to be found; or all of them are too many at once.
        if others:
            return self._side_by_side(batch, (), references)
        if len(batch) == 1:
            return self._alone(batch)
        middle = len(batch) // 2
        halves = [self._side_by_side(h, (), references) for h in (batch[:middle], batch[middle:])]
        return {region: s for half in halves for region, s in (half or {}).items()}

    def _alone(self, batch: Sequence[Region]) -> dict[Region, float] | None:
        with _naming(self.wanted.get(batch[0])):
            told = self.backend.region_seconds(batch, self.settings, self.device)
        return None if told is None else dict(zip(batch, told, strict=True))

    def _by_the_clock(self, region: Region) -> float:
        # Compiled one by one: it may take seconds, after which it is known and kept.
        with _naming(self.wanted[region]):
            engine = self.backend.compile_region(region, self.settings, self.device)
            return measure(engine, region.inputs(self.device), KERNEL_TIMING).seconds


def _at_one_pace(
    batch: Sequence[Region],
    some: Sequence[Region],
    told: Sequence[float],
    references: Mapping[Region, float],
) -> dict[Region, float]:
    """Seconds of the regions of a batch, of `told` for `some`."""
    timed = [*zip(some, told, strict=True)]
    seconds = defaultdict[Region, list[float]](list)
    for region, taken in timed:
        seconds[region].append(taken)
    return {r: fmean(seconds[r]) / slowness(r, timed, references) for r in batch}


@contextmanager
def _naming(layer: Layer | None) -> Iterator[None]:
    """An error names the layer, if the kernel is for one."""
    try:
        yield
    except FxpruneError as error:
        if layer is None:
            raise
        raise error.within(f"layer {layer.weight.removesuffix('.weight')}") from error
