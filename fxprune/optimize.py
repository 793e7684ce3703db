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
from fxprune.budget import Budget, BudgetLike, parse
from fxprune.choose import choose
from fxprune.errors import InputError
from fxprune.passes.allocation.ladders import Bound
from fxprune.passes.bake import bake
from fxprune.passes.capture import Captured, ExampleInputs, capture
from fxprune.passes.chains import Span
from fxprune.passes.infer import Analysis
from fxprune.passes.merges import spans_named, without_activations
from fxprune.passes.slim import slim as slim_by_plan
from fxprune.passes.verify import Verification, verify
from fxprune.passes.verify_merged import verify_merged
from fxprune.plan import Plan
from fxprune.prepare import (
    ChannelsName,
    ImportanceName,
    Loss,
    Options,
    Prepared,
    prepare,
)
from fxprune.probe import Probe
from fxprune.progress import shown
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
        backend: the deployment compiler whose latency counts: a name of `fxprune backends`. For
            several at once, give each its own `Budget("latency", ..., backend=...)`. With part of
            another machine's name, `"tensorrt@Orin"`, what was measured there counts, see
            `fxprune table`; nothing is measured then.
        settings: precision, threads and so on of that compiler.
        importance: "taylor" (needs data), "magnitude", or "auto": taylor if there is data.
        multiple_of: alignment of channel counts; what the backend likes, if not given.
        ignore: names or patterns of modules and parameters that keep their width.
        bounds: the least and the most that may stay, by such names or patterns: whole numbers count
            channels (or heads), fractions from 0.0 to 1.0 are shares: `{"layer1.*": (0.5, 1.0)}`.
        narrow_layers: layers may lose channels; False leaves every width as it is.
        drop_blocks: whole residual blocks may go as well, where that is worth more than narrower
            layers; never one with an ignored part.
        merge_layers: where latency counts, neighbouring layers may lose the activations between
            them and become one on deployment, if the backend is faster with it; never an ignored
            one. The slim network still has them all, to be fine-tuned; `finalize` and `compile`
            merge. If not given: where there is `data` to measure by what that loses.
        probe: a short training, on `data`, of every network that is judged for merging, before it
            is judged; what was measured is cached, and processes started alike share the work.
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
        MeasurementError: something was not measured on the other machine that `backend` names.
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
        narrow_layers,
        drop_blocks,
        merge_layers,
        probe,
        channels,
        bounds or {},
    )
    places = [budget.backend for budget in budgets if budget.resource == "latency"]
    with shown(progress) as tell:
        prepared = prepare(model, example_inputs, options, places, tell)
        tell("Allocating widths and depth", 0, 0)
        meta = _meta(budgets, prepared)
        choice = choose(prepared, budgets, partial(prepared.slim, meta=meta), tell)
        tell("Verifying against the masked original", 0, 0)
        plan = prepared.plan(choice.candidate.allocation, meta)
        spans = [merge.span for merge in choice.candidate.allocation.merged]
        slim, verification = _built(prepared.captured, prepared.analysis, plan, spans)
    report = summarise(prepared, choice, verification, budgets)
    slim.meta[META] = {"plan": plan, "report": report}
    return slim


def apply(model: nn.Module, plan: Plan, example_inputs: ExampleInputs) -> fx.GraphModule:
    """Replay `plan` on a model of the same architecture, whatever its weights; verified.

    Raises:
        InputError: what is given is no model, no inputs or no plan.
        PlanMismatch: the model has other groups, blocks or chains than the plan was made for.
        VerificationError: the slim model is not equal to the masked original.
    """
    if not isinstance(plan, Plan):
        raise InputError(
            f"plan is a {type(plan).__name__}, not a fxprune.Plan",
            fix="Pass a plan of fxprune.pareto, one read by Plan.from_json, or a slim model's "
            "own: slim.meta['fxprune']['plan']",
        )
    captured, analysis = bake(capture(model, example_inputs))
    slim, _ = _built(captured, analysis, plan, spans_named(captured, plan.merged))
    slim.meta[META] = {"plan": plan}
    return slim


def _built(
    captured: Captured, analysis: Analysis, plan: Plan, spans: Sequence[Span]
) -> tuple[fx.GraphModule, Verification]:
    """The slim model, verified before the activations of `spans` are dropped, and merged after."""
    module = slim_by_plan(captured, analysis, plan)
    verification = verify(captured, analysis, plan, module)
    module = without_activations(module, spans)
    verify_merged(module, captured.example_inputs)
    return module, verification


def _meta(budgets: Sequence[Budget], prepared: Prepared) -> dict[str, object]:
    meta: dict[str, object] = {
        "budget": [budget.describe() for budget in budgets],
        "fxprune": fxprune.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if prepared.timed:
        places = list(prepared.timed.values())
        meta["backend"] = [timed.bench.backend.version() for timed in places]
        meta["device"] = [timed.bench.backend.device(timed.bench.device) for timed in places]
        meta["settings"] = places[0].bench.settings.to_json()
    return meta
