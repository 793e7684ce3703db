"""How far are engines of the same network apart? Why engines that are compared are set up by turns.

    python -m benchmarks.luck --out docs/luck.md
    python -m benchmarks.luck resnet18 --backends openvino

Eight engines of a network are compared with eight others of the very same: with those that were set
up *by turns* with them, one of these and one of those, and with eight that were set up *after* all
of them. The figures are the ratios of their latencies, each with its 95 % confidence interval:
without luck, they are 1. Rows that the file has already are not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from benchmarks.written import WrittenTable, machine
from fxprune.backends import Engine, Settings, get_backend
from fxprune.compiled import Compiled, set_up
from fxprune.stopwatch import race

NETWORKS = ("shufflenet_v2_x1_0", "mobilenet_v3_large")
COLUMNS = ("network", "backend", "trial", "by turns", "after")


def main() -> None:
    """Compare engines of each network on each backend a few times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--backends", nargs="+", default=("onnxruntime", "openvino"))
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each comparison")
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
                some, others = set_up(compiled, compiled)
                (afterwards,) = set_up(compiled)
                ratios = [
                    ratio(some, those, inputs, arguments.seconds) for those in (others, afterwards)
                ]
                table.add(network, backend, f"{trial + 1}", *ratios)


def ratio(
    some: Sequence[Engine], others: Sequence[Engine], inputs: tuple[Tensor, ...], seconds: float
) -> str:
    """The latency of the others over that of the first ones."""
    count = min(len(some), len(others))
    times = race(some[:count], others[:count], inputs, lambda times: False, seconds)
    return str(times.share)


if __name__ == "__main__":
    main()
