"""How far apart are timings of one and the same kernel, and what do references help?

    python -m benchmarks.pace --out docs/pace.md

The layers of a dense network and of one with half of its channels are timed side by side with the
references, as for latency tables, six times over in other company. *Each* is by how much timings of
one kernel differ: the standard deviation of their logarithm in the median of all kernels, so that
0.10 is about 10 %. *Together* is by how much those that were timed together differ all alike, which
does not average out in a network. Both are told of kernels as timed, and at one pace, as the
references tell that: they were timed first, once and for all.
"""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import chain
from math import log
from statistics import fmean, median, stdev

import torch
import torchvision

from benchmarks.side_by_side import dense_and_half, told
from benchmarks.written import WrittenTable, arguments_for, machine
from fxprune.backends import Backend, Region, get_backend
from fxprune.passes.bake import bake
from fxprune.passes.capture import capture
from fxprune.passes.layers import find_layers
from fxprune.passes.together import REFERENCES, batches, company, slowness

NETWORKS = ("resnet18", "mobilenet_v3_large", "shufflenet_v2_x1_0")
COLUMNS = (
    "network", "backend", "kernels", "each as timed", "together as timed", "each at one pace",
    "together at one pace",
)  # fmt: skip
KERNELS = 72
TIMES = 6
Logarithms = list[tuple[Region, float]]
"""Of the seconds of kernels that were timed together."""


def main() -> None:
    """Run what the file does not have yet."""
    arguments = arguments_for(__doc__, NETWORKS)
    intro = __doc__.split("\n\n")[2].replace("\n", " ")
    heading = f"# The pace at which kernels are timed\n\n{intro}\n\n{machine()}; one thread."
    table = WrittenTable(arguments.out, heading, COLUMNS, keys=2)
    for network in arguments.networks:
        for name in arguments.backends:
            if not table.has(network, name):
                table.add(network, name, *spreads(get_backend(name), network))


def spreads(backend: Backend, network: str) -> list[str]:
    """The cells of one network on one backend."""
    shuffled = random.Random(0)
    some = regions_of(backend, network)
    wanted = shuffled.sample(some, min(KERNELS, len(some)))
    known = dict(zip(REFERENCES, told(backend, REFERENCES), strict=True))
    rounds: dict[str, list[Logarithms]] = {"as timed": [], "at one pace": []}
    for _ in range(TIMES):
        for batch in batches(shuffled.sample(wanted, len(wanted))):
            together = [*batch, *REFERENCES, *company(batch, wanted)]
            timed = [*zip(together, told(backend, together), strict=True)]
            own = timed[: len(batch)]
            rounds["as timed"].append([(r, log(seconds)) for r, seconds in own])
            rounds["at one pace"].append(
                [(r, log(seconds / slowness(r, timed, known))) for r, seconds in own]
            )
    cells = [f"{len(wanted)}"]
    for way in rounds.values():
        of_one = defaultdict[Region, list[float]](list)
        for region, logarithm in chain.from_iterable(way):
            of_one[region].append(logarithm)
        usual = {region: fmean(some) for region, some in of_one.items()}
        alike = [fmean(logarithm - usual[region] for region, logarithm in some) for some in way]
        cells += [f"{median(map(stdev, of_one.values())):.3f}", f"{stdev(alike):.3f}"]
    return cells


def regions_of(backend: Backend, network: str) -> list[Region]:
    """The layers of a network at all of their channels and at half of these."""
    model = torchvision.models.get_model(network, weights=None).eval()
    captured, analysis = bake(capture(model, (torch.randn(1, 3, 224, 224),)))
    layers, both = find_layers(captured.module, analysis), dense_and_half(backend, analysis)
    return list(dict.fromkeys(layer.at(sizes) for sizes in both for layer in layers))


if __name__ == "__main__":
    main()
