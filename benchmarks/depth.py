"""What merging is worth beside narrower layers, on real architectures with random weights.

    python -m benchmarks.depth                          all networks, ONNX Runtime and OpenVINO
    python -m benchmarks.depth resnet34 --backends openvino
    python -m benchmarks.depth --out docs/depth.md

*Spans* are the stretches of layers that could become one; *faster* those whose merged kernel takes
less time than the kernels it stands for, at the dense widths. Then the network is brought to the
same estimated value by narrower layers, by depth (dropped blocks and merged spans), and by both,
each at the least latency for which the certified solver finds it. Speed-ups are predicted by the
tables, and *measured* as the slim network is compiled afresh, in turn with the dense one. Values
without data are guesses (magnitudes of weights, Gaussian activations): they show what the solver
can trade, not what accuracy a trained network keeps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import nn

from fxprune.axes import Atom
from fxprune.backends import Settings
from fxprune.budget import Budget
from fxprune.choose import gauge_of
from fxprune.files import write_text
from fxprune.gauges import CLEAR, LatencyGauge
from fxprune.passes.allocate import Allocation, Allocator
from fxprune.passes.allocation.forms import Forms
from fxprune.passes.allocation.ladders import Ladder
from fxprune.passes.merges import find_merges
from fxprune.prepare import Options, Prepared, prepare

NETWORKS = ("mobilenet_v2", "mobilenet_v2_1.4", "resnet34", "vgg19")
BACKENDS = ("onnxruntime", "openvino")
VALUES = (95.0, 85.0)
SETTINGS = Settings(threads=1)

SPANS_HEAD = (
    "| network | backend | spans | faster merged | slower merged | offered | choices of form |\n"
    "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
)
SPEED_HEAD = (
    "| network | backend | value | widths | depth | both | both, measured | solver CPU s | gap |\n"
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


@dataclass(frozen=True)
class Way:
    """The fastest network of at least some value, in one way of slimming."""

    speedup: float
    seconds: float
    gap: float
    allocation: Allocation | None


def main() -> None:
    """Run what is asked for, and write two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--backends", nargs="+", default=BACKENDS)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    spans, speeds, where = [SPANS_HEAD], [SPEED_HEAD], {}
    for name in chosen.networks:
        for backend in chosen.backends:
            prepared = prepared_network(name, backend)
            bench = prepared.timed[None].bench
            where[backend] = f"{bench.backend.version()} on {bench.backend.device()}"
            spans.append(count_spans(name, backend, prepared))
            print(spans[-1], flush=True)
            for line in compare(name, backend, prepared):
                speeds.append(line)
                print(line, flush=True)
    intro = "# Depth\n\nWritten by `python -m benchmarks.depth`, one thread, batch 1: "
    intro += f"{'; '.join(where.values())}; torch {torch.__version__}.\n\n"
    text = intro + __doc__.partition("*Spans*")[1] + __doc__.partition("*Spans*")[2]
    text += "\n" + "\n".join(spans) + "\n\n" + "\n".join(speeds) + "\n"
    if chosen.out:
        write_text(chosen.out, text)


def network(name: str) -> nn.Module:
    """A torchvision model with random weights; a width after the last underscore if it has one."""
    torch.manual_seed(0)
    if name == "mobilenet_v2_1.4":
        model: nn.Module = torchvision.models.mobilenet_v2(weights=None, width_mult=1.4)
    else:
        model = getattr(torchvision.models, name)(weights=None)
    return model.eval()


def prepared_network(name: str, backend: str) -> Prepared:
    """The network with its spans weighed and measured."""
    options = Options(importance="magnitude", backend=backend, settings=SETTINGS, merge_layers=True)
    return prepare(network(name), (torch.randn(1, 3, 224, 224),), options, [None], _quiet)


def count_spans(name: str, backend: str, prepared: Prepared) -> str:
    """A row of the first table."""
    timed = prepared.timed[None]
    merges = find_merges(prepared.captured, prepared.analysis, prepared.layers)
    apart = {table.layer.node: table.at({}) for table in timed.layers}
    dense = timed.bench.tables([merge.layer for merge in merges], {})
    faster = sum(
        table.at({}) < sum(apart[node] for node in merge.span.convolutions)
        for merge, table in zip(merges, dense, strict=True)
    )
    offered, clusters = len(prepared.forms.merges()), len(prepared.forms.clusters)
    cells = (name, backend, len(merges), faster, len(merges) - faster, offered, clusters)
    return f"| {' | '.join(map(str, cells))} |"


def compare(name: str, backend: str, prepared: Prepared) -> Iterator[str]:
    """Rows of the second table."""
    graph, forms = prepared.module.graph, prepared.forms
    dense = {a: Ladder(ladder.group, (a.size,)) for a, ladder in prepared.ladders.items()}
    ways = {
        "widths": (prepared.ladders, Forms.of((), graph)),
        "depth": (dense, forms),
        "both": (prepared.ladders, forms),
    }
    allocators = {way: allocator(prepared, *free) for way, free in ways.items()}
    for value in VALUES:
        found = {way: fastest(solver, value) for way, solver in allocators.items()}
        both = found["both"]
        measured = measure(prepared, both.allocation) if both.allocation else float("nan")
        cells = (
            name,
            backend,
            f"{value:.0f}",
            *(f"{way.speedup:.2f}x" for way in found.values()),
            f"{measured:.2f}x",
            f"{both.seconds:.2f}",
            f"{both.gap:.3%}",
        )
        yield f"| {' | '.join(cells)} |"


def allocator(prepared: Prepared, ladders: Mapping[Atom, Ladder], forms: Forms) -> Allocator:
    """The latency allocation with some things free to change and others not."""
    gauge = latency_gauge(prepared)
    return Allocator.build(
        prepared.analysis, ladders, prepared.importance, [gauge.tables], [gauge.unit], forms
    )


def fastest(solver: Allocator, value: float) -> Way:
    """The least latency, to one in a thousand, at which the value is reached, by bisection."""
    (dense,) = solver.dense_costs()
    low, high, best, gap = solver.floor(), dense, None, 0.0
    start, solves = time.process_time(), 0
    while high > 1.001 * low:
        middle = (low * high) ** 0.5
        found = solver.solve([middle])
        solves += 1
        if found.sizes and found.solution.value >= value:
            high, best, gap = middle, found, found.solution.gap
        else:
            low = middle
    seconds = (time.process_time() - start) / max(solves, 1)
    return Way(dense / high, seconds, gap, best)


def measure(prepared: Prepared, allocation: Allocation) -> float:
    """Dense over slim latency, both measured in turn."""
    module = prepared.slim(allocation, {})
    watch = prepared.timed[None].watch
    assert watch is not None
    return 1 / watch.time(module, lambda times: times.share.is_known_to(CLEAR)).share.value


def latency_gauge(prepared: Prepared) -> LatencyGauge:
    """Latency as the product predicts it."""
    gauge = gauge_of(Budget("latency", 1.0, relative=True), prepared)
    assert isinstance(gauge, LatencyGauge)
    return gauge


def _quiet(what: str, done: int, total: int) -> None:
    del what, done, total


if __name__ == "__main__":
    main()
