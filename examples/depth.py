"""Fewer kernels, narrower ones, or both: a MobileNetV2-like network on handwritten digits.

    python -m examples.depth

Trains the network, then brings it to the same share of its latency on ONNX Runtime in three ways:
by widths only, by depth only (blocks dropped, layers merged), and by both in one allocation. Each
gets the same fine-tuning, and is merged, compiled and measured afresh afterwards. Takes about ten
minutes on two cores and needs no GPU.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import fx, nn
from torch.nn import functional as F

import fxprune
from examples import digits
from examples.demo import step
from fxprune.backends import Settings, get_backend
from fxprune.compiled import Compiled
from fxprune.finalize import finalize
from fxprune.passes.recalibrate import recalibrate
from fxprune.passes.recover import evaluate
from fxprune.report import Report
from fxprune.stopwatch import race

WAYS = {
    "widths": {"drop_blocks": False, "merge_layers": False},
    "depth": {"narrow_layers": False},
    "both": {},
}
BACKEND = "onnxruntime"
SETTINGS = Settings(threads=1)
KNOWN = 0.01
"""How well the ratio of two latencies is to be known, if this can be had in `SECONDS`."""
SECONDS = 30.0


@dataclass(frozen=True)
class Result:
    """One way to the budget; accuracies as shares, latency as a share of dense."""

    way: str
    latency: float
    kernels: int
    value: float
    recalibrated: float
    tuned: float
    report: Report

    def line(self) -> str:
        """A row of the table."""
        cells = (
            self.way,
            f"{self.latency:.3f}",
            str(self.kernels),
            f"{self.value:.1f}",
            f"{self.recalibrated:.1%}",
            f"{self.tuned:.1%}",
            f"{len(self.report.dropped)}",
            f"{len(self.report.merged)}",
        )
        return f"| {' | '.join(cells)} |"


HEAD = (
    "| by | latency / dense | kernels | value | recalibrated | fine-tuned | blocks dropped | "
    "spans merged |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Widths, depth, or both, to one budget.")
    parser.add_argument("--budget", default="50% latency")
    parser.add_argument("--epochs", type=int, default=4, help="of training and of fine-tuning")
    parser.add_argument("--out", type=Path, help="where to write the table")
    chosen = parser.parse_args()
    console = Console()
    torch.manual_seed(0)
    train, test = digits.load()
    model = digits.MobileNet()
    with step("Training"):
        fxprune.finetune(model, train, epochs=chosen.epochs, lr=0.05, weight_decay=5e-4)
    accuracy = evaluate(model, test)
    lines = [f"Dense: {_kernels(model)} kernels, accuracy {accuracy:.1%}.", "", HEAD]
    for way, options in WAYS.items():
        with step(f"{chosen.budget} by {way}"):
            try:
                result = slimmed(model, way, options, chosen.budget, chosen.epochs, train, test)
            except fxprune.BudgetError as error:
                lines.append(f"| {way} | out of reach: {error.floor:.3g} {error.unit} |||||||")
                continue
            lines.append(result.line())
    console.print("\n".join(lines))
    if chosen.out:
        chosen.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def slimmed(
    model: nn.Module,
    way: str,
    options: dict[str, bool],
    budget: str,
    epochs: int,
    train: digits.Batches,
    test: digits.Batches,
) -> Result:
    """Bring `model` to the budget in one way, and fine-tune it."""
    image = test.images[:1]
    slim = fxprune.optimize(
        model,
        budget,
        (image,),
        data=train,
        loss=F.cross_entropy,
        backend=BACKEND,
        settings=SETTINGS,
        **options,
    )
    report = fxprune.report(slim)
    recalibrate(slim, train)
    recalibrated = evaluate(slim, test)
    torch.manual_seed(1)
    fxprune.finetune(slim, train, teacher=model, epochs=epochs, lr=0.02, weight_decay=5e-4)
    final = finalize(slim, (image,))
    assert report.certificate is not None
    return Result(
        way,
        latency_share(model, slim, image),
        _kernels(final),
        report.certificate.value,
        recalibrated,
        evaluate(final, test),
        report,
    )


def latency_share(model: nn.Module, slim: fx.GraphModule, image: torch.Tensor) -> float:
    """Slim over dense latency: both compiled afresh, and measured in turn."""
    backend = get_backend(BACKEND)
    modules = (model, finalize(slim, (image,)))
    dense, narrow = (Compiled.of(backend, SETTINGS, module, (image,)) for module in modules)
    times = race(dense, narrow, (image,), lambda times: times.share.is_known_to(KNOWN), SECONDS)
    return times.share.value


def _kernels(module: nn.Module) -> int:
    return sum(isinstance(m, nn.Conv2d | nn.Linear) for m in module.modules())


if __name__ == "__main__":
    main()
