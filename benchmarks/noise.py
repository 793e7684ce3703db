"""Which turns, and which statistic of them, repeat best? Why turns are short, and so on.

    python -m benchmarks.noise --out docs/noise.md
    python -m benchmarks.noise --seconds 600 --backends openvino

MobileNetV2 and a version of it with three quarters of the channels take turns, as two networks do
whose ratio is measured: turns of one call each, and longer ones, half a minute of each kind by
turns. They are cut into groups of as many seconds as one measurement takes. Each statistic makes
one ratio of each group; the figures are those ratios' mean, and in per cent of it their standard
deviation: how far one measurement may be from the next. *Turns* is for how long the calls of one
are timed, after as long a warm-up; the fastest call counts. *Statistic* is the quantile of the
turns that counts as a network's latency, of which the ratio is made, or *pairs*: the median of the
ratios of turns that follow one another. Backends that the file has already are not run again.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models import mobilenet_v2

from benchmarks.written import WrittenTable, machine
from fxprune.backends import Settings, get_backend

LENGTHS = (0.0, 0.02, 0.05, 0.2)
GROUPS = (4.0, 8.0, 16.0)
QUANTILES = (0.0, 0.05, 0.25, 0.5)
STRETCH = 32.0
"""Seconds for which turns of one length are taken, before those of the other."""
COLUMNS = ("backend", "turns", "statistic", *(f"{seconds:g} s" for seconds in GROUPS))

Seconds = NDArray[np.float64]


def main() -> None:
    """Measure, and try every statistic on the same turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=("onnxruntime", "openvino"))
    parser.add_argument("--seconds", type=float, default=512.0, help="for each backend")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    intro = " ".join(__doc__.split("\n\n")[2].split("\n"))
    heading = f"# The statistics of noisy turns\n\n{intro}\n\n{machine()}; one thread, CPU time."
    table = WrittenTable(arguments.out, heading, COLUMNS, keys=3)
    asked = [name for name in arguments.backends if name not in table.column("backend")]
    for backend in asked:
        for length, taken in turns(backend, arguments.seconds).items():
            groups = {seconds: taken.groups(seconds) for seconds in GROUPS}
            statistics = {f"{share:g}": quantile_of(share) for share in QUANTILES}
            for name, of in (statistics | {"pairs": of_pairs}).items():
                figures = [figure(group, of) for group in groups.values()]
                table.add(backend, f"{1e3 * length:g} ms" if length else "a call", name, *figures)


@dataclass
class Turns:
    """Pairs of turns of two networks: when each pair began, and the seconds of both."""

    begun: list[float] = field(default_factory=list)
    seconds: list[tuple[float, float]] = field(default_factory=list)

    def groups(self, seconds: float) -> list[tuple[Seconds, Seconds]]:
        """The latencies of turns in groups of so many seconds."""
        place = np.array(self.begun) // seconds
        return [(*np.array(self.seconds)[place == i].T,) for i in range(int(place[-1]) + 1)]


def turns(backend: str, seconds: float) -> dict[float, Turns]:
    """Turns of each length of the two networks, in random order."""
    torch.manual_seed(0)
    inputs = (torch.randn(1, 3, 224, 224),)
    runs = [runner(backend, width, inputs) for width in (1.0, 0.75)]
    found = {length: Turns() for length in LENGTHS}
    shuffled = random.Random(0)
    for stretch in range(max(int(seconds / STRETCH / len(LENGTHS)), 1)):
        for length, taken in found.items():
            start = time.perf_counter()
            while (at := time.perf_counter() - start) < STRETCH:
                fastest = {i: turn(runs[i], length) for i in shuffled.sample(range(2), 2)}
                taken.begun.append(STRETCH * stretch + at)
                taken.seconds.append((fastest[0], fastest[1]))
    return found


def runner(backend: str, width: float, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """A MobileNetV2, compiled for one thread."""
    model = mobilenet_v2(weights=None, width_mult=width).eval()
    return get_backend(backend).compile(model, inputs, Settings()).runner(*inputs)


def turn(run: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest call in so many seconds, after as many of warming up."""
    warm = time.perf_counter() + seconds
    run()
    while time.perf_counter() < warm:
        run()
    fastest = math.inf
    stop = time.perf_counter() + seconds
    while fastest == math.inf or time.perf_counter() < stop:
        before = time.process_time()
        run()
        fastest = min(fastest, time.process_time() - before)
    return fastest


def quantile_of(share: float) -> Callable[[Seconds, Seconds], float]:
    """The ratio of two quantiles."""
    return lambda dense, slim: float(np.quantile(slim, share) / np.quantile(dense, share))


def of_pairs(dense: Seconds, slim: Seconds) -> float:
    """The median of the ratios."""
    return float(np.median(slim / dense))


def figure(
    groups: Sequence[tuple[Seconds, Seconds]], of: Callable[[Seconds, Seconds], float]
) -> str:
    """Mean and deviation of the ratios of all groups."""
    ratios = [of(dense, slim) for dense, slim in groups]
    if len(ratios) < 2:
        return "-"
    return f"{np.mean(ratios):.3f} ± {100 * np.std(ratios, ddof=1) / np.mean(ratios):.2f} %"


if __name__ == "__main__":
    main()
