"""The dense network on a backend's clock: as a whole, and kernel by kernel."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from fxprune import batches
from fxprune.axes import Atom
from fxprune.backends import Backend, Settings, profiles
from fxprune.cache import Cache, Key
from fxprune.elsewhere import unknown
from fxprune.measure import PROTOCOL
from fxprune.passes.allocate import Allocation
from fxprune.passes.allocation.ladders import Ladder
from fxprune.passes.allocation.widths import Choices
from fxprune.passes.capture import Captured
from fxprune.passes.infer import Analysis, named_tensors
from fxprune.passes.kernels import LayerLatency, measure_layers
from fxprune.passes.latency import LatencyModel, build_latency_model
from fxprune.passes.layers import Layer
from fxprune.passes.merges import Merge
from fxprune.passes.seen import Seen
from fxprune.progress import Tell
from fxprune.stopwatch import Stopwatch

# A merged kernel this many times slower than its parts, at dense widths, is not looked at further:
# where the trunk is narrow it may still win.
SLOWEST = 1.25


@dataclass(frozen=True)
class Bench:
    """Where and how kernels are measured.

    Attributes:
        alignment: of the widths at which they are measured.
        cache: path of the latency cache.
    """

    backend: Backend
    settings: Settings
    device: str
    alignment: int
    cache: str | None
    tell: Tell

    def tables(
        self, layers: Sequence[Layer], ladders: Mapping[Atom, Ladder]
    ) -> tuple[LayerLatency, ...]:
        """The latency of every layer over the widths that `ladders` leave free."""
        with Cache(self.cache) as store:
            return measure_layers(
                layers,
                Choices(ladders),
                self.backend,
                self.settings,
                self.device,
                self.alignment,
                store,
                partial(self.tell, "Measuring kernels"),
            )

    def remember(
        self, captured: Captured, seconds: float, profile: Mapping[str, float] | None
    ) -> None:
        """Keep what a network takes as a whole, for machines to which the cache is carried."""
        with Cache(self.cache) as store:
            store.put(self._key(captured), {"seconds": seconds, "profile": profile})

    def recall(self, captured: Captured) -> tuple[float, Mapping[str, float] | None]:
        """What was kept of a network: its seconds and its profile.

        Raises:
            MeasurementError: it was not measured.
        """
        with Cache(self.cache) as store:
            kept = store.get(self._key(captured))
        if kept is None:
            raise unknown(self.backend, "this network")
        return float(kept["seconds"]), kept["profile"]

    def _key(self, captured: Captured) -> Key:
        backend = self.backend
        device, version = backend.device(self.device), backend.version()
        subject, protocol = f"network {_structure(captured)}", f"{PROTOCOL} {profiles.PROTOCOL}"
        return Key(device, backend.name, version, self.settings, subject, protocol)


@dataclass(frozen=True)
class Timed:
    """The dense network measured on a backend, and tables of what slimming would change.

    Attributes:
        seconds: of the dense network.
        watch: measures candidates beside it; None for a backend that is elsewhere.
        profile: seconds of every node in the dense network, where the backend can tell.
        layers: the table of every layer.
        merges: the tables of spans that may be merged, by name.
        seen: slim networks that were profiled.
    """

    bench: Bench
    captured: Captured
    analysis: Analysis
    seconds: float
    watch: Stopwatch | None
    profile: Mapping[str, float] | None
    layers: tuple[LayerLatency, ...]
    merges: Mapping[str, LayerLatency] = field(default_factory=dict)
    seen: tuple[Seen, ...] = ()

    @staticmethod
    def start(
        bench: Bench,
        captured: Captured,
        analysis: Analysis,
        layers: Sequence[Layer],
        ladders: Mapping[Atom, Ladder],
    ) -> Timed:
        """Measure the dense network and the kernels it is made of."""
        backend = bench.backend
        bench.tell(f"Compiling and measuring the dense network ({backend.name})", 0, 0)
        inputs = captured.example_inputs
        watch = Stopwatch.start(backend, bench.settings, captured.module, inputs)
        tables = bench.tables(layers, ladders)
        profile = backend.profile(watch.engines[0], inputs)
        seconds = watch.dense.seconds
        bench.remember(captured, seconds, profile)
        return Timed(bench, captured, analysis, seconds, watch, profile, tables)

    @staticmethod
    def recall(
        bench: Bench,
        captured: Captured,
        analysis: Analysis,
        layers: Sequence[Layer],
        ladders: Mapping[Atom, Ladder],
    ) -> Timed:
        """The same from what was measured elsewhere.

        Raises:
            MeasurementError: the network or one of its kernels was not measured there.
        """
        seconds, profile = bench.recall(captured)
        tables = bench.tables(layers, ladders)
        return Timed(bench, captured, analysis, seconds, None, profile, tables)

    def with_merges(self, merges: Iterable[Merge], ladders: Mapping[Atom, Ladder]) -> Timed:
        """The same with the merged kernels of `merges` measured too."""
        wanted = tuple(merges)
        tables = self.bench.tables([merge.layer for merge in wanted], ladders)
        named = {m.name: table for m, table in zip(wanted, tables, strict=True)}
        return replace(self, merges=named)

    def worthwhile(self, merges: Sequence[Merge]) -> set[str]:
        """The names of those merges whose kernel is not much slower than its parts."""
        apart = {table.layer.node: table.at({}) for table in self.layers}
        dense = self.bench.tables([merge.layer for merge in merges], {})
        return {
            merge.name
            for merge, table in zip(merges, dense, strict=True)
            if table.at({}) <= SLOWEST * sum(apart[node] for node in merge.span.convolutions)
        }

    def having_seen(self, allocation: Allocation, seconds: float) -> Timed:
        """The same with what the profile of the network measured last tells, if there is one.

        Args:
            seconds: what that network takes.
        """
        if self.profile is None or self.watch is None or self.watch.latest is None:
            return self
        deployed, engine = self.watch.latest
        profile = self.bench.backend.profile(engine, self.captured.example_inputs)
        if not profile:
            return self
        layers = [table.layer for table in self.layers]
        found = Seen.of(allocation.sizes, allocation.merged, deployed, profile, seconds, layers)
        return replace(self, seen=(*self.seen, found))

    def model(self, choices: Choices) -> LatencyModel:
        """The latency of the whole network as tables over `choices`."""
        return build_latency_model(
            self.captured.module,
            self.analysis,
            choices,
            self.layers,
            self.seconds,
            self.profile,
            self.merges,
            self.seen,
        )


def _structure(captured: Captured) -> str:
    """Everything that a network's latency depends on but the numbers in its tensors."""
    module = captured.module
    lines = [
        str(module.graph),
        *(f"{name} {part!r}" for name, part in module.named_modules() if not [*part.children()]),
        *(f"{name} {t.dtype} {tuple(t.shape)}" for name, t in named_tensors(module)),
        *(f"{t.dtype} {tuple(t.shape)}" for t in captured.example_inputs if isinstance(t, Tensor)),
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def bench_of(
    backend: Backend,
    settings: Settings | None,
    captured: Captured,
    alignment: int,
    cache: str | None,
    tell: Tell,
) -> Bench:
    """The bench on which the kernels of a captured model are measured."""
    device = batches.device_of(captured.module).type
    return Bench(backend, settings or Settings(), device, alignment, cache, tell)
