"""Which networks can be slimmed: every model of torchvision, random weights.

    python -m benchmarks.coverage                     every classification model
    python -m benchmarks.coverage resnet18 vit_b_16   these models only
    python -m benchmarks.coverage --out docs/coverage.md
    python -m benchmarks.coverage --kind detection segmentation flow video

Each model is captured, its axes are inferred, it is slimmed to half its MACs by magnitude and
verified against the masked original; then the slim model must give outputs of the original shape at
batch 1 and 2, and go through `torch.export` and ONNX export. A detector keeps its Python glue: it
must predict on two images of other sizes, give finite losses and gradients in training, and its
captured backbone goes through the exports. A step that fails is named in the last column but one,
and what keeps parameters dense, besides the kernels' height and width, in the last. Rows that the
file has already are not run again.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import fxprune
from benchmarks.written import WrittenTable
from fxprune.passes.bake import bake
from fxprune.passes.capture import capture
from fxprune.passes.frozen import frozen_places, prunable_share
from fxprune.passes.glue.module import GluedModule

FAMILIES = (
    "resnet", "resnext", "wide_resnet", "vgg", "mobilenet", "mnasnet", "densenet", "efficientnet",
    "regnet", "shufflenet", "squeezenet", "googlenet", "inception", "convnext",
)  # fmt: skip
MORE = ("alexnet", "vit", "swin", "maxvit")
SIZES = {"inception_v3": 299}
# Modest inputs: what a network costs is no matter here. (batch, channels, frames, height, width)
KINDS = {
    "detection": torchvision.models.detection,
    "segmentation": torchvision.models.segmentation,
    "flow": torchvision.models.optical_flow,
    "video": torchvision.models.video,
}
CLIPS = {"mvit": (16, 224, 224), "s3d": (16, 224, 224), "swin3d": (8, 64, 64)}
CLIP = (8, 56, 56)
FRAME, MAP, SIDE = 128, 129, 160
FEWER = {
    "min_size": SIDE, "max_size": SIDE, "rpn_post_nms_top_n_test": 50, "box_detections_per_img": 5,
}  # fmt: skip
COLUMNS = (
    "model", "captured by", "prunable", "MACs kept", "error", "capture", "infer", "optimize",
    "export", "ONNX", "failed", "dense because of",
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
    dense: str = ""
    failed: str = ""

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        timed = [
            f"{self.seconds[step]:.2f} s" if step in self.seconds else ""
            for step in ("capture", "infer", "optimize", "export", "ONNX")
        ]
        figures = (f"{self.prunable:.1%}", f"{self.macs:.1%}", f"{self.error:.0e}")
        return (self.model, self.how, *figures, *timed, self.failed, self.dense)


def main() -> None:
    """Run the models that are asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="names of torchvision models; all if none")
    parser.add_argument(
        "--kind", nargs="+", choices=["classification", *KINDS], default=["classification"]
    )
    parser.add_argument("--out", type=Path, help="also write the table as Markdown")
    arguments = parser.parse_args()
    table = WrittenTable(arguments.out, heading(arguments.kind), COLUMNS, keys=1)
    print(" | ".join(COLUMNS), flush=True)
    for name in arguments.models or [name for kind in arguments.kind for name in models_of(kind)]:
        if not table.has(name):
            table.add(*try_model(name).cells())
            gc.collect()
    failures = [row[0] for row in table.rows if row[COLUMNS.index("failed")]]
    ending = f"{len(table.rows)} models, {len(failures)} failed: {', '.join(failures) or 'none'}."
    table.write(ending)
    print(ending)
    raise SystemExit(bool(failures))


def models_of(kind: str) -> list[str]:
    """Every model of one kind, small ones first."""
    if kind == "classification":
        return family_models()
    names = torchvision.models.list_models(module=KINDS[kind])
    return sorted(names, key=number_of_parameters)


def kind_of(name: str) -> str:
    """The kind that a model is of."""
    kinds = (k for k, module in KINDS.items() if name in torchvision.models.list_models(module))
    return next(kinds, "classification")


def inputs_of(name: str, batch: int = 1) -> tuple[Any, ...]:
    """What a model is called with."""
    kind = kind_of(name)
    if kind == "detection":
        return ([torch.rand(3, SIDE - 30 * i, SIDE - 10) for i in range(batch)],)
    if kind == "flow":
        return (torch.rand(batch, 3, FRAME, FRAME), torch.rand(batch, 3, FRAME, FRAME))
    if kind == "video":
        shape = next((s for prefix, s in CLIPS.items() if name.startswith(prefix)), CLIP)
        return (torch.randn(batch, 3, *shape),)
    size = MAP if kind == "segmentation" else SIZES.get(name, 224)
    return (torch.randn(batch, 3, size, size),)


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
    inputs = inputs_of(name)
    with timed(row, "capture"):
        captured = capture(model, inputs)
    row.how = captured.capture
    with timed(row, "infer"):
        captured, analysis = bake(captured)
    row.prunable = prunable_share(analysis)
    row.dense = condensed([place.reason for place in frozen_places(analysis)])
    first = captured.example_inputs[:1]
    del captured, analysis
    with timed(row, "optimize"):
        slim = fxprune.optimize(model, "50% MACs", inputs, importance="magnitude", progress=False)
    report = fxprune.report(slim)
    row.macs = report.slim.macs / report.dense.macs
    row.error = report.verification.max_relative_error if report.verification else float("nan")
    require(row.macs <= 0.5, "more than half of the MACs are left")
    if isinstance(slim, GluedModule):
        detects_and_trains(slim)
        slim, inputs = slim.get_submodule("backbone"), first
    else:
        same_shapes(model, slim, name)
    slim = slim.eval()
    with timed(row, "export"):
        torch.export.export(slim, inputs)
    with timed(row, "ONNX"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
        program = torch.onnx.export(slim, inputs, dynamo=True, verbose=False)
    require(program is not None, "ONNX export gave nothing")


def build(name: str) -> nn.Module:
    """The model with random weights, in evaluation mode."""
    builder = torchvision.models.get_model_builder(name)
    extra: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        extra["init_weights"] = False
    if "weights_backbone" in inspect.signature(builder).parameters:
        extra["weights_backbone"] = None
    if kind_of(name) == "detection" and not name.startswith("ssd"):
        extra |= FEWER if "rcnn" in name else {"min_size": SIDE, "max_size": SIDE}
    model: nn.Module = builder(weights=None, **extra)
    return model.eval()


def same_shapes(model: nn.Module, slim: nn.Module, name: str) -> None:
    """The slim model's outputs have the original's shapes, at batch 1 and 2."""
    for batch in (1, 2):
        inputs = inputs_of(name, batch)
        with torch.no_grad():
            dense, small = shapes(model(*inputs)), shapes(slim(*inputs))
        require(dense == small, f"batch {batch} gives {small}")


def shapes(outputs: Any) -> list[Any]:
    """The shapes of all tensors in some outputs."""
    return [tuple(leaf.shape) for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def detects_and_trains(slim: nn.Module) -> None:
    """A detector takes two images of other sizes, in evaluation and in training."""
    images = [torch.rand(3, SIDE, SIDE + 20), torch.rand(3, SIDE - 40, SIDE)]
    with torch.no_grad():
        require(len(slim(images)) == 2, "two images give no two results")
    losses = slim.train()(images, [target_in(image) for image in images])
    sum(losses.values()).backward()
    missing = [n for n, p in slim.named_parameters() if p.requires_grad and p.grad is None]
    require(not missing, f"no gradient for {missing[:3]}")
    require(all(bool(loss.isfinite()) for loss in losses.values()), "a loss is not finite")


def target_in(image: Tensor) -> dict[str, Tensor]:
    """One object in `image`, with everything that a detector may ask for."""
    _, height, width = image.shape
    return {
        "boxes": torch.tensor([[4.0, 5.0, width - 8.0, height - 9.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, height, width, dtype=torch.uint8),
        "keypoints": torch.full((1, 17, 3), 20.0),
    }


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


def condensed(reasons: Sequence[str]) -> str:
    """Reasons without the places that they hold at, and how many of each there are."""
    kinds = Counter(reason.rpartition(" at ")[0].replace(" [", " (") + ")" for reason in reasons)
    return "; ".join(kind if n == 1 else f"{kind} {n} times" for kind, n in kinds.items())


def heading(kinds: Sequence[str]) -> str:
    """What was run, and on what."""
    chosen = "" if list(kinds) == ["classification"] else f" --kind {' '.join(kinds)}"
    lines = [
        "# Coverage",
        f"Written by `python -m benchmarks.coverage{chosen} --out FILE`: torchvision "
        f"{torchvision.__version__}, torch {torch.__version__}, random weights, slimmed to half "
        "the MACs by magnitude.\n*prunable* is the share of parameters and buffers in groups, "
        "*error* the largest relative difference\nfrom the masked original at any node, in "
        "float64.",
    ]
    if chosen:
        clips = ", ".join(f"{size} for {prefix}" for prefix, size in CLIPS.items())
        lines.insert(
            1,
            f"Inputs are modest: one image of {SIDE} x {SIDE - 10} for detectors (at most "
            f"{FEWER['rpn_post_nms_top_n_test']} proposals and\n{FEWER['box_detections_per_img']} "
            f"detections; SSD resizes to its own size), {MAP} x {MAP} for segmentation, two frames "
            f"of {FRAME} x {FRAME}\nfor flow, clips of {CLIP} for video (frames, height, width; "
            f"{clips}).\nOf detectors, the slim backbone is exported.",
        )
    return "\n\n".join(lines)


if __name__ == "__main__":
    main()
