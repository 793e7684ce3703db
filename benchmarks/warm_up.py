"""How much slower a network is just after another one has run: why a first call is not counted.

    python -m benchmarks.warm_up
    python -m benchmarks.warm_up mobilenet_v2 --backends openvino --after vgg16_bn

The two networks take turns. Every call of the first is timed, and sorted by when in its turn it
began. The figures are medians over the calls of all turns, relative to the last column's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fxprune.backends import get_backend
from fxprune.backends.settings import Settings

NETWORKS = ("shufflenet_v2_x1_0", "mobilenet_v2", "resnet18")
EDGES = (0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4)
TURNS = 15


def main() -> None:
    """Print a row for every network and backend."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--backends", nargs="+", default=("onnxruntime", "openvino"))
    parser.add_argument("--after", default="resnet50", help="the network in between")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    spans = [f"{low * 1e3:g} to {high * 1e3:g} ms" for low, high in pairwise(EDGES)]
    table = Table("network", "backend", *spans, "ms")
    inputs = (torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)),)
    for backend in arguments.backends:
        other = runner(arguments.after, backend, inputs)
        for name in arguments.networks:
            medians = by_time(runner(name, backend, inputs), other)
            last = medians[-1]
            assert last is not None, f"{name} takes longer than a turn"
            shares = ["-" if m is None else f"{m / last:.2f}" for m in medians]
            table.add_row(name, backend, *shares, f"{last * 1e3:.2f}")
    Console(width=140).print(table)


def runner(name: str, backend: str, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """A network of torchvision, compiled for one thread."""
    model = torchvision.models.get_model(name, weights=None).eval()
    return get_backend(backend).compile(model, inputs, Settings()).runner(*inputs)


def by_time(run: Callable[[], object], other: Callable[[], object]) -> list[float | None]:
    """Median seconds of the calls that begin between two edges; None where there are none."""
    begun: list[float] = []
    took: list[float] = []
    for _ in range(TURNS):
        keep_up(other)
        start = time.perf_counter()
        while (at := time.perf_counter() - start) < EDGES[-1]:
            before = time.process_time()
            run()
            took.append(time.process_time() - before)
            begun.append(at)
    place = np.digitize(begun, EDGES) - 1
    spans = [np.array(took)[place == i] for i in range(len(EDGES) - 1)]
    return [float(np.median(span)) if len(span) else None for span in spans]


def keep_up(run: Callable[[], object], seconds: float = 0.2) -> None:
    """Call again and again for so long."""
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        run()


if __name__ == "__main__":
    main()
