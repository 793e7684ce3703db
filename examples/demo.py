"""The main job on real data: train, slim to half the latency, fine-tune, compare.

    make demo          (or: python -m examples.demo)

Takes a few minutes on two cores and needs no GPU.  Writes a table, a picture of every layer's width
and latency, and the slim network into demo-output/.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

import fxprune
from examples import digits
from fxprune.passes.recalibrate import recalibrate
from fxprune.passes.recover import evaluate
from fxprune.report import Report

BUDGET = "50% latency"
OUTPUT = Path("demo-output")

console = Console()


def main() -> None:
    torch.manual_seed(0)
    train, test = digits.load()
    model = digits.ResNet()

    with step(f"1/3  Training a ResNet-14 on {len(train.labels)} handwritten digits"):
        fxprune.finetune(model, train, epochs=4, lr=0.05, weight_decay=5e-4)
    dense_accuracy = evaluate(model, test)

    with step(f"2/3  Slimming to {BUDGET}, as ONNX Runtime measures it on this machine"):
        image = test.images[:1]
        slim = fxprune.optimize(
            model, BUDGET, (image,), data=train, loss=F.cross_entropy, backend="onnxruntime"
        )
    accuracies = {"slimmed": evaluate(slim, test)}

    with step("3/3  Fine-tuning the slim network, with the dense one as its teacher"):
        recalibrate(slim, train)
        accuracies["recalibrated"] = evaluate(slim, test)
        fxprune.finetune(slim, train, teacher=model, epochs=4, lr=0.02, weight_decay=5e-4)
    accuracies["fine-tuned"] = evaluate(slim, test)

    report = fxprune.report(slim)
    rows = [*report.rows(), *(compare(k, dense_accuracy, a) for k, a in accuracies.items())]
    show(rows, f"Dense and slim on {len(test.labels)} test images; {report.backend}")
    write(slim, report, rows)


def compare(stage: str, dense: float, slim: float) -> tuple[str, str, str, str]:
    """One row of the table: accuracy before, and at some stage after slimming."""
    change = f"{100 * (slim - dense):+.1f} points"
    return f"accuracy, {stage}", f"{100 * dense:.1f} %", f"{100 * slim:.1f} %", change


def show(rows: list[tuple[str, str, str, str]], title: str) -> None:
    table = Table(title=title)
    table.add_column("")
    for heading in ("dense", "slim", "slim / dense"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def write(
    slim: torch.fx.GraphModule, report: Report, rows: list[tuple[str, str, str, str]]
) -> None:
    OUTPUT.mkdir(exist_ok=True)
    lines = [("", "dense", "slim", "slim / dense"), ("---", "---:", "---:", "---:"), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    (OUTPUT / "table.md").write_text(table + "\n", encoding="utf-8")
    (OUTPUT / "report.md").write_text(report.to_markdown(), encoding="utf-8")
    report.plot(OUTPUT / "layers.png")
    fxprune.save(slim, OUTPUT / "slim.safetensors")
    console.print(f"Written to {OUTPUT}/: " + ", ".join(sorted(p.name for p in OUTPUT.iterdir())))


@contextmanager
def step(title: str) -> Iterator[None]:
    """Say what is going on, and how long it took."""
    console.rule(title, align="left")
    start = time.perf_counter()
    yield
    console.print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
