"""What is gained by measuring an engine in quiet moments, and what does waiting for these cost?

    python -m benchmarks.quiet --out docs/quiet.md

Small models of one kernel are compiled and measured by the clock, as kernels are for which a
backend has no profiles, again and again, now at once and now when a moment is quiet. *Median* and
*worst tenth* are of these measurements, the latter over the fastest of all; *seconds* is what one
takes, without compiling. Backends that the file has already are not run again.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.written import WrittenTable, machine
from fxprune.backends import Backend, Region, get_backend
from fxprune.measure import measure
from fxprune.passes.kernels import KERNEL_TIMING
from fxprune.quiet import Canary

REGIONS = {
    "3x3, 256 to 256, at 14x14": Region("conv", 1, 256, 256, 1, (14, 14), (3, 3), padding=(1, 1)),
    "1x1, 64 to 384, at 14x14": Region("conv", 1, 64, 384, 1, (14, 14), (1, 1)),
    "3x3 depthwise, 384, at 14x14": Region(
        "conv", 1, 384, 384, 384, (14, 14), (3, 3), padding=(1, 1)
    ),
    "linear, 1280 to 1000": Region("linear", 1, 1280, 1000),
}
WAYS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "at once": lambda: patch.object(Canary, "wait", lambda canary, patience: 0.0),
    "when quiet": nullcontext,
}
COLUMNS = ("backend", "kernel", "timed", "times", "median us", "worst tenth", "seconds")


def main() -> None:
    """Time kernels either way, in random order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=("onnxruntime", "openvino"))
    parser.add_argument("--seconds", type=float, default=120.0, help="for each backend")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    intro = __doc__.split("\n\n")[2].replace("\n", " ")
    heading = f"# Measuring at once and when it is quiet\n\n{intro}\n\n{machine()}; one thread."
    table = WrittenTable(arguments.out, heading, COLUMNS, keys=3)
    for name in arguments.backends:
        if name not in table.column("backend"):
            compare(get_backend(name), arguments.seconds, table)


def compare(backend: Backend, seconds: float, table: WrittenTable) -> None:
    """Add the rows of one backend."""
    places = [*product(REGIONS, WAYS)]
    told: dict[tuple[str, str], list[float]] = {place: [] for place in places}
    took: dict[tuple[str, str], list[float]] = {place: [] for place in places}
    shuffled = random.Random(0)
    some = REGIONS[places[0][0]]
    measure(backend.compile_region(some), some.inputs(), KERNEL_TIMING)  # learns what is quiet
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        for kernel, way in shuffled.sample(places, len(places)):
            region = REGIONS[kernel]
            engine, inputs = backend.compile_region(region), region.inputs()
            start = time.perf_counter()
            with WAYS[way]():
                told[kernel, way].append(measure(engine, inputs, KERNEL_TIMING).seconds)
            took[kernel, way].append(time.perf_counter() - start)
    for kernel, way in places:
        own = told[kernel, way]
        fastest = min(min(told[kernel, other]) for other in WAYS)
        table.add(
            backend.name,
            kernel,
            way,
            f"{len(own)}",
            f"{1e6 * np.median(own):.1f}",
            f"{np.quantile(own, 0.9) / fastest:.2f}",
            f"{np.mean(took[kernel, way]):.2f}",
        )


if __name__ == "__main__":
    main()
