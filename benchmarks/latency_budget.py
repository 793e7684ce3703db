"""Is what was promised what is measured? Latency budgets on real architectures, random weights.

    python -m benchmarks.latency_budget                              all networks and budgets
    python -m benchmarks.latency_budget resnet50 --budgets 60 --backends onnxruntime

For each row a network is slimmed to a share of its latency by magnitude. *Predicted* is what the
tables said of the first candidate, *first* how far its measurement was off; *measured* is the slim
model that was returned, compiled afresh and measured in turn with the dense one once more.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
import torchvision

import fxprune
from fxprune.backends import Settings, get_backend
from fxprune.measure import measure_interleaved

NETWORKS = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "vgg16_bn",
    "densenet121", "regnet_y_400mf", "shufflenet_v2_x1_0", "convnext_tiny", "vit_b_16",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One network at one budget; latencies in seconds."""

    network: str
    backend: str
    budget: float
    dense: float
    predicted: float
    first_error: float
    measured: float
    rounds: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.network:20s} {self.backend:12s} {self.budget:4.0%}  dense "
            f"{1e3 * self.dense:7.2f} ms  predicted {1e3 * self.predicted:7.2f} ms  first "
            f"{self.first_error:+6.1%}  measured {self.measured:6.1%}  rounds {self.rounds}  "
            f"{self.seconds:5.0f} s"
        )


def main() -> None:
    """Run what is asked for, print a line each and a summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--budgets", type=float, nargs="+", default=(80, 60, 40))
    parser.add_argument("--backends", nargs="+", default=("onnxruntime", "openvino"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for network in arguments.networks:
        for backend in arguments.backends:
            for budget in arguments.budgets:
                try:
                    rows.append(run(network, backend, budget / 100))
                    print(rows[-1], flush=True)
                except fxprune.BudgetError as error:
                    print(f"{network:20s} {backend:12s} {budget:3.0f}%  {error.what}", flush=True)
    summarise(rows)


def run(network: str, backend: str, share: float) -> Row:
    """Slim one network to a share of its latency, and measure it once more."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(network, weights=None).eval()
    x = torch.randn(1, 3, 224, 224)
    start = time.perf_counter()
    slim = fxprune.optimize(
        model, share, (x,), backend=backend, importance="magnitude", progress=False
    )
    seconds = time.perf_counter() - start
    report = fxprune.report(slim)
    first = report.rounds[0]
    compiler = get_backend(backend)
    engines = {
        name: (compiler.compile(module, (x,), Settings()), (x,))
        for name, module in (("dense", model), ("slim", slim))
    }
    again = measure_interleaved(engines)
    return Row(
        network=network,
        backend=backend,
        budget=share,
        dense=again["dense"].seconds,
        predicted=first.predicted[0],
        first_error=first.measured[0] / first.predicted[0] - 1,
        measured=again["slim"].seconds / again["dense"].seconds,
        rounds=len(report.rounds),
        seconds=seconds,
    )


def summarise(rows: Sequence[Row]) -> None:
    """How good the first prediction was, and whether every budget was kept."""
    if not rows:
        return
    errors = [abs(row.first_error) for row in rows]
    kept = [row for row in rows if 0.97 <= row.measured / row.budget <= 1.0]
    print(
        f"{len(rows)} rows; first prediction off by {median(errors):.1%} (median), "
        f"{np.quantile(errors, 0.9):.1%} (90th percentile); measured again within 97 to 100 % of "
        f"the budget: {len(kept)}"
    )


if __name__ == "__main__":
    main()
