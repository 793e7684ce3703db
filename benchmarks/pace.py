"""How far apart are timings of one and the same kernel, and what do kernels that are known help?

    python -m benchmarks.pace --out docs/pace.md

The layers of a dense network and of one with half of its channels are timed side by side with some
that are known, as for latency tables, again and again in other company. *As timed* is by how much
timings of a kernel differ: the standard deviation of their logarithm, so that 0.10 is about 10 %,
in the median of all kernels. *Together* is that of the pace at which all kernels that were timed
together ran, as the known ones tell it: what a network that is made of them is off by. *At one
pace* is what is left of the first without the second.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from math import log
from pathlib import Path
from statistics import median, stdev

import torch
import torchvision

from benchmarks.side_by_side import side_by_side, told
from benchmarks.written import WrittenTable, machine
from fxprune.backends import Backend, Region, get_backend
from fxprune.passes.allocation.ladders import build_ladders
from fxprune.passes.bake import bake
from fxprune.passes.capture import capture
from fxprune.passes.layers import find_layers
from fxprune.passes.together import batches, company, pace, references

NETWORKS = ("resnet18", "mobilenet_v3_large", "shufflenet_v2_x1_0")
COLUMNS = ("network", "backend", "kernels", "times", "as timed", "together", "at one pace")
KERNELS = 72
REFERENCES = 8
TIMES = 6


def main() -> None:
    """Run what the file does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--backends", nargs="+", default=("onnxruntime", "openvino"))
    parser.add_argument("--out", type=Path, help="Markdown file to write to, row by row")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
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
    some = shuffled.sample(some, min(KERNELS + REFERENCES, len(some)))
    first = side_by_side(backend, some)
    known = {region: first[region] for region in shuffled.sample(references(first), REFERENCES)}
    wanted = [region for region in some if region not in known]
    as_timed = defaultdict[Region, list[float]](list)
    at_one_pace = defaultdict[Region, list[float]](list)
    paces: list[float] = []
    for _ in range(TIMES):
        for batch in batches(shuffled.sample(wanted, len(wanted))):
            together = [*batch, *company(batch, [*known])]
            timed = [*zip(together, told(backend, together), strict=True)]
            paces.append(log(pace(timed, known)))
            for region, seconds in timed[: len(batch)]:
                as_timed[region].append(log(seconds))
                at_one_pace[region].append(log(seconds) - paces[-1])
    return [
        f"{len(wanted)}",
        f"{TIMES}",
        f"{median(map(stdev, as_timed.values())):.3f}",
        f"{stdev(paces):.3f}",
        f"{median(map(stdev, at_one_pace.values())):.3f}",
    ]


def regions_of(backend: Backend, network: str) -> list[Region]:
    """The layers of a network at all of their channels and at half of these."""
    model = torchvision.models.get_model(network, weights=None).eval()
    captured, analysis = bake(capture(model, (torch.randn(1, 3, 224, 224),)))
    ladders = build_ladders(analysis, backend.alignment)
    wide = {atom: ladder.widths[-1] for atom, ladder in ladders.items()}
    narrow = {
        atom: min(ladder.widths, key=lambda width: abs(width - wide[atom] / 2))
        for atom, ladder in ladders.items()
    }
    layers = find_layers(captured.module, analysis)
    return list(dict.fromkeys(layer.at(sizes) for sizes in (wide, narrow) for layer in layers))


if __name__ == "__main__":
    main()
