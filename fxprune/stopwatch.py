"""Latencies of whole networks: each set up a few times, and measured in turn with the dense one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import Tensor, fx

from fxprune.backends.base import Backend, Engine
from fxprune.backends.settings import Settings
from fxprune.compiled import Compiled, set_up
from fxprune.finalize import finalize
from fxprune.measurement import Interval, Measurement, pooled, ratio
from fxprune.turns import Found, measure_interleaved

DENSE_SECONDS = 6.0
"""For which the dense network is measured at most before there are candidates."""
MOST_SECONDS = 36.0
"""For which a candidate is measured at most, each time that it is set up."""


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
        compiled: that, compiled.
        engines: of the dense network, and as many of this one.
    """

    slim: fx.GraphModule
    module: fx.GraphModule
    compiled: Compiled
    engines: tuple[Sequence[Engine], Sequence[Engine]]


@dataclass
class Stopwatch:
    """Measures candidates beside the dense network, turn by turn.

    Attributes:
        compiled: the dense network.
        dense: its latency.
        times: what was measured of candidates, as long as they are there.
        latest: the candidate that was measured last.
    """

    backend: Backend
    settings: Settings
    inputs: tuple[Tensor, ...]
    compiled: Compiled
    dense: Measurement
    times: WeakKeyDictionary[fx.GraphModule, Times] = field(default_factory=WeakKeyDictionary)
    latest: Deployed | None = None

    @staticmethod
    def start(
        backend: Backend, settings: Settings, module: fx.GraphModule, inputs: tuple[Tensor, ...]
    ) -> Stopwatch:
        """Compile and measure the dense network."""
        compiled = Compiled.of(backend, settings, module, inputs)
        (engines,) = set_up(compiled)
        found = measure_interleaved(
            {"dense": engines}, inputs, lambda found: found["dense"].converged, DENSE_SECONDS
        )
        return Stopwatch(backend, settings, inputs, compiled, found["dense"])

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
        return race(*self.latest.engines, self.inputs, enough, MOST_SECONDS, before)

    def _set_up(self, slim: fx.GraphModule) -> Deployed:
        self.latest = None  # room for the next one
        module = finalize(slim, self.inputs)
        compiled = Compiled.of(self.backend, self.settings, module, self.inputs)
        dense, engines = set_up(self.compiled, compiled)
        return Deployed(slim, module, compiled, (dense, engines))


def race(
    dense: Sequence[Engine],
    slim: Sequence[Engine],
    inputs: tuple[Tensor, ...],
    enough: Callable[[Times], bool],
    max_seconds: float,
    before: Times | None = None,
) -> Times:
    """Measure two networks in turn until that is `enough`.

    Args:
        dense: engines of the one.
        slim: as many of the other.
        enough: whether what was measured of them, all in all, will do.
        max_seconds: as in `measure_interleaved`.
        before: what was measured of them before; it counts as well.
    """

    def told(found: Found) -> Times:
        times = Times(found["dense"], found["slim"])
        return before.pooled_with(times) if before else times

    if before and enough(before):
        return before
    networks = {"dense": dense, "slim": slim}
    found = measure_interleaved(networks, inputs, lambda found: enough(told(found)), max_seconds)
    return told(found)
