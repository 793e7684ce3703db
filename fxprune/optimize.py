"""The pipeline: which pass, in which order, from a trained network and a budget to a slim one."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxprune
from fxprune import batches
from fxprune.axes import Atom
from fxprune.backends import Backend, Settings, get_backend
from fxprune.batches import Data
from fxprune.budget import Budget, BudgetLike, parse
from fxprune.cache import Cache
from fxprune.closed_loop import close_the_loop
from fxprune.errors import InputError
from fxprune.gauges import (
    Gauge,
    LatencyGauge,
    MacsGauge,
    MemoryGauge,
    MetricGauge,
    ParamsGauge,
    Stopwatch,
)
from fxprune.passes.allocate import Allocator, plan_of
from fxprune.passes.allocation.ladders import Ladder, build_ladders
from fxprune.passes.allocation.widths import Choices, Tables
from fxprune.passes.capture import Captured, ExampleInputs, capture
from fxprune.passes.importance import Importance, magnitude, taylor
from fxprune.passes.infer import Analysis, infer
from fxprune.passes.latency import LatencyModel, build_latency_model, measure_layers
from fxprune.passes.layers import Layer, find_layers
from fxprune.passes.slim import slim as slim_by_plan
from fxprune.passes.verify import verify
from fxprune.plan import Plan
from fxprune.progress import Tell, shown
from fxprune.report import META
from fxprune.summary import summarise

logger = logging.getLogger(__name__)

Loss = Callable[[Any, Any], Tensor]
ImportanceName = Literal["auto", "taylor", "magnitude"]

# A channel count that CPU and GPU kernels like; 134 channels run slower than 136 on most of them.
ALIGNMENT = 8


def optimize(
    model: nn.Module,
    budget: BudgetLike,
    example_inputs: ExampleInputs | None = None,
    *,
    data: Data | None = None,
    loss: Loss | None = None,
    backend: str | Backend = "auto",
    settings: Settings | None = None,
    importance: ImportanceName = "auto",
    multiple_of: int = ALIGNMENT,
    ignore: Sequence[str] = (),
    cache: str | None = None,
    progress: bool = True,
) -> fx.GraphModule:
    """A slim, verified, trainable version of `model` that keeps `budget` as measured.

    Args:
        model: a trained network; not modified.
        budget: what the slim network may use: `"60% latency"`, `"12 ms"`, `0.6`, `"1.2 GMACs"`,
            `"50% params"`, `"20 MB"`, a `Budget`, or a list of them, which must all hold.
        example_inputs: what the model is called with; a tensor, a tuple of arguments or a dict of
            keyword arguments. Latency is measured on them, so their batch size matters. Without
            them, the first batch of `data` is used.
        data: batches of (inputs, targets) for Taylor importance; a list or a `DataLoader`.
        loss: `loss(outputs, targets)`, a scalar; cross-entropy if not given.
        backend: the deployment compiler whose latency counts: a name of `fxprune backends`.
        settings: precision, threads and so on of that compiler.
        importance: "taylor" (needs data), "magnitude", or "auto": taylor if there is data.
        multiple_of: alignment of channel counts.
        ignore: names or patterns of modules and parameters that keep their width.
        cache: path of the latency cache; a file in the user's cache folder if not given.
        progress: show long steps in the terminal.

    Returns:
        A `GraphModule` with the original parameter names. `slim.meta["fxprune"]` holds the plan
        and the report; `fxprune.report(slim)` shows them.

    Raises:
        BudgetError: the budget does not parse, or is out of reach: the message names the least.
        InputError: model, example inputs, data or settings cannot be used.
        CaptureError: the model cannot be captured as a graph.
        BackendUnavailable: the backend cannot run here; the message says how to install it.
        VerificationError: the slim model is not equal to the masked original; nothing is returned.
    """
    budgets = parse(budget)
    compiler = get_backend(backend, _device_type(model)) if _needs_backend(budgets) else None
    settings = settings or Settings()
    inputs = _example_inputs(example_inputs, data)
    with shown(progress) as tell:
        tell("Capturing the model", 0, 0)
        captured = capture(model, inputs)
        analysis = infer(captured)
        ladders = build_ladders(analysis, multiple_of, ignore)
        _require_something_to_slim(analysis, model)
        judged = _judge(importance, captured.module, analysis, data, loss, tell)
        layers = find_layers(captured.module, analysis)
        watch: Stopwatch | None = None
        latency: Callable[[Choices], LatencyModel] | None = None
        if compiler is not None:
            watch, latency = _prepare_latency(
                captured, analysis, layers, ladders, compiler, settings, multiple_of, cache, tell
            )
        gauges = [_gauge(b, captured, analysis, watch, latency) for b in budgets]
        tell("Allocating widths", 0, 0)
        allocator = Allocator.build(analysis, ladders, judged, [g.tables for g in gauges])
        meta = _meta(budgets, compiler, settings)
        slim = partial(_slim, captured, analysis, judged, meta)
        candidate = close_the_loop(gauges, allocator, slim, partial(tell, "Slimming and measuring"))
        tell("Verifying against the masked original", 0, 0)
        plan = plan_of(candidate.allocation.sizes, analysis, judged, meta)
        verification = verify(captured, analysis, plan, candidate.module)
    report = summarise(
        captured, analysis, layers, candidate, verification, watch,
        latency(allocator.choices) if latency is not None else None, budgets, meta,
    )  # fmt: skip
    candidate.module.meta[META] = {"plan": plan, "report": report}
    return candidate.module


def apply(model: nn.Module, plan: Plan, example_inputs: ExampleInputs) -> fx.GraphModule:
    """Replay `plan` on a model of the same architecture, whatever its weights; verified.

    Raises:
        PlanMismatch: the model has other groups than the plan was made for.
        VerificationError: the slim model is not equal to the masked original.
    """
    captured = capture(model, example_inputs)
    analysis = infer(captured)
    slim = slim_by_plan(captured, analysis, plan)
    verify(captured, analysis, plan, slim)
    slim.meta[META] = {"plan": plan}
    return slim


def _needs_backend(budgets: Sequence[Budget]) -> bool:
    return any(budget.resource == "latency" for budget in budgets)


def _device_type(model: nn.Module) -> str:
    return batches.device_of(model).type if isinstance(model, nn.Module) else "cpu"


def _example_inputs(example_inputs: ExampleInputs | None, data: Data | None) -> ExampleInputs:
    if example_inputs is not None:
        return example_inputs
    if data is None:
        raise InputError(
            "Neither example_inputs nor data is given",
            fix="Pass example_inputs=(x,), a tuple of what the model is called with",
        )
    (inputs, _), _ = batches.first_of(data)
    return batches.arguments(inputs)


def _require_something_to_slim(analysis: Analysis, model: nn.Module) -> None:
    if analysis.groups:
        return
    reasons = sorted({str(reason) for reason in analysis.reasons.values()})
    raise InputError(
        f"Nothing in {type(model).__name__} can be slimmed",
        "; ".join(reasons[:5]),
        "fxprune.analyze(model, example_inputs) shows what keeps every parameter dense",
    )


def _judge(
    name: ImportanceName,
    module: fx.GraphModule,
    analysis: Analysis,
    data: Data | None,
    loss: Loss | None,
    tell: Tell,
) -> Importance:
    if name not in ("auto", "taylor", "magnitude"):
        raise InputError(f"importance={name!r}", fix='Choose "auto", "taylor" or "magnitude"')
    if name == "taylor" and data is None:
        raise InputError(
            'importance="taylor" needs data',
            fix='Pass data=, batches of (inputs, targets), or use importance="magnitude"',
        )
    if name == "magnitude" or data is None:
        return magnitude(module, analysis)
    step = partial(_count, tell, "Judging channels by their gradients")
    return taylor(module, analysis, data, loss or F.cross_entropy, step=step)


def _count(tell: Tell, what: str, done: int) -> None:
    tell(what, done, 0)


def _prepare_latency(
    captured: Captured,
    analysis: Analysis,
    layers: Sequence[Layer],
    ladders: Mapping[Atom, Ladder],
    backend: Backend,
    settings: Settings,
    multiple_of: int,
    cache: str | None,
    tell: Tell,
) -> tuple[Stopwatch, Callable[[Choices], LatencyModel]]:
    """Measure the dense network and the kernels it is made of."""
    tell(f"Compiling and measuring the dense network ({backend.name})", 0, 0)
    watch = Stopwatch.start(backend, settings, captured.module, captured.example_inputs)
    with Cache(cache) as store:
        tables = measure_layers(
            layers,
            Choices(ladders),
            backend,
            settings,
            multiple_of,
            store,
            partial(tell, "Measuring kernels"),
        )
    dense = watch.dense.seconds

    def model_over(choices: Choices) -> LatencyModel:
        return build_latency_model(captured.module, analysis, layers, choices, tables, dense)

    return watch, model_over


def _gauge(
    budget: Budget,
    captured: Captured,
    analysis: Analysis,
    watch: Stopwatch | None,
    latency: Callable[[Choices], LatencyModel] | None,
) -> Gauge:
    if budget.resource == "latency":
        assert watch is not None
        assert latency is not None
        build = latency

        def tables(choices: Choices) -> Tables:
            return build(choices).tables

        return LatencyGauge(budget, watch, tables)
    if budget.resource == "macs":
        return MacsGauge(budget, analysis)
    if budget.resource == "params":
        return ParamsGauge(budget, captured.module, analysis)
    if budget.resource == "memory":
        return MemoryGauge(budget, captured.module, analysis)
    return MetricGauge(budget, captured.module, analysis)


def _slim(
    captured: Captured,
    analysis: Analysis,
    importance: Importance,
    meta: Mapping[str, object],
    sizes: Mapping[Atom, int],
) -> fx.GraphModule:
    return slim_by_plan(captured, analysis, plan_of(sizes, analysis, importance, meta))


def _meta(
    budgets: Sequence[Budget], backend: Backend | None, settings: Settings
) -> dict[str, object]:
    meta: dict[str, object] = {
        "budget": [budget.describe() for budget in budgets],
        "fxprune": fxprune.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if backend is not None:
        meta["backend"] = backend.version()
        meta["device"] = backend.device()
        meta["settings"] = settings.to_json()
    return meta
