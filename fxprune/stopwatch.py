"""Latencies of whole networks: each set up a few times, all measured turn by turn."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from weakref import WeakKeyDictionary

from torch import Tensor, fx

from fxprune.backends.base import Backend, Engine
from fxprune.backends.settings import Settings
from fxprune.errors import BackendError
from fxprune.finalize import finalize
from fxprune.measure import Timing, measure_interleaved
from fxprune.measurement import Interval, Measurement, pooled, ratio
from fxprune.sizes import weight_bytes

NETWORK_TIMING = Timing(tolerance=0.03, min_samples=15, max_seconds=2.0, turns=15)
ENGINES = 3
"""How often a network is set up to be measured, since engines of it may differ a little."""
MOST_TIMES = 9
"""How often an engine of each of two networks is measured in turn at most, to know their ratio;
several engines share these."""
LEAST_TURNS = 15
"""Turns without which nothing is known for certain: of five, all of one network may be slow, and no
interval tells."""
SETTING_UP = 5.0
"""Seconds after which no further engine is made."""
WEIGHTS = 2**29
"""Bytes of weights in all engines of a network over which no further one is made: each holds them
two or three times."""


@dataclass(frozen=True)
class Times:
    """Latencies of the dense network and a slim one, measured in turn."""

    dense: Measurement
    slim: Measurement

    @property
    def share(self) -> Interval:
        """Slim over dense latency."""
        return ratio(self.slim, self.dense)

    def pooled_with(self, more: Times) -> Times:
        """Both together."""
        return Times(pooled([self.dense, more.dense]), pooled([self.slim, more.slim]))


@dataclass(frozen=True)
class Deployed:
    """A slim network as it was measured last.

    Attributes:
        slim: as it came.
        module: after `finalize`.
        engines: that, set up a few times.
    """

    slim: fx.GraphModule
    module: fx.GraphModule
    engines: tuple[Engine, ...]


@dataclass
class Stopwatch:
    """Measures candidates beside the dense network, turn by turn.

    Attributes:
        engines: the dense network, set up a few times.
        dense: its latency.
        times: what was measured of candidates, as long as they are there.
        latest: the candidate that was measured last.
    """

    backend: Backend
    settings: Settings
    inputs: tuple[Tensor, ...]
    engines: tuple[Engine, ...]
    dense: Measurement
    times: WeakKeyDictionary[fx.GraphModule, Times] = field(default_factory=WeakKeyDictionary)
    latest: Deployed | None = None

    @staticmethod
    def start(
        backend: Backend, settings: Settings, module: fx.GraphModule, inputs: tuple[Tensor, ...]
    ) -> Stopwatch:
        """Compile and measure the dense network."""
        engines = compiled(backend, settings, module, inputs)
        (dense,) = measure_networks([engines], inputs)
        return Stopwatch(backend, settings, inputs, engines, dense)

    def time(self, slim: fx.GraphModule, enough: Callable[[Times], bool]) -> Times:
        """Compile `slim` afresh, as it is deployed, and measure it beside the dense network.

        What was measured of it just before, for another budget, counts as well.

        Args:
            enough: whether that is known well enough; if not, it is measured further.
        """
        if self.latest is None or self.latest.slim is not slim:
            self.latest = self._set_up(slim)
        before = self.times.get(slim)
        found = self._race(enough, before)
        self.times[slim] = found
        return found

    def again(self, slim: fx.GraphModule, enough: Callable[[Times], bool]) -> Times:
        """Compile a network that was measured once more, and measure it further: all pooled.

        Args:
            enough: as for `time`, of what is measured now.
        """
        self.latest = self._set_up(slim)
        more = self._race(enough)
        self.times[slim] = found = self.times[slim].pooled_with(more)
        return found

    def _race(self, enough: Callable[[Times], bool], before: Times | None = None) -> Times:
        """The dense network and the latest candidate, measured in turn."""
        assert self.latest is not None, "a candidate is set up first"
        slim = self.latest.engines
        most = MOST_TIMES // min(len(self.engines), len(slim))

        def surely(times: Times) -> bool:
            return times.slim.turns >= LEAST_TURNS and enough(times)

        return race(self.engines, slim, self.inputs, surely, most, before)

    def _set_up(self, slim: fx.GraphModule) -> Deployed:
        self.latest = None  # room for the next one
        module = finalize(slim, self.inputs)
        engines = compiled(self.backend, self.settings, module, self.inputs)
        return Deployed(slim, module, engines)


def compiled(
    backend: Backend, settings: Settings, module: fx.GraphModule, inputs: tuple[Tensor, ...]
) -> tuple[Engine, ...]:
    """A network compiled once, and loaded a few times if that takes little time and memory."""
    count = min(ENGINES, WEIGHTS // max(weight_bytes(module), 1))
    engines = [backend.compile(module, inputs, settings)]
    # Exporters leave networks behind that refer to themselves, of which Python counts few objects.
    gc.collect()
    if count <= 1:
        return tuple(engines)
    with TemporaryDirectory() as folder:
        path = Path(folder, "engine")
        try:
            engines[0].save(path)
            another = partial(backend.load, path)
        except BackendError:  # nothing is compiled, so there is nothing to save
            another = partial(backend.compile, module, inputs, settings)
        start = time.perf_counter()
        while len(engines) < count and time.perf_counter() - start < SETTING_UP:
            engines.append(another())
    return tuple(engines)


def race(
    dense: Sequence[Engine],
    slim: Sequence[Engine],
    inputs: tuple[Tensor, ...],
    enough: Callable[[Times], bool],
    most: int,
    before: Times | None = None,
) -> Times:
    """Measure two networks in turn until that is `enough`, `most` times at most, all pooled.

    Args:
        before: what was measured of them before; it counts as well.
    """
    found = before
    for _ in range(most):
        if found is not None and enough(found):
            break
        more = Times(*measure_networks([dense, slim], inputs))
        found = more if found is None else found.pooled_with(more)
    assert found is not None, "they are measured once at least"
    return found


def measure_networks(
    networks: Sequence[Sequence[Engine]], inputs: tuple[Tensor, ...]
) -> list[Measurement]:
    """The latencies of networks that were set up some times each, measured turn by turn.

    As many engines of each count as all of them have, so that turns can be compared one by one.
    """
    count = min(map(len, networks))
    engines = {f"{i} {j}": n[j] for i, n in enumerate(networks) for j in range(count)}
    found = measure_interleaved({n: (e, inputs) for n, e in engines.items()}, NETWORK_TIMING)
    return [pooled([found[f"{i} {j}"] for j in range(count)]) for i in range(len(networks))]
