"""Latencies of whole networks, beside that of the dense one: looked at until they are known.

Every look has engines of its own, and is one figure: how far these are apart tells what turns with
the same engines cannot. Where networks are large or never leave memory, there are few engines,
which serve again: nothing tells how lucky these are.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from weakref import WeakKeyDictionary

from torch import Tensor, fx, nn

from fxprune.backends.base import Backend, Engine
from fxprune.backends.settings import Settings
from fxprune.compiled import Compiled, set_up
from fxprune.finalize import finalize
from fxprune.measurement import Interval, Measurement, mean_of, pooled, ratio
from fxprune.turns import Found, measure_interleaved

LOOK_SECONDS = 2.0
"""How long networks take turns before their engines are set up anew: the pace of a shared machine
is to have changed some times by then. Where setting up takes longer, they do so as long."""
LEAST_LOOKS = 4
"""Without which nothing is known: three are alike by chance too often, as is asked after each."""
MOST_SECONDS = 36.0
"""For which a candidate is measured at most, each time that it is compiled; setting up included."""


@dataclass(frozen=True)
class Times:
    """Latencies of the dense network and a slim one, measured in turn.

    Attributes:
        looks: at both of them.
    """

    looks: tuple[tuple[Measurement, Measurement], ...]

    @cached_property
    def dense(self) -> Measurement:
        """All looks at the dense network."""
        return pooled([dense for dense, _ in self.looks])

    @cached_property
    def slim(self) -> Measurement:
        """All looks at the slim network."""
        return pooled([slim for _, slim in self.looks])

    @cached_property
    def seconds(self) -> Interval:
        """What the slim network takes."""
        return mean_of([slim.seconds for _, slim in self.looks])

    @cached_property
    def share(self) -> Interval:
        """Slim over dense latency."""
        return mean_of([ratio(slim, dense) for dense, slim in self.looks])


@dataclass(frozen=True)
class Deployed:
    """A slim network as it was measured last.

    Attributes:
        slim: as it came.
        module: after `finalize`.
        compiled: that, compiled.
    """

    slim: fx.GraphModule
    module: fx.GraphModule
    compiled: Compiled


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
        some = islice(looks({"dense": compiled}, inputs), LEAST_LOOKS)
        dense = pooled([found["dense"] for found in some])
        return Stopwatch(backend, settings, inputs, compiled, dense)

    def time(self, slim: fx.GraphModule, enough: Callable[[Times], bool]) -> Times:
        """Compile `slim` afresh, as it is deployed, and measure it beside the dense network.

        What was measured of it just before, for another budget, counts as well.

        Args:
            enough: whether that is known well enough; if not, it is measured further.
        """
        if self.latest is None or self.latest.slim is not slim:
            self.latest = self._compiled(slim)
        before = self.times.get(slim)
        if before is None or not enough(before):
            self.times[slim] = self._race(enough, before)
        return self.times[slim]

    def again(self, slim: fx.GraphModule, enough: Callable[[Times], bool]) -> Times:
        """Compile a network that was measured once more, and measure it further.

        Args:
            enough: as for `time`.
        """
        self.latest = self._compiled(slim)
        self.times[slim] = self._race(enough, self.times[slim])
        return self.times[slim]

    def _race(self, enough: Callable[[Times], bool], before: Times | None) -> Times:
        """The dense network and the latest candidate, measured in turn."""
        assert self.latest is not None, "a candidate is compiled first"
        slim = self.latest.compiled
        return race(self.compiled, slim, self.inputs, enough, MOST_SECONDS, before)

    def _compiled(self, slim: fx.GraphModule) -> Deployed:
        self.latest = None  # room for the next one
        module = finalize(slim, self.inputs)
        compiled = Compiled.of(self.backend, self.settings, module, self.inputs)
        return Deployed(slim, module, compiled)


def race(
    dense: Compiled,
    slim: Compiled,
    inputs: tuple[Tensor, ...],
    enough: Callable[[Times], bool],
    max_seconds: float,
    before: Times | None = None,
) -> Times:
    """Look at two networks until that is `enough`, a few times at least.

    Args:
        enough: whether what was measured of them, all in all, will do.
        max_seconds: after which to stop in any case, but for the least number of looks. Setting
            engines up takes its part of that.
        before: what was measured of them before; it counts as well.
    """
    stop = time.perf_counter() + max_seconds
    taken = []
    for found in looks({"dense": dense, "slim": slim}, inputs):
        taken.append((found["dense"], found["slim"]))
        times = Times((*(before.looks if before else ()), *taken))
        if len(taken) >= LEAST_LOOKS and (time.perf_counter() >= stop or enough(times)):
            return times
    raise AssertionError("looks have no end")


def looks(networks: Mapping[str, Compiled], inputs: tuple[Tensor, ...]) -> Iterator[Found]:
    """Measure networks in turn, again and again, each time with engines that are set up anew.

    Large networks always have those that came from the compiler.
    """
    engines: dict[str, tuple[Engine, ...]] = {}
    while True:
        _let_go(engines)  # room for the next ones
        start = time.perf_counter()
        engines.update(zip(networks, set_up(*networks.values()), strict=True))
        setting_up = time.perf_counter() - start
        yield measure_interleaved(engines, inputs, max(LOOK_SECONDS, setting_up))


def _let_go(engines: dict[str, tuple[Engine, ...]]) -> None:
    refer_to_themselves = any(
        isinstance(part, nn.Module)
        for some in engines.values()
        for engine in some
        for part in vars(engine).values()
    )
    engines.clear()
    if refer_to_themselves:  # modules do, and Python counts few of them: several may be left
        gc.collect()
