"""Which architectures can be slimmed: families of other libraries, and unusual networks.

    python -m benchmarks.breadth                            everything that is installed
    python -m benchmarks.breadth --source timm unusual      these sources only
    python -m benchmarks.breadth --source timm --models resnet18 vgg11
    python -m benchmarks.breadth --out docs/breadth.md

Each network has random weights, is slimmed to half its MACs by magnitude and verified against the
masked original. Networks run in fresh processes, a few in each, so that memory stays small. Nothing
is downloaded.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import io
import json
import os
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import fxprune
from benchmarks.zoo import SOURCES, models_of
from fxprune.errors import FxpruneError
from fxprune.passes.bake import bake
from fxprune.passes.capture import capture
from fxprune.passes.frozen import prunable_share
from fxprune.passes.infer import Analysis

AT_ONCE = 8
MARK = "row: "
COLUMNS = (
    "source", "model", "captured by", "prunable", "MACs kept", "error", "capture", "infer",
    "optimize", "failed",
)  # fmt: skip


@dataclass
class Row:
    """What happened to one network; seconds of each step that was reached."""

    source: str
    model: str
    how: str = ""
    prunable: float = float("nan")
    macs: float = float("nan")
    error: float = float("nan")
    capture: float = float("nan")
    infer: float = float("nan")
    optimize: float = float("nan")
    dense: tuple[tuple[str, float], ...] = ()
    """Why parameters are in no group, and what share of all elements each reason holds."""
    failed: str = ""
    trace: str = ""
    """Where an error came from that is none of fxprune's own."""

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        times = ["" if t != t else f"{t:.2f} s" for t in (self.capture, self.infer, self.optimize)]
        shares = ["" if s != s else f"{s:.1%}" for s in (self.prunable, self.macs)]
        error = "" if self.error != self.error else f"{self.error:.0e}"
        return (self.source, self.model, self.how, *shares, error, *times, self.failed)


def main() -> None:
    """Run what is asked for, print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", nargs="+", choices=list(SOURCES), default=list(SOURCES))
    parser.add_argument("--models", nargs="+", default=[], help="names; all if none")
    parser.add_argument("--out", type=Path, help="also write the table as Markdown")
    parser.add_argument("--rows", type=Path, help="add the rows as JSON lines to this file")
    parser.add_argument("--here", action="store_true", help="run in this very process")
    arguments = parser.parse_args()
    rows: list[Row] = []
    print(" | ".join(COLUMNS), flush=True)
    for source in arguments.source:
        try:
            known = models_of(source)
        except ImportError as error:
            print(f"{source} is left out ({error}): pip install {SOURCES[source]}", flush=True)
            continue
        names = [name for name in known if not arguments.models or name in arguments.models]
        run = run_here if arguments.here else run_apart
        for row in run(source, names):
            rows.append(row)
            print(" | ".join(row.cells()), flush=True)
            if arguments.here:
                print(MARK + json.dumps(dataclasses.asdict(row)), flush=True)
            if arguments.rows is not None:
                with arguments.rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(dataclasses.asdict(row)) + "\n")
            if arguments.out is not None:
                arguments.out.write_text(as_markdown(rows), encoding="utf-8")
    failures = [row.model for row in rows if row.failed]
    print(f"{len(rows)} models, {len(failures)} failed: {', '.join(failures) or 'none'}")


def run_here(source: str, names: Sequence[str]) -> Iterator[Row]:
    """Try networks one after the other in this process."""
    for name in names:
        yield try_model(source, name)
        gc.collect()


def run_apart(source: str, names: Sequence[str]) -> Iterator[Row]:
    """Try networks in fresh processes; one that dies takes only its present network along."""
    waiting = list(names)
    while waiting:
        done = 0
        for row in _run_batch(source, waiting[:AT_ONCE]):
            done += 1
            yield row
        waiting = waiting[done:]


def _run_batch(source: str, names: Sequence[str]) -> Iterator[Row]:
    command = [
        sys.executable, "-m", "benchmarks.breadth", "--here", "--source", source, "--models", *names
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=dict(os.environ)
    ) as process:
        assert process.stdout is not None
        done: list[str] = []
        try:
            for line in process.stdout:
                if line.startswith(MARK):
                    fields = json.loads(line.removeprefix(MARK))
                    done.append(fields["model"])
                    fields["dense"] = tuple(tuple(pair) for pair in fields["dense"])
                    yield Row(**fields)
        finally:
            process.kill()
    left = [name for name in names if name not in done]
    if left:
        yield Row(source, left[0], failed=f"its process ended with {process.returncode}")


def try_model(source: str, name: str) -> Row:
    """All steps on one network."""
    row = Row(source, name)
    try:
        _run(row)
    except Exception as error:  # a benchmark reports every failure and goes on
        row.failed = f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
        if not isinstance(error, FxpruneError):
            row.trace = traceback.format_exc()[-3000:]
    return row


def _run(row: Row) -> None:
    torch.manual_seed(0)
    model, inputs = models_of(row.source)[row.model]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        captured = capture(model, inputs)
        row.how, row.capture = captured.capture, time.perf_counter() - start
        start = time.perf_counter()
        captured, analysis = bake(captured)
        row.infer = time.perf_counter() - start
        row.prunable = prunable_share(analysis)
        row.dense = tuple(dense_shares(analysis))
        del captured, analysis
        start = time.perf_counter()
        slim = fxprune.optimize(model, "50% MACs", inputs, importance="magnitude", progress=False)
        row.optimize = time.perf_counter() - start
    report = fxprune.report(slim)
    row.macs = report.slim.macs / report.dense.macs
    if report.verification is None:
        raise RuntimeError("the result was not verified")
    row.error = report.verification.max_relative_error


def dense_shares(analysis: Analysis) -> Iterable[tuple[str, float]]:
    """Why tensors are in no group at all, with the share of all elements, largest first."""
    total = 0
    found: Counter[str] = Counter()
    for name, axes in analysis.tensors.items():
        count = 1
        for axis in axes:
            count *= axis.size
        total += count
        if any(analysis.groups_in(axis) for axis in axes):
            continue
        why = [
            str(analysis.reasons[atom])
            for axis in axes
            for atom in axis.atoms
            if atom in analysis.reasons
        ]
        found[f"{name}: " + "; ".join(dict.fromkeys(why))] += count
    return [(why, count / total) for why, count in found.most_common()]


def as_markdown(rows: Sequence[Row]) -> str:
    """The table, and the reasons for what stays dense."""
    text = io.StringIO()
    text.write("# Breadth\n\n")
    exact = sum(not row.failed for row in rows)
    text.write(
        "Written by `python -m benchmarks.breadth --out docs/breadth.md`: random weights, torch "
        f"{torch.__version__}, slimmed to half the MACs\nby magnitude and verified. {exact} of "
        f"{len(rows)} networks are exact and within their budget. *prunable* is the share of\n"
        "parameters and buffers in groups, *error* the largest relative difference from the "
        "masked original at any node, in float64.\n\n"
    )
    text.write(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}\n")
    for row in rows:
        text.write(f"| {' | '.join(row.cells())} |\n")
    text.write("\n## The largest parts in no group\n\n")
    for row in rows:
        large = [f"{why} ({share:.1%})" for why, share in row.dense if share >= 0.01]
        if large:
            text.write(f"- **{row.model}**: {'; '.join(large[:4])}\n")
    return text.getvalue()


if __name__ == "__main__":
    main()
