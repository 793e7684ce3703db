"""How long it takes to know every axis of a network, and how much memory.

    python -m benchmarks.analysis_speed
    python -m benchmarks.analysis_speed resnet50 swin_t --runs 20

Each network of torchvision's classification zoo runs in a process of its own, with one thread.
Times are processor time, which other programs on the machine disturb least: capture once, inference
as the least of several runs. Memory is how far inference lifts the peak of the process over what it
held before.
"""

from __future__ import annotations

import argparse
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
import torchvision

from fxprune.passes.capture import capture
from fxprune.passes.infer import infer

# Limits that the project promises: milliseconds for one network, and for any.
PROMISED = {"resnet50": 50.0}
PROMISED_FOR_ALL, PROMISED_MEGABYTES = 1000.0, 2048.0
PARAMETERS = 200e6
CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Row:
    """One network: seconds of capture, milliseconds and megabytes of inference, groups found."""

    name: str
    capture: float
    infer: float
    peak: float
    groups: int

    def __str__(self) -> str:
        return (
            f"{self.name:<22}{self.capture:>10.2f}{self.infer:>10.1f}{self.peak:>10.1f}"
            f"{self.groups:>8}"
        )

    @property
    def keeps(self) -> bool:
        """Whether the network is within the promised limits."""
        limit = PROMISED.get(self.name, PROMISED_FOR_ALL)
        return self.infer <= limit and self.peak <= PROMISED_MEGABYTES


def build(name: str) -> torch.nn.Module:
    """A network of torchvision with random weights."""
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **extra).eval()


def side_of(name: str) -> int:
    """A small image that the network takes: axes do not depend on it."""
    if name == "inception_v3":
        return 107
    return 224 if name.startswith(("vit", "maxvit")) else 64


def peak_megabytes() -> float:
    """The most memory that this process has held since the peak was last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, runs: int) -> Row:
    """Capture and analyse one network."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, side = build(name), side_of(name)
    started = time.process_time()
    captured = capture(model, torch.randn(2, 3, side, side))
    capturing = time.process_time() - started
    if CLEAR.exists():
        CLEAR.write_text("5")  # Linux: from here on the peak is counted anew
    before = peak_megabytes()
    times = []
    for _ in range(runs):
        started = time.process_time()
        analysis = infer(captured)
        times.append(time.process_time() - started)
    peak = peak_megabytes() - before
    return Row(name, capturing, 1000 * min(times), peak, len(analysis.groups))


def names_of_the_zoo(parameters: float) -> list[str]:
    """Classification networks with at most so many parameters, by what their weights list."""
    found = []
    for name in torchvision.models.list_models(module=torchvision.models):
        weights = next(iter(torchvision.models.get_model_weights(name)))
        if weights.meta["num_params"] <= parameters:
            found.append(name)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Time and memory of axis inference.")
    parser.add_argument("names", nargs="*", help="networks; the whole zoo if none is given")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument(
        "--parameters", type=float, default=PARAMETERS, help="leave larger networks out"
    )
    options = parser.parse_args()
    names = options.names or names_of_the_zoo(options.parameters)
    print(f"{'network':<22}{'capture s':>10}{'infer ms':>10}{'peak MB':>10}{'groups':>8}")
    rows = []
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for row in pool.map(measure, names, [options.runs] * len(names)):
            print(row, flush=True)
            rows.append(row)
    slowest, largest = max(rows, key=lambda r: r.infer), max(rows, key=lambda r: r.peak)
    print(f"{len(rows)} networks; slowest {slowest.name}, largest {largest.name}")
    over = [row.name for row in rows if not row.keeps]
    print(f"over the promised limits: {', '.join(over) or 'none'}")
    return len(over)


if __name__ == "__main__":
    raise SystemExit(main())
