"""Is what was promised what is measured? Latency budgets on real architectures, random weights.

    python -m benchmarks.latency_budget --out docs/latency_budget.md
    python -m benchmarks.latency_budget resnet50 --budgets 60 --backends onnxruntime
    python -m benchmarks.latency_budget --backends inductor --device cuda --precision fp16 \\
        --channels-last --cuda-graphs --batch 128

For each row a network is slimmed to a share of its latency by magnitude. *Known* tells how many
slim versions of it had been profiled before, for earlier budgets: the cache keeps what these told.
Unless one of them is near, a network is profiled that the tables would have just under the budget;
*rehearsal* is what they were off by there. *Predicted* is what was said, then, of the first
candidate; *first* is what it took; *later errors* are those of the tables after that was profiled
too, and so on; *measured* is the slim model that was returned, compiled afresh and measured in turn
with the dense one: until its interval is narrow and meets no limit of the window, or for three
minutes. All are shares of the dense latency. Rows that the file has already are not run again, so a
run that was interrupted is taken up by the same command.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

import fxprune
from benchmarks.written import WrittenTable, machine
from fxprune.backends import Backend, Settings, get_backend
from fxprune.backends.settings import Precision
from fxprune.compiled import Compiled
from fxprune.gauges import CONFIRMED
from fxprune.rounds import Round
from fxprune.stopwatch import Times, race

NETWORKS = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "vgg16_bn",
    "densenet121", "regnet_y_400mf", "shufflenet_v2_x1_0", "convnext_tiny", "vit_b_16",
)  # fmt: skip
COLUMNS = (
    "network", "backend", "requested", "dense ms", "known", "rehearsal", "predicted", "first",
    "error", "later errors", "measured", "interval", "rounds", "seconds", "in window",
)  # fmt: skip
LOWEST = 0.97
"""The least share of the budget that a slim network is to use."""
LEAST_SECONDS = 15.0
"""For which slim and dense are measured: a few seconds do not tell what changes within a minute."""
MOST_SECONDS = 180.0
"""For which they are measured on at most, until it is clear whether the budget was kept."""


def main() -> None:
    """Run what is asked for and not there yet, and sum it up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--budgets", type=int, nargs="+", default=(80, 60, 40), help="per cent")
    parser.add_argument("--backends", nargs="+", default=("onnxruntime", "openvino"))
    parser.add_argument("--out", type=Path, help="Markdown file for one device, batch and so on")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32")
    parser.add_argument("--channels-last", action="store_true", help="keep activations in NHWC")
    parser.add_argument("--cuda-graphs", action="store_true", help="replay one graph per inference")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(
        precision=arguments.precision,
        channels_last=arguments.channels_last,
        cuda_graphs=arguments.cuda_graphs,
    )
    deployment = Deployment(arguments.device, arguments.batch, settings)
    table = WrittenTable(arguments.out, heading(deployment), COLUMNS, keys=3)
    for network in arguments.networks:
        for name in arguments.backends:
            asked = [b for b in arguments.budgets if not table.has(network, name, f"{b} %")]
            if asked:
                slim_to(network, get_backend(name), deployment, asked, table)
    ending = summary(table)
    table.write(ending)
    print(ending)


@dataclass(frozen=True)
class Deployment:
    """How networks are deployed: on what, and for how many images at once."""

    device: str
    batch: int
    settings: Settings

    def __str__(self) -> str:
        told = {
            "one thread": self.device == "cpu",
            f"batch {self.batch}, 224x224, {self.settings.precision}": True,
            "NHWC": self.settings.channels_last,
            "CUDA graphs": self.settings.cuda_graphs,
        }
        return ", ".join(words for words, holds in told.items() if holds)


def heading(deployment: Deployment) -> str:
    """What was run, and on what."""
    clock = "CPU time of the process" if deployment.device == "cpu" else "CUDA events"
    lines = [
        "# Latency budgets: requested, predicted, measured",
        __doc__.split("\n\n")[2].replace("\n", " "),
        f"{machine(deployment.device)}; {deployment}, random weights. {clock}.",
    ]
    return "\n\n".join(lines)


def slim_to(
    network: str,
    backend: Backend,
    deployment: Deployment,
    budgets: Sequence[int],
    table: WrittenTable,
) -> None:
    """Add the rows of one network on one backend, which compiles the dense one once."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(network, weights=None).eval().to(deployment.device)
    inputs = (torch.randn(deployment.batch, 3, 224, 224).to(deployment.device),)
    dense = Compiled.of(backend, deployment.settings, model, inputs)
    for budget in budgets:
        cells = row(model, inputs, dense, backend, deployment.settings, budget)
        table.add(network, backend.name, f"{budget} %", *cells)


def row(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    dense: Compiled,
    backend: Backend,
    settings: Settings,
    budget: int,
) -> list[str]:
    """Slim to `budget` per cent and measure once more: the cells right of the request."""
    start = time.perf_counter()
    try:
        slim = fxprune.optimize(
            model,
            budget / 100,
            inputs,
            backend=backend,
            settings=settings,
            importance="magnitude",
            progress=False,
        )
    except fxprune.BudgetError as error:
        if math.isnan(error.floor):
            raise
        blanks = ["-"] * (len(COLUMNS) - 5)
        seconds = f"{time.perf_counter() - start:.0f}"
        return [*blanks, seconds, f"refused: {1e3 * error.floor:.2f} ms is the least"]
    took = time.perf_counter() - start
    report = fxprune.report(slim)
    whole = 100 * report.limits[0] / budget
    known = f"{report.rounds[0].known[0]}" if report.rounds else "-"
    rehearsal = [f"{off_by(r):+.1f} %" for r in report.rounds if r.rehearsal] or ["-"]
    rounds = [r for r in report.rounds if not r.rehearsal]
    final = Compiled.of(backend, settings, fxprune.finalize(slim, inputs), inputs)
    first = race(dense, final, inputs, lambda times: False, LEAST_SECONDS)
    is_clear = partial(clear, budget)
    times = first if is_clear(first) else race(dense, final, inputs, is_clear, MOST_SECONDS, first)
    share, (least, most) = times.share, window(budget)
    return [
        f"{1e3 * times.dense.seconds:.2f}",
        known,
        *rehearsal,
        *(predicted(rounds[0], whole) if rounds else ["-"] * 3),
        ", ".join(f"{off_by(later):+.1f} %" for later in rounds[1:]) or "-",
        f"{100 * share.value:.1f} %",
        f"{100 * share.low:.1f} to {100 * share.high:.1f}",
        f"{len(rounds)}",
        f"{took:.0f}",
        "yes" if least <= 100 * share.value <= most else "no",
    ]


def clear(budget: int, times: Times) -> bool:
    """Whether the share of the dense latency is known, and whether it lies in the window.

    Args:
        budget: per cent.
    """
    share = times.share
    decided = not any(share.low <= limit / 100 <= share.high for limit in window(budget))
    return decided and share.is_known_to(CONFIRMED)


def window(budget: int) -> tuple[float, float]:
    """Per cent of the dense latency between which a slim network is to lie."""
    return LOWEST * budget, budget


def predicted(first: Round, dense: float) -> tuple[str, str, str]:
    """What was predicted of the first candidate, what it took, and how far that is off."""
    told, took = first.predicted[0], first.measured[0]
    return (
        f"{100 * told / dense:.1f} %",
        f"{100 * took / dense:.1f} %",
        f"{off_by(first):+.1f} %",
    )


def off_by(found: Round) -> float:
    """How far a prediction was off, per cent."""
    return 100 * (found.predicted[0] / found.measured[0] - 1)


def size_of(error: str) -> float:
    """How far off, per cent, whichever way."""
    return abs(float(error.split()[0]))


def beyond(budget: int, measured: float) -> float:
    """How far outside of the window a latency lies, in points, as all in per cent of dense."""
    least, most = window(budget)
    return max(measured - most, least - measured)


def lies_outside(budget: int, interval: str) -> bool:
    """Whether not even the interval of a latency, "58.9 to 59.4", meets the window."""
    low, high = map(float, interval.split(" to "))
    least, most = window(budget)
    return low > most or high < least


def summary(table: WrittenTable) -> str:
    """How good the first predictions were, and whether every budget was kept."""
    rehearsals = zip(table.column("known"), table.column("rehearsal"), strict=True)
    later = [cell.split(",") for cell in table.column("later errors") if cell != "-"]
    errors = {
        "the tables alone": [size_of(e) for known, e in rehearsals if known == "0" and e != "-"],
        "predictions of first candidates": [
            size_of(error) for error in table.column("error") if error != "-"
        ],
        "predictions of later ones": [size_of(error) for cells in later for error in cells],
    }
    verdicts = table.column("in window")
    asked = [int(requested.split()[0]) for requested in table.column("requested")]
    missed = [place for place, verdict in enumerate(verdicts) if verdict == "no"]
    measured, intervals = table.column("measured"), table.column("interval")
    outside = [beyond(asked[i], float(measured[i].split()[0])) for i in missed]
    surely = sum(lies_outside(asked[i], intervals[i]) for i in missed)
    how_far = (
        f" by {np.median(outside):.1f} points in the median, {max(outside):.1f} at most, "
        f"{surely} of these with all of the interval"
        if outside
        else ""
    )
    refused = sum(verdict.startswith("refused") for verdict in verdicts)
    off = "; ".join(
        f"{name} by {np.median(each):.1f} % in the median of {len(each)}, "
        f"{np.quantile(each, 0.9):.1f} % at the 90th percentile"
        for name, each in errors.items()
        if each
    )
    return (
        f"{len(verdicts)} rows: {verdicts.count('yes')} in the window of {100 * LOWEST:.0f} to "
        f"100 % of the budget, {len(outside)} outside{how_far}, {refused} refused. Off were {off}. "
        f"{sum(float(cell) for cell in table.column('seconds')) / 60:.0f} minutes."
    )


if __name__ == "__main__":
    main()
