"""What is gained by timing kernels in quiet moments, and what does waiting for these cost?

    python -m benchmarks.quiet --out docs/quiet.md

Kernels are set up and timed side by side, as for latency tables, again and again, now at once and
now when a moment is quiet. *Median* and *worst tenth* are of those timings, the latter over the
fastest of all; *seconds* is what one model with all of them takes, setting up included. Backends
that the file has already are not run again.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.written import WrittenTable, machine
from fxprune.backends import Backend, Region, get_backend
from fxprune.passes.together import TOGETHER
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
    heading = (
        f"# Kernels, timed at once and when it is quiet\n\n{intro}\n\n{machine()}; one thread."
    )
    table = WrittenTable(arguments.out, heading, COLUMNS, keys=3)
    for name in arguments.backends:
        if name not in table.column("backend"):
            compare(get_backend(name), arguments.seconds, table)


def compare(backend: Backend, seconds: float, table: WrittenTable) -> None:
    """Add the rows of one backend."""
    told: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    took: dict[str, list[float]] = {way: [] for way in WAYS}
    shuffled = random.Random(0)
    timed(backend)  # what is made once in a process is made now
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        for way in shuffled.sample([*WAYS], len(WAYS)):
            start = time.perf_counter()
            with WAYS[way]():
                told[way].append(timed(backend))
            took[way].append(time.perf_counter() - start)
    figures = {way: np.array(told[way]) for way in WAYS}
    fastest = np.concatenate([*figures.values()]).min(axis=0)
    for place, kernel in enumerate(REGIONS):
        for way in WAYS:
            own = figures[way][:, place]
            table.add(
                backend.name,
                kernel,
                way,
                f"{len(own)}",
                f"{1e6 * np.median(own):.1f}",
                f"{np.quantile(own, 0.9) / fastest[place]:.2f}",
                f"{np.mean(took[way]):.2f}",
            )


def timed(backend: Backend) -> list[float]:
    """Seconds of every kernel, each the mean of those of a few that are alike."""
    regions = [*REGIONS.values()]
    found = backend.region_seconds(regions * (TOGETHER // len(regions)))
    assert found is not None, "both backends tell kernels from networks"
    means: list[float] = np.reshape(found, (-1, len(regions))).mean(axis=0).tolist()
    return means


if __name__ == "__main__":
    main()
