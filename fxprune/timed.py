"""The dense network on a backend's clock: as a whole, and kernel by kernel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fxprune.axes import Atom
from fxprune.bench import Bench
from fxprune.passes.allocate import Allocation
from fxprune.passes.allocation.ladders import Ladder
from fxprune.passes.allocation.widths import Choices
from fxprune.passes.capture import Captured
from fxprune.passes.infer import Analysis
from fxprune.passes.kernels import LayerLatency
from fxprune.passes.latency import LatencyModel, build_latency_model
from fxprune.passes.layers import Layer
from fxprune.passes.merges import Merge
from fxprune.passes.seen import Seen
from fxprune.stopwatch import Stopwatch

# A merged kernel this many times slower than its parts, at dense widths, is not looked at further:
# where the trunk is narrow it may still win.
SLOWEST = 1.25


@dataclass(frozen=True)
class Timed:
    """The dense network measured on a backend, and tables of what slimming would change.

    Attributes:
        seconds: of the dense network.
        watch: measures candidates beside it; None for a backend that is elsewhere.
        profile: seconds of every node in the dense network, where the backend can tell.
        layers: the table of every layer.
        merges: the tables of spans that may be merged, by name.
        seen: slim networks that were profiled, now or before.
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
        profile = bench.profile(watch.compiled.engine, inputs)
        seconds = watch.dense.seconds
        bench.remember(captured, seconds, profile)
        seen = bench.recall_seen(captured, analysis, seconds)
        return Timed(bench, captured, analysis, seconds, watch, profile, tables, seen=seen)

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
        seen = bench.recall_seen(captured, analysis, seconds)
        return Timed(bench, captured, analysis, seconds, None, profile, tables, seen=seen)

    def with_merges(self, merges: Iterable[Merge], ladders: Mapping[Atom, Ladder]) -> Timed:
        """The same with the merged kernels of `merges` measured too."""
        wanted = tuple(merges)
        tables = self.bench.tables([m.layer for m in wanted], ladders, self._dense_layers)
        named = {m.name: table for m, table in zip(wanted, tables, strict=True)}
        return replace(self, merges=named)

    def worthwhile(self, merges: Sequence[Merge]) -> set[str]:
        """The names of those merges whose kernel is not much slower than its parts."""
        apart = {table.layer.node: table.at({}) for table in self.layers}
        dense = self.bench.tables([merge.layer for merge in merges], {}, self._dense_layers)
        return {
            merge.name
            for merge, table in zip(merges, dense, strict=True)
            if table.at({}) <= SLOWEST * sum(apart[node] for node in merge.span.convolutions)
        }

    def having_seen(self, allocation: Allocation) -> Timed:
        """The same with what the profile of the network measured last tells, if there is one.

        The cache keeps it for whoever slims the same network next.
        """
        if self.profile is None or self.watch is None or self.watch.latest is None:
            return self
        latest, times = self.watch.latest, self.watch.times[self.watch.latest.slim]
        profile = self.bench.profile(latest.compiled.engine, self.captured.example_inputs)
        if not profile:
            return self
        # As the dense network ran at the start, whatever the machine's pace is now.
        seconds = times.share.value * self.seconds
        sizes, merged = allocation.sizes, allocation.merged
        found = Seen.of(sizes, merged, latest.module, profile, seconds, self._dense_layers)
        self.bench.keep_seen(self.captured, self.analysis, self.seconds, found)
        return replace(self, seen=(*self.seen, found))

    @property
    def _dense_layers(self) -> list[Layer]:
        return [table.layer for table in self.layers]

    def model(self, choices: Choices, near: float | None = None) -> LatencyModel:
        """The latency of the whole network as tables over `choices`.

        Args:
            near: seconds of the networks that matter most.
        """
        return build_latency_model(
            self.captured.module,
            self.analysis,
            choices,
            self.layers,
            self.seconds,
            self.profile,
            self.merges,
            self.seen,
            near,
        )
