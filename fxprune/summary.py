"""The report of one optimisation, put together from what the passes found."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from fxprune.axes import kept_size
from fxprune.budget import Budget
from fxprune.choose import Choice
from fxprune.measurement import Measurement
from fxprune.passes import verify
from fxprune.passes.allocate import Allocation
from fxprune.passes.allocation import costs
from fxprune.passes.frozen import frozen_places
from fxprune.passes.latency import LatencyModel
from fxprune.passes.layers import Layer
from fxprune.passes.merge import merged
from fxprune.prepare import Prepared
from fxprune.report import Certificate, FrozenPlace, LayerRow, Report, Side, Verification
from fxprune.sizes import count_params, weight_bytes


def summarise(
    prepared: Prepared,
    choice: Choice,
    verification: verify.Verification,
    budgets: Sequence[Budget],
) -> Report:
    """Dense and slim side by side, layer by layer, with certificate and verification.

    Where several backends count, latencies are those of the first.
    """
    analysis, candidate = prepared.analysis, choice.candidate
    gauge = next(iter(choice.latencies.values()), None)
    latency = gauge.model(choice.allocator.choices) if gauge is not None else None
    allocation = candidate.allocation
    sizes, gone, solution = allocation.sizes, allocation.gone, allocation.solution
    deployed = merged(candidate.module)
    watch = gauge.timed.watch if gauge is not None else None
    times = watch.times.get(candidate.module) if watch is not None else None
    tabled = None
    if gauge is not None and latency is not None and watch is None:
        tabled = (gauge.dense, latency.tables.at(solution.assignment))
    return Report(
        dense=_side(prepared.module, costs.macs(analysis), times.dense if times else None),
        slim=_side(
            deployed,
            costs.macs(analysis, sizes, gone, allocation.merged),
            times.slim if times else None,
        ),
        layers=_rows(prepared.layers, allocation, latency),
        budget=", ".join(budget.describe() for budget in budgets),
        backend=", ".join(t.bench.backend.version() for t in prepared.timed.values()),
        frozen=tuple(
            FrozenPlace(", ".join(place.members), place.reason) for place in frozen_places(analysis)
        ),
        certificate=Certificate(solution.value, solution.bound, solution.gap, solution.prices),
        verification=Verification(
            verification.max_error, verification.nodes, verification.worst_node
        ),
        calls=choice.calls,
        baked=tuple(parameter.name for parameter in prepared.captured.baked),
        dropped=tuple(map(str, allocation.dropped)),
        merged=tuple(map(str, allocation.merged)),
        tabled=tabled,
        share=times.share if times else None,
        rounds=candidate.rounds,
        limits=choice.limits,
    )


def _side(module: fx.GraphModule, macs: int, latency: Measurement | None) -> Side:
    return Side(count_params(module), macs, weight_bytes(module), latency)


def _rows(
    layers: Sequence[Layer], allocation: Allocation, latency: LatencyModel | None
) -> tuple[LayerRow, ...]:
    sizes, gone = allocation.sizes, allocation.gone
    dense = {} if latency is None else latency.by_layer({})
    slim = {} if latency is None else latency.by_layer(sizes, gone, allocation.merged)
    before, after = sum(dense.values()), sum(slim.values())
    return tuple(
        LayerRow(
            name=layer.weight.removesuffix(".weight"),
            kind=layer.kind,
            dense_in=layer.inputs.size,
            dense_out=layer.outputs.size,
            slim_in=0 if layer.node in gone else kept_size(layer.inputs, sizes),
            slim_out=0 if layer.node in gone else kept_size(layer.outputs, sizes),
            dense_latency_share=dense[layer.node] / before if before else None,
            slim_latency_share=slim[layer.node] / after if after else None,
        )
        for layer in layers
    )
