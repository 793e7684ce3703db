"""The dense network on a backend's clock: as a whole, and kernel by kernel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from fxprune import batches
from fxprune.axes import Atom
from fxprune.backends import Backend, Settings
from fxprune.cache import Cache
from fxprune.passes.allocation.ladders import Ladder
from fxprune.passes.allocation.widths import Choices
from fxprune.passes.capture import Captured
from fxprune.passes.infer import Analysis
from fxprune.passes.kernels import LayerLatency, measure_layers
from fxprune.passes.latency import LatencyModel, build_latency_model
from fxprune.passes.layers import Layer
from fxprune.passes.merges import Merge
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


@dataclass(frozen=True)
class Timed:
    """The dense network measured on a backend, and tables of what slimming would change.

    Attributes:
        profile: seconds of every node in the dense network, where the backend can tell.
        layers: the table of every layer.
        merges: the tables of spans that may be merged, by name.
    """

    bench: Bench
    captured: Captured
    analysis: Analysis
    watch: Stopwatch
    profile: Mapping[str, float] | None
    layers: tuple[LayerLatency, ...]
    merges: Mapping[str, LayerLatency] = field(default_factory=dict)

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
        return Timed(bench, captured, analysis, watch, profile, tables)

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

    def model(self, choices: Choices) -> LatencyModel:
        """The latency of the whole network as tables over `choices`."""
        return build_latency_model(
            self.captured.module,
            self.analysis,
            choices,
            self.layers,
            self.watch.dense.seconds,
            self.profile,
            self.merges,
        )


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
