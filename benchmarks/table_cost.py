"""What latency tables cost: entries measured, seconds cold and warm, per network and backend.

    python -m benchmarks.table_cost --out docs/table_cost.md
    python -m benchmarks.table_cost resnet50 --backends onnxruntime

Each network starts with an empty cache. *Cold* and *warm* are the seconds of preparing it: capture,
inference, importance, compiling and measuring the dense network, and its tables; *tables* is the
part of the cold run in which kernels were measured. *Measured warm* are the kernels that the second
run measured, which are to be none.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision

from benchmarks.latency_budget import NETWORKS
from benchmarks.written import WrittenTable, arguments_for, machine
from fxprune.cache import Cache
from fxprune.prepare import Options, prepare

COLUMNS = (
    "network", "backend", "entries", "cold s", "tables s", "ms per entry", "warm s",
    "measured warm",
)  # fmt: skip


@dataclass
class Watch:
    """Notes when kernels were measured; takes the calls that show progress."""

    first: float | None = None
    last: float = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        if what == "Measuring kernels":
            self.last = time.perf_counter()
            self.first = self.first or self.last

    @property
    def seconds(self) -> float:
        """Between the first kernel and the last one."""
        return self.last - self.first if self.first else 0.0


def main() -> None:
    """Run what is asked for and not there yet."""
    arguments = arguments_for(__doc__, NETWORKS)
    heading = "\n\n".join(
        [
            "# What latency tables cost",
            __doc__.split("\n\n")[2].replace("\n", " "),
            f"{machine()}; one thread, batch 1, 224x224, fp32.",
        ]
    )
    table = WrittenTable(arguments.out, heading, COLUMNS, keys=2)
    for network in arguments.networks:
        for backend in arguments.backends:
            if not table.has(network, backend):
                table.add(network, backend, *cost(network, backend))


def cost(network: str, backend: str) -> list[str]:
    """Prepare one network twice, and count what the cache had to learn."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "cache.sqlite"))
        cold, watch, entries = prepared(network, backend, path)
        warm, _, more = prepared(network, backend, path)
    return [
        f"{entries}",
        f"{cold:.0f}",
        f"{watch.seconds:.0f}",
        f"{1e3 * watch.seconds / max(entries, 1):.0f}",
        f"{warm:.0f}",
        f"{more}",
    ]


def prepared(network: str, backend: str, cache: str) -> tuple[float, Watch, int]:
    """Seconds of preparing a network, when kernels were measured, and how many."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(network, weights=None).eval()
    inputs = (torch.randn(1, 3, 224, 224),)
    options = Options(backend=backend, importance="magnitude", cache=cache)
    watch = Watch()
    with Cache(cache) as store:
        before = len(store)
    start = time.perf_counter()
    prepare(model, inputs, options, [None], watch)
    seconds = time.perf_counter() - start
    with Cache(cache) as store:
        return seconds, watch, len(store) - before


if __name__ == "__main__":
    main()
