"""How far are engines of the same network apart? Why every look at networks has engines of its own.

    python -m benchmarks.luck --out docs/luck.md
    python -m benchmarks.luck resnet18 --backends openvino

A network is compared with itself, in some looks at a few engines of each: with the same engines in
all looks, and with engines that are *set up anew* for each of them, as candidates are measured. The
figures are the means of the looks' ratios, with the 95 % confidence intervals that follow from how
far these are apart: without luck, nineteen of twenty hold 1. Rows that the file has already are not
run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from benchmarks.written import WrittenTable, machine
from fxprune.backends import Settings, get_backend
from fxprune.compiled import Compiled, set_up
from fxprune.measurement import mean_of, ratio
from fxprune.stopwatch import LOOK_SECONDS, looks
from fxprune.turns import Found, measure_interleaved

NETWORKS = ("shufflenet_v2_x1_0", "mobilenet_v3_large")
COLUMNS = ("network", "backend", "trial", "the same engines", "set up anew")


def main() -> None:
    """Compare each network with itself on each backend a few times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--backends", nargs="+", default=("onnxruntime", "openvino"))
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--looks", type=int, default=10, help="for each comparison")
    parser.add_argument("--out", type=Path, help="Markdown file to write to, row by row")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    intro = __doc__.split("\n\n")[2].replace("\n", " ")
    heading = f"# Engines of the same network\n\n{intro}\n\n{machine()}; one thread, CPU time."
    table = WrittenTable(arguments.out, heading, COLUMNS, keys=3)
    inputs = (torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)),)
    for backend in arguments.backends:
        for network in arguments.networks:
            model = torchvision.models.get_model(network, weights=None).eval()
            compiled = Compiled.of(get_backend(backend), Settings(), model, inputs)
            for trial in range(arguments.trials):
                if table.has(network, backend, f"{trial + 1}"):
                    continue
                ratios = [
                    told(islice(way(compiled, inputs), arguments.looks)) for way in (same, anew)
                ]
                table.add(network, backend, f"{trial + 1}", *ratios)


def told(found: Iterable[Found]) -> str:
    """What looks at a network and itself come to."""
    return str(mean_of([ratio(each["b"], each["a"]) for each in found]))


def same(compiled: Compiled, inputs: tuple[Tensor, ...]) -> Iterator[Found]:
    """Looks at a network and itself with the same engines."""
    engines = dict(zip("ab", set_up(compiled, compiled), strict=True))
    if engines["a"][0] is engines["b"][0]:
        raise SystemExit("A network that is too large to be set up twice tells nothing of luck.")
    while True:
        yield measure_interleaved(engines, inputs, LOOK_SECONDS)


def anew(compiled: Compiled, inputs: tuple[Tensor, ...]) -> Iterator[Found]:
    """Looks at a network and itself with engines that are set up for each of them."""
    return looks({"a": compiled, "b": compiled}, inputs)


if __name__ == "__main__":
    main()
