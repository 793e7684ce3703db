"""The pipeline: which pass, in which order, from a trained network and a budget to a slim one."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import fx, nn

import fxprune
from fxprune.backends import Backend, Settings
from fxprune.batches import Data
from fxprune.black_box import build_allocator, search_candidate
from fxprune.budget import Budget, BudgetLike, parse
from fxprune.closed_loop import Candidate, Slim, close_the_loop
from fxprune.gauges import (
    Gauge,
    LatencyGauge,
    MacsGauge,
    MemoryGauge,
    MetricGauge,
    ParamsGauge,
)
from fxprune.passes.allocate import Allocation, Allocator, plan_of
from fxprune.passes.allocation.widths import Choices, Tables
from fxprune.passes.capture import ExampleInputs, capture
from fxprune.passes.infer import infer
from fxprune.passes.slim import slim as slim_by_plan
from fxprune.passes.verify import verify
from fxprune.plan import Plan
from fxprune.prepare import (
    ALIGNMENT,
    ChannelsName,
    ImportanceName,
    Loss,
    Options,
    Prepared,
    prepare,
)
from fxprune.progress import Tell, shown
from fxprune.report import META
from fxprune.summary import summarise


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
    drop_blocks: bool = True,
    channels: ChannelsName = "ordered",
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
        drop_blocks: whole residual blocks may go as well, where that is worth more than narrower
            layers; never one with an ignored part.
        channels: which channels of a group stay: the most important ones ("ordered"), or those that
            are worth most beside what stays around them ("refined": slower, never worth less).
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
    options = Options(
        data,
        loss,
        backend,
        settings,
        importance,
        multiple_of,
        ignore,
        cache,
        drop_blocks,
        channels,
    )
    needs_latency = any(budget.resource == "latency" for budget in budgets)
    with shown(progress) as tell:
        prepared = prepare(model, example_inputs, options, needs_latency, tell)
        gauges = [gauge_of(budget, prepared) for budget in budgets]
        tell("Allocating widths and blocks", 0, 0)
        meta = _meta(budgets, prepared)
        allocator, candidate = _choose(prepared, gauges, partial(_slim, prepared, meta), tell)
        tell("Verifying against the masked original", 0, 0)
        plan = _plan(prepared, meta, candidate.allocation)
        verification = verify(prepared.captured, prepared.analysis, plan, candidate.module)
    timed = prepared.timed
    latency = timed.model(allocator.choices) if timed is not None else None
    calls = sum(gauge.calls for gauge in gauges if isinstance(gauge, MetricGauge))
    report = summarise(prepared, candidate, verification, latency, budgets, calls)
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


def gauge_of(budget: Budget, prepared: Prepared) -> Gauge:
    """How a budget is predicted and measured on this model."""
    if budget.resource == "latency":
        timed = prepared.timed
        assert timed is not None

        def tables(choices: Choices) -> Tables:
            return timed.model(choices).tables

        return LatencyGauge(budget, timed.watch, tables)
    if budget.resource == "macs":
        return MacsGauge(budget, prepared.analysis)
    if budget.resource == "params":
        return ParamsGauge(budget, prepared.module, prepared.analysis)
    if budget.resource == "memory":
        return MemoryGauge(budget, prepared.module, prepared.analysis)
    return MetricGauge(budget, prepared.module, prepared.analysis)


def _choose(
    prepared: Prepared, gauges: Sequence[Gauge], slim: Slim, tell: Tell
) -> tuple[Allocator, Candidate]:
    """The best network that keeps all budgets, by the way that suits them."""
    step = partial(tell, "Slimming and measuring")
    functions = [gauge for gauge in gauges if isinstance(gauge, MetricGauge)]
    if len(functions) == 1 and prepared.timed is None:
        exact = [gauge for gauge in gauges if gauge is not functions[0]]
        allocator = build_allocator(prepared, exact)
        return allocator, search_candidate(functions[0], exact, allocator, slim, step)
    allocator = Allocator.build(
        prepared.analysis,
        prepared.ladders,
        prepared.importance,
        [gauge.tables for gauge in gauges],
        [gauge.unit for gauge in gauges],
        prepared.blocks,
    )
    return allocator, close_the_loop(gauges, allocator, slim, step)


def _plan(prepared: Prepared, meta: Mapping[str, object], allocation: Allocation) -> Plan:
    sizes, dropped = allocation.sizes, allocation.dropped
    analysis, importance = prepared.analysis, prepared.importance
    return plan_of(sizes, analysis, importance, meta, dropped, prepared.choose)


def _slim(prepared: Prepared, meta: Mapping[str, object], allocation: Allocation) -> fx.GraphModule:
    plan = _plan(prepared, meta, allocation)
    return slim_by_plan(prepared.captured, prepared.analysis, plan)


def _meta(budgets: Sequence[Budget], prepared: Prepared) -> dict[str, object]:
    meta: dict[str, object] = {
        "budget": [budget.describe() for budget in budgets],
        "fxprune": fxprune.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    timed = prepared.timed
    if timed is not None:
        meta["backend"] = timed.backend.version()
        meta["device"] = timed.backend.device()
        meta["settings"] = timed.settings.to_json()
    return meta
