"""The whole front at once: what is the most that any cost can buy."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import nn

from fxprune.backends import Backend, Settings
from fxprune.batches import Data
from fxprune.budget import Budget
from fxprune.choose import gauge_of
from fxprune.errors import InputError
from fxprune.files import atomic_path
from fxprune.passes.allocate import Allocator
from fxprune.passes.allocation.ladders import Bound
from fxprune.passes.capture import ExampleInputs
from fxprune.plan import Plan
from fxprune.prepare import ChannelsName, ImportanceName, Loss, Options, prepare
from fxprune.probe import Probe
from fxprune.progress import shown
from fxprune.units import NAMES, Resource, format_resource

FINEST = 400
# Those that one table tells; activation memory is the largest of many sums.
RESOURCES = ("latency", "macs", "params", "memory")


@dataclass(frozen=True)
class Point:
    """One network on the front.

    Attributes:
        cost: predicted, in the resource's own unit (seconds, MACs, parameters, bytes).
        share: of the dense network's cost.
        value: of the importance kept; the dense network has 100.
        bound: no network at this cost is worth more.
        plan: to be applied with `fxprune.apply`.
    """

    cost: float
    share: float
    value: float
    bound: float
    plan: Plan

    @property
    def gap(self) -> float:
        """How far from the best the value can be at most, relative."""
        return (self.bound - self.value) / max(abs(self.bound), 1e-300)


@dataclass(frozen=True)
class Front(Sequence[Point]):
    """Points by rising cost; printing shows a table, `plot` draws it."""

    resource: Resource
    points: tuple[Point, ...]

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.points[index]

    def __iter__(self) -> Iterator[Point]:
        return iter(self.points)

    def __rich__(self) -> Table:
        table = Table(title=f"Value against {NAMES[self.resource]}")
        for heading in (NAMES[self.resource], "of dense", "value", "gap"):
            table.add_column(heading, justify="right")
        for point in self.points:
            cost = format_resource(self.resource, point.cost)
            table.add_row(cost, f"{point.share:.1%}", f"{point.value:.2f}", f"{point.gap:.2%}")
        return table

    def __str__(self) -> str:
        buffer = io.StringIO()
        Console(file=buffer, width=80, color_system=None).print(self)
        return buffer.getvalue().rstrip()

    def plot(self, path: str | Path) -> None:
        """Write the front as a picture; the format follows the ending of `path`."""
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        shares = [100 * point.share for point in self.points]
        axes.plot(shares, [p.value for p in self.points], color="#1f6fb4", marker="o", ms=3.5)
        axes.set_xlabel(f"predicted {NAMES[self.resource]}, % of dense")
        axes.set_ylabel("importance kept, % of dense")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e6ea")
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=160, format=Path(path).suffix.lstrip(".") or "png")


def pareto(
    model: nn.Module,
    example_inputs: ExampleInputs | None = None,
    *,
    resource: Resource = "latency",
    points: int = 20,
    data: Data | None = None,
    loss: Loss | None = None,
    backend: str | Backend = "auto",
    settings: Settings | None = None,
    importance: ImportanceName = "auto",
    multiple_of: int | None = None,
    ignore: Sequence[str] = (),
    bounds: Mapping[str, Bound] | None = None,
    narrow_layers: bool = True,
    drop_blocks: bool = True,
    merge_layers: bool | None = None,
    probe: Probe | None = None,
    channels: ChannelsName = "ordered",
    cache: str | None = None,
    progress: bool = True,
) -> Front:
    """The best networks at `points` costs from the least that can be reached up to dense.

    All points come from one solve and are certified; costs are predictions from the same tables
    as in `fxprune.optimize`, which measures. Other arguments and errors are those of `optimize`.

    Args:
        resource: "latency", "macs", "params" or "memory".
        points: how many.
    """
    if resource not in RESOURCES:
        raise InputError(f"resource={resource!r}", fix=f"Choose from {', '.join(RESOURCES)}")
    if not 2 <= points <= FINEST:
        raise InputError(f"points={points}", fix=f"Ask for 2 to {FINEST}")
    options = Options(
        data,
        loss,
        backend,
        settings,
        importance,
        multiple_of,
        ignore,
        cache,
        narrow_layers,
        drop_blocks,
        merge_layers,
        probe,
        channels,
        bounds or {},
    )
    with shown(progress) as tell:
        places = [None] if resource == "latency" else []
        prepared = prepare(model, example_inputs, options, places, tell)
        gauge = gauge_of(Budget(resource, 1.0, relative=True), prepared)
        tell("Solving for the whole front", 0, 0)
        allocator = Allocator.build(
            prepared.analysis,
            prepared.ladders,
            prepared.importance,
            [gauge.tables],
            [gauge.unit],
            prepared.forms,
        )
        (dense,) = allocator.dense_costs()
        # Costs are rounded up before they are added.
        rounding = (1 + len(allocator.problem.factors)) * gauge.unit
        limits = np.linspace(allocator.floor(), dense + rounding, points)
        found = []
        for allocation in allocator.front(limits.tolist()):
            if not allocation.sizes:
                continue
            (cost,), solution = allocation.costs, allocation.solution
            plan = prepared.plan(allocation, {})
            share = cost / gauge.dense
            found.append(Point(cost, share, solution.value, solution.bound, plan))
    return Front(resource, tuple(found))
