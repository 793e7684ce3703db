"""How far does the ratio of two networks follow the pace of the machine? Half minutes, compared.

    python -m benchmarks.sway --out docs/sway.md
    python -m benchmarks.sway resnet50 --backends openvino --minutes 10

A network and a version of it with half of its MACs are looked at beside each other, as candidates
are measured. The looks of half a minute come to one ratio; *plain*, *own* and *all* are how far
such ratios are apart, as a standard deviation in per cent of them. Plain ones are means. The others
are told for the pace of the first looks, by how the ratio follows the pace within their own looks,
or in all until then. *Slope* is that in all of them: 0.2 means that the ratio is 2 % higher when
the dense network takes 10 % longer. Rows that the file has already are not run again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
import torchvision

import fxprune
from benchmarks.written import WrittenTable, machine
from fxprune.backends import Settings, get_backend
from fxprune.compiled import Compiled
from fxprune.measurement import mean_of, ratio
from fxprune.pace import Looks, Pace, Trend
from fxprune.stopwatch import LEAST_LOOKS, looks

NETWORKS = (
    "mobilenet_v3_large", "shufflenet_v2_x1_0", "regnet_y_400mf", "efficientnet_b0", "resnet18",
    "resnet50",
)  # fmt: skip
COLUMNS = ("network", "backend", "half minutes", "dense ms", "slope", "plain", "own", "all")
HALF_MINUTE = 30.0


def main() -> None:
    """Look at each network on each backend for some minutes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--backends", nargs="+", default=("onnxruntime", "openvino"))
    parser.add_argument("--minutes", type=float, default=4.0, help="for each of them")
    parser.add_argument("--out", type=Path, help="Markdown file to write to, row by row")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    intro = __doc__.split("\n\n")[2].replace("\n", " ")
    heading = f"# Ratios and the pace\n\n{intro}\n\n{machine()}; one thread, CPU time."
    table = WrittenTable(arguments.out, heading, COLUMNS, keys=2)
    for network in arguments.networks:
        for backend in arguments.backends:
            if not table.has(network, backend):
                halves = looked_at(network, backend, 60 * arguments.minutes)
                table.add(network, backend, *told(halves))


def looked_at(network: str, backend: str, seconds: float) -> list[Looks]:
    """Looks at a network and a slim version, by the half minute; the last one is whole."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(network, weights=None).eval()
    inputs = (torch.randn(1, 3, 224, 224),)
    slim = fxprune.finalize(
        fxprune.optimize(model, "50% macs", inputs, importance="magnitude", progress=False), inputs
    )
    dense, narrow = (
        Compiled.of(get_backend(backend), Settings(), m, inputs) for m in (model, slim)
    )
    start = time.perf_counter()
    taken = looks({"dense": dense, "slim": narrow}, inputs)
    timed = ((time.perf_counter() - start, found) for found in taken)
    halves: list[list[tuple[fxprune.Measurement, fxprune.Measurement]]] = [[]]
    for passed, found in takewhile(lambda each: each[0] < seconds, timed):
        if passed >= HALF_MINUTE * len(halves):
            halves.append([])
        halves[-1].append((found["dense"], found["slim"]))
    return [half for half in halves if len(half) >= LEAST_LOOKS]


def told(halves: Sequence[Looks]) -> list[str]:
    """How far the ratios of half minutes are apart, each way, and by how much the pace changed."""
    paces = [1e3 * dense.seconds for half in halves for dense, _ in half]
    first = mean_of([dense.seconds for dense, _ in halves[0][:LEAST_LOOKS]]).value
    trends = [Trend.of(half) for half in halves]
    plain = [mean_of([ratio(slim, dense) for dense, slim in half]).value for half in halves]
    own = [Pace(first).ratio(half).value for half in halves]
    known = [
        Pace(first, Trend.total(trends[:i])).ratio(half).value for i, half in enumerate(halves)
    ]
    return [
        f"{len(halves)}",
        f"{min(paces):.1f} to {max(paces):.1f}",
        f"{Trend.total(trends).slope:+.2f}",
        *(f"{100 * float(np.log(ratios).std(ddof=1)):.2f} %" for ratios in (plain, own, known)),
    ]


if __name__ == "__main__":
    main()
