"""Do kernels that are timed side by side take what they take in a network?

    python -m benchmarks.side_by_side --out docs/side_by_side.md

The layers of a dense network and of one with half of its channels are timed one by one, each in a
model with nothing else but two copies of it, and side by side. *Dense* tells how far that is from
the profile of the dense network, layer by layer: the standard deviation of the logarithm of the
ratio, so that 0.10 is about 10 %. *Half* tells how far a layer's profile in the slim network is
from that in the dense one, times the ratio of its two kernels: how latency tables predict it,
before they have seen a slim network. *Ms per kernel* is what timing takes, setting up included.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import pstdev

import torch
import torchvision

from benchmarks.written import WrittenTable, arguments_for, machine
from fxprune.axes import Atom
from fxprune.backends import Backend, Region, Settings, get_backend
from fxprune.compiled import Compiled
from fxprune.finalize import finalize
from fxprune.passes.allocate import plan_of
from fxprune.passes.allocation.ladders import build_ladders
from fxprune.passes.bake import bake
from fxprune.passes.capture import capture
from fxprune.passes.importance import magnitude
from fxprune.passes.infer import Analysis
from fxprune.passes.layers import find_layers
from fxprune.passes.seen import Seen
from fxprune.passes.slim import slim
from fxprune.passes.together import REFERENCES, batches, company, slowness

NETWORKS = ("resnet50", "mobilenet_v3_large", "regnet_y_400mf", "shufflenet_v2_x1_0")
COLUMNS = ("network", "backend", "timed", "kernels", "dense", "half", "ms per kernel")
Profile = Mapping[str, float]
Timer = Callable[[Backend, Sequence[Region]], Mapping[Region, float]]


def main() -> None:
    """Run what the file does not have yet."""
    arguments = arguments_for(__doc__, NETWORKS)
    intro = __doc__.split("\n\n")[2].replace("\n", " ")
    heading = f"# Kernels alone and side by side\n\n{intro}\n\n{machine()}; one thread, batch 1."
    table = WrittenTable(arguments.out, heading, COLUMNS, keys=3)
    for network in arguments.networks:
        for name in arguments.backends:
            if not table.has(network, name, [*TIMERS][-1]):
                for row in compare(network, get_backend(name)):
                    table.add(network, name, *row)


def compare(network: str, backend: Backend) -> list[list[str]]:
    """The rows of one network on one backend."""
    torch.manual_seed(0)
    inputs = (torch.randn(1, 3, 224, 224),)
    model = torchvision.models.get_model(network, weights=None).eval()
    captured, analysis = bake(capture(model, inputs))
    layers = find_layers(captured.module, analysis)
    importance = magnitude(captured.module, analysis)
    dense, half = dense_and_half(backend, analysis)

    def profile(sizes: Mapping[Atom, int]) -> Profile:
        """Seconds of every layer that runs as one kernel."""
        plan = plan_of(sizes, analysis, importance, {})
        module = finalize(slim(captured, analysis, plan), inputs)
        engine = Compiled.of(backend, Settings(), module, inputs).engine
        told = backend.profile(engine, inputs)
        assert told is not None, "both backends tell kernels apart"
        seen = Seen.of(sizes, (), module, told, sum(told.values()), layers)
        return {nodes[0]: seconds for nodes, seconds in seen.kernels if len(nodes) == 1}

    profiles = profile(dense), profile(half)
    named = [layer for layer in layers if all(layer.node in some for some in profiles)]
    regions = [[layer.at(sizes) for layer in named] for sizes in (dense, half)]
    wanted = list(dict.fromkeys(region for some in regions for region in some))
    rows = []
    for way, timed in TIMERS.items():
        start = time.perf_counter()
        seconds = timed(backend, wanted)
        took = time.perf_counter() - start
        off = [
            [math.log(some[layer.node] / seconds[r]) for layer, r in zip(named, at, strict=True)]
            for some, at in zip(profiles, regions, strict=True)
        ]
        change = [after - before for before, after in zip(*off, strict=True)]
        spreads = (f"{pstdev(some):.2f}" for some in (off[0], change))
        rows.append([way, f"{len(wanted)}", *spreads, f"{1e3 * took / len(wanted):.0f}"])
    return rows


def dense_and_half(backend: Backend, analysis: Analysis) -> tuple[dict[Atom, int], dict[Atom, int]]:
    """All channels of every group, and about half of them."""
    ladders = build_ladders(analysis, backend.alignment)
    dense = {atom: ladder.widths[-1] for atom, ladder in ladders.items()}
    half = {
        atom: min(ladder.widths, key=lambda width: abs(width - dense[atom] / 2))
        for atom, ladder in ladders.items()
    }
    return dense, half


def alone(backend: Backend, regions: Sequence[Region]) -> dict[Region, float]:
    """Seconds of each, in a model of its own."""
    return {region: told(backend, [region])[0] for region in regions}


def side_by_side(backend: Backend, regions: Sequence[Region]) -> dict[Region, float]:
    """Seconds of each, in models with others."""
    known = dict(zip(REFERENCES, told(backend, REFERENCES), strict=True))
    found: dict[Region, float] = {}
    for batch in batches(regions):
        some = [*batch, *REFERENCES, *company(batch, found)]
        timed = [*zip(some, told(backend, some), strict=True)]
        found |= {r: seconds / slowness(r, timed, known) for r, seconds in timed[: len(batch)]}
    return found


def told(backend: Backend, regions: Sequence[Region]) -> list[float]:
    """Seconds of these in one model."""
    seconds = backend.region_seconds(regions)
    assert seconds is not None, "both backends tell kernels from networks"
    return seconds


TIMERS: Mapping[str, Timer] = {"alone": alone, "side by side": side_by_side}


if __name__ == "__main__":
    main()
