"""Which networks can be slimmed: every classification model of torchvision, random weights.

    python -m benchmarks.coverage                     every classification model
    python -m benchmarks.coverage resnet18 vit_b_16   these models only
    python -m benchmarks.coverage --out docs/coverage.md

Each model is captured, its axes are inferred, it is slimmed to half its MACs by magnitude and
verified against the masked original; then the slim model must give outputs of the original shape at
batch 1 and 2, and go through `torch.export` and ONNX export. A step that fails is named in the last
column.
"""

from __future__ import annotations

import argparse
import gc
import io
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torchvision
from torch import nn

import fxprune
from fxprune.passes.capture import capture
from fxprune.passes.frozen import frozen_places, prunable_share
from fxprune.passes.infer import infer

FAMILIES = (
    "resnet", "resnext", "wide_resnet", "vgg", "mobilenet", "mnasnet", "densenet", "efficientnet",
    "regnet", "shufflenet", "squeezenet", "googlenet", "inception", "convnext",
)  # fmt: skip
MORE = ("alexnet", "vit", "swin", "maxvit")
SIZES = {"inception_v3": 299}
COLUMNS = (
    "model", "captured by", "prunable", "MACs kept", "error", "capture", "infer", "optimize",
    "export", "ONNX", "failed",
)  # fmt: skip


@dataclass
class Row:
    """What happened to one model; seconds of each step that was reached."""

    model: str
    how: str = ""
    prunable: float = 0.0
    macs: float = 0.0
    error: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    failed: str = ""

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        timed = [
            f"{self.seconds[step]:.2f} s" if step in self.seconds else ""
            for step in ("capture", "infer", "optimize", "export", "ONNX")
        ]
        figures = (f"{self.prunable:.1%}", f"{self.macs:.1%}", f"{self.error:.0e}")
        return (self.model, self.how, *figures, *timed, self.failed)


def main() -> None:
    """Run the models that are asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="names of torchvision models; all if none")
    parser.add_argument("--out", type=Path, help="also write the table as Markdown")
    arguments = parser.parse_args()
    rows = []
    print(" | ".join(COLUMNS), flush=True)
    for name in arguments.models or family_models():
        row = try_model(name)
        rows.append(row)
        print(" | ".join(row.cells()), flush=True)
        if arguments.out is not None:
            arguments.out.write_text(as_markdown(rows), encoding="utf-8")
        gc.collect()
    failures = [row.model for row in rows if row.failed]
    print(f"{len(rows)} models, {len(failures)} failed: {', '.join(failures) or 'none'}")
    raise SystemExit(bool(failures))


def family_models() -> list[str]:
    """Every torchvision classification model, convolutional and small ones first."""
    names = torchvision.models.list_models(module=torchvision.models)
    found: list[str] = []
    for prefixes in (FAMILIES, MORE):
        wanted = [name for name in names if name.startswith(prefixes)]
        found.extend(sorted(wanted, key=number_of_parameters))
    return found


def number_of_parameters(name: str) -> int:
    """Parameters of a model, without building it."""
    weights = next(iter(torchvision.models.get_model_weights(name)))
    return int(weights.meta["num_params"])


def try_model(name: str) -> Row:
    """All steps on one model."""
    row = Row(name)
    try:
        _run(name, row)
    except Exception as error:  # a benchmark reports every failure and goes on
        row.failed = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
    return row


def _run(name: str, row: Row) -> None:
    torch.manual_seed(0)
    model = build(name)
    size = SIZES.get(name, 224)
    image = torch.randn(1, 3, size, size)
    with timed(row, "capture"):
        captured = capture(model, (image,))
    row.how = captured.capture
    with timed(row, "infer"):
        analysis = infer(captured)
    row.prunable = prunable_share(analysis)
    row.frozen = tuple(place.reason for place in frozen_places(analysis))
    del captured, analysis
    with timed(row, "optimize"):
        slim = fxprune.optimize(model, "50% MACs", (image,), importance="magnitude", progress=False)
    report = fxprune.report(slim)
    row.macs = report.slim.macs / report.dense.macs
    row.error = report.verification.max_relative_error if report.verification else float("nan")
    require(row.macs <= 0.5, "more than half of the MACs are left")
    same_shapes(model, slim, size)
    with timed(row, "export"):
        torch.export.export(slim, (image,))
    with timed(row, "ONNX"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
        program = torch.onnx.export(slim, (image,), dynamo=True, verbose=False)
    require(program is not None, "ONNX export gave nothing")


def build(name: str) -> nn.Module:
    """The model with random weights, in evaluation mode."""
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **extra)
    return model.eval()


def same_shapes(model: nn.Module, slim: nn.Module, size: int) -> None:
    """The slim model's outputs have the original's shapes, at batch 1 and 2."""
    for batch in (1, 2):
        image = torch.randn(batch, 3, size, size)
        with torch.no_grad():
            dense, small = model(image), slim(image)
        require(dense.shape == small.shape, f"batch {batch} gives {tuple(small.shape)}")


def require(holds: bool, otherwise: str) -> None:
    """Raise if something does not hold."""
    if not holds:
        raise RuntimeError(otherwise)


@contextmanager
def timed(row: Row, step: str) -> Iterator[None]:
    """Note how long a step took."""
    start = time.perf_counter()
    yield
    row.seconds[step] = time.perf_counter() - start


def as_markdown(rows: Sequence[Row]) -> str:
    """The table, and the reasons for what stays dense."""
    text = io.StringIO()
    write: Callable[[str], int] = text.write
    write("# Coverage\n\n")
    write(
        "Written by `python -m benchmarks.coverage --out docs/coverage.md`: torchvision "
        f"{torchvision.__version__}, torch {torch.__version__}, random weights, slimmed to half "
        "the MACs by magnitude.\n*prunable* is the share of parameters and buffers in groups, "
        "*error* the largest relative difference\nfrom the masked original at any node, in "
        "float64.\n\n"
    )
    write(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}\n")
    for row in rows:
        write(f"| {' | '.join(row.cells())} |\n")
    write("\n## What stays dense, besides kernels\n\n")
    for row in rows:
        write(f"- **{row.model}**: {'; '.join(row.frozen) or 'nothing'}\n")
    return text.getvalue()


if __name__ == "__main__":
    main()
