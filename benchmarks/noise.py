"""Which statistic of noisy turns repeats best? Why the fastest call of a turn counts, and so on.

    python -m benchmarks.noise --out docs/noise.md
    python -m benchmarks.noise --seconds 600 --backends openvino

MobileNetV2 and a version of it with three quarters of the channels take turns, as two networks do
whose ratio is measured. The turns are cut into groups of as many as one measurement has. Each
statistic makes one ratio of each group; the figures are those ratios' mean, and in per cent of it
their standard deviation: how far one measurement may be from the next. *Turn* is the quantile of
the calls that counts as the latency of a turn, *of turns* the quantile of those that counts as the
network's; *pairs* is the median of the ratios of turns that follow one another. Backends that the
file has already are not run again.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models import mobilenet_v2

from benchmarks.written import WrittenTable, machine
from fxprune.backends import Settings, get_backend

TURNS = (15, 30, 60)
WITHIN = (0.0, 0.1, 0.5)
ACROSS = (0.0, 0.05, 0.1, 0.25, 0.5)
CALLS = 20
WARM_UP = 0.1
COLUMNS = ("backend", "turn", "of turns", *(f"{count} turns" for count in TURNS))

Seconds = NDArray[np.float64]


def main() -> None:
    """Measure, and try every statistic on the same turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=("onnxruntime", "openvino"))
    parser.add_argument("--seconds", type=float, default=240.0, help="for each backend")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    intro = " ".join(__doc__.split("\n\n")[2].split("\n"))
    heading = f"# The statistics of noisy turns\n\n{intro}\n\n{machine()}; one thread, CPU time."
    table = WrittenTable(arguments.out, heading, COLUMNS, keys=3)
    asked = [name for name in arguments.backends if name not in table.column("backend")]
    for backend in asked:
        dense, slim = turns(backend, arguments.seconds)
        for turn in WITHIN:
            a, b = (np.quantile(calls, turn, axis=1) for calls in (dense, slim))
            for share in ACROSS:
                figures = [figure(a, b, count, quantile_of(share)) for count in TURNS]
                table.add(backend, f"{turn:g}", f"{share:g}", *figures)
            figures = [figure(a, b, count, of_pairs) for count in TURNS]
            table.add(backend, f"{turn:g}", "pairs", *figures)


def turns(backend: str, seconds: float) -> tuple[Seconds, Seconds]:
    """Seconds of every call [turns, calls] of the two networks, in turn and in random order."""
    torch.manual_seed(0)
    inputs = (torch.randn(1, 3, 224, 224),)
    runs = [runner(backend, width, inputs) for width in (1.0, 0.75)]
    taken: tuple[list[list[float]], ...] = ([], [])
    shuffled = random.Random(0)
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        for which in shuffled.sample(range(2), 2):
            taken[which].append(calls_of(runs[which]))
    dense, slim = map(np.array, taken)
    return dense, slim


def runner(backend: str, width: float, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """A MobileNetV2, compiled for one thread."""
    model = mobilenet_v2(weights=None, width_mult=width).eval()
    return get_backend(backend).compile(model, inputs, Settings()).runner(*inputs)


def calls_of(run: Callable[[], object]) -> list[float]:
    """Seconds of the calls of one turn."""
    warm = time.perf_counter() + WARM_UP
    while time.perf_counter() < warm:
        run()
    taken = []
    for _ in range(CALLS):
        before = time.process_time()
        run()
        taken.append(time.process_time() - before)
    return taken


def quantile_of(share: float) -> Callable[[Seconds, Seconds], float]:
    """The ratio of two quantiles."""
    return lambda dense, slim: float(np.quantile(slim, share) / np.quantile(dense, share))


def of_pairs(dense: Seconds, slim: Seconds) -> float:
    """The median of the ratios."""
    return float(np.median(slim / dense))


def figure(
    dense: Seconds, slim: Seconds, count: int, of: Callable[[Seconds, Seconds], float]
) -> str:
    """Mean and deviation of the ratios that groups of `count` turns give."""
    starts = range(0, len(dense) - count + 1, count)
    ratios = [of(dense[i : i + count], slim[i : i + count]) for i in starts]
    if len(ratios) < 2:
        return "-"
    return f"{np.mean(ratios):.3f} ± {100 * np.std(ratios, ddof=1) / np.mean(ratios):.2f} %"


if __name__ == "__main__":
    main()
