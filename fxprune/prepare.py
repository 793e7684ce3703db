"""What every question about a model starts with: capture, inference, importance, latency tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune import batches
from fxprune.axes import Atom
from fxprune.backends import Backend, Settings, get_backend
from fxprune.batches import Data
from fxprune.bench import bench_of
from fxprune.cache import Cache
from fxprune.elsewhere import Elsewhere, elsewhere
from fxprune.errors import InputError
from fxprune.judge import by_damage, by_guess
from fxprune.passes.allocate import Allocation, plan_of
from fxprune.passes.allocation.channels import Choose, ordered, refined
from fxprune.passes.allocation.forms import Forms, Part
from fxprune.passes.allocation.ladders import Bound, Ladder, build_ladders, is_ignored
from fxprune.passes.bake import bake
from fxprune.passes.blocks import find_blocks
from fxprune.passes.capture import Captured, ExampleInputs, capture
from fxprune.passes.depth_value import disagreement, loss_rise
from fxprune.passes.glue.module import require_no_glue
from fxprune.passes.importance import Importance, magnitude, taylor
from fxprune.passes.infer import Analysis
from fxprune.passes.layers import Layer, find_layers
from fxprune.passes.merges import Merge, find_merges, without_activations
from fxprune.passes.slim import slim
from fxprune.plan import Plan
from fxprune.probe import Memory, Probe, name_of
from fxprune.progress import Tell
from fxprune.timed import Timed

Loss = Callable[[Any, Any], Tensor]
ChannelsName = Literal["ordered", "refined"]
CHANNELS: Mapping[str, Choose] = {"ordered": ordered, "refined": refined}
ImportanceName = Literal["auto", "taylor", "magnitude"]

# Where no backend is asked; 134 channels run slower than 136 on most of them.
ALIGNMENT = Backend.alignment

# Batches taken from data that can be gone through only once.
STREAMED = 32


@dataclass(frozen=True)
class Options:
    """How a model is looked at; see `fxprune.optimize` for what each one means."""

    data: Data | None = None
    loss: Loss | None = None
    backend: str | Backend = "auto"
    settings: Settings | None = None
    importance: ImportanceName = "auto"
    multiple_of: int | None = None
    ignore: Sequence[str] = ()
    cache: str | None = None
    narrow_layers: bool = True
    drop_blocks: bool = True
    merge_layers: bool | None = None
    probe: Probe | None = None
    channels: ChannelsName = "ordered"
    bounds: Mapping[str, Bound] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """A model, captured and understood.

    Attributes:
        forms: the blocks that may go, and the spans that may be merged.
        timed: on each backend whose latency counts, by the name that a budget gives; None is the
            backend that `optimize` was given.
    """

    captured: Captured
    analysis: Analysis
    layers: tuple[Layer, ...]
    ladders: Mapping[Atom, Ladder]
    forms: Forms
    importance: Importance
    choose: Choose
    timed: Mapping[str | None, Timed]

    def plan(self, allocation: Allocation, meta: Mapping[str, object]) -> Plan:
        """An allocation as a plan: which positions stay, not only how many."""
        return plan_of(
            allocation.sizes,
            self.analysis,
            self.importance,
            meta,
            allocation.dropped,
            allocation.merged,
            self.choose,
        )

    def slim(self, allocation: Allocation, meta: Mapping[str, object]) -> fx.GraphModule:
        """The network of an allocation, not verified."""
        module = slim(self.captured, self.analysis, self.plan(allocation, meta))
        return without_activations(module, [merge.span for merge in allocation.merged])

    @property
    def module(self) -> fx.GraphModule:
        """The captured dense module."""
        return self.captured.module


def prepare(
    model: nn.Module,
    example_inputs: ExampleInputs | None,
    options: Options,
    places: Iterable[str | None],
    tell: Tell,
) -> Prepared:
    """Capture `model`, infer its axes, judge its channels, and time its kernels.

    Args:
        places: the backends whose latency counts, as in `Prepared.timed`.
    """
    options = _checked(options)
    device = _device_type(model)
    backends = {
        place: _backend(options.backend if place is None else place, device, options)
        for place in dict.fromkeys(places)
    }
    if backends:
        Cache(options.cache).close()  # a cache that cannot be used is refused before any work
    inputs = _example_inputs(example_inputs, options.data)
    tell("Capturing the model", 0, 0)
    captured, analysis = bake(capture(model, inputs))
    if backends:
        require_no_glue(captured.module, "latency is measured on a compiled network")
    alignment = options.multiple_of
    if alignment is None:
        alignment = math.lcm(*(b.alignment for b in backends.values())) if backends else ALIGNMENT
    as_they_are = options.ignore if options.narrow_layers else ("*",)
    ladders = build_ladders(analysis, alignment, as_they_are, options.bounds)
    _require_something_to_slim(analysis, model)
    importance = _judge(captured.module, analysis, options, tell)
    layers = find_layers(captured.module, analysis)
    timed = {
        place: (Timed.recall if isinstance(backend, Elsewhere) else Timed.start)(
            bench_of(backend, options.settings, captured, alignment, options.cache, tell),
            captured,
            analysis,
            layers,
            ladders,
        )
        for place, backend in backends.items()
    }
    parts: list[Part] = []
    if options.drop_blocks:
        parts += find_blocks(captured.module, analysis)
    merging = options.merge_layers
    if timed and (merging or (merging is None and options.data is not None)):
        merges = _faster(find_merges(captured, analysis, layers), timed.values())
        judged = _weighed(merges, captured, analysis, layers, importance, options, tell)
        timed = {place: each.with_merges(judged, ladders) for place, each in timed.items()}
        parts += judged
    forms = Forms.of(_changeable(parts, options), captured.module.graph)
    return Prepared(
        captured, analysis, layers, ladders, forms, importance, CHANNELS[options.channels], timed
    )


def _checked(options: Options) -> Options:
    """The options, refused early where they make no sense; a stream of data becomes a list."""
    if not isinstance(options.multiple_of, (int, type(None))):
        raise InputError(f"multiple_of is {options.multiple_of!r}", fix="Use a whole number")
    if options.channels not in CHANNELS:
        raise InputError(f"channels={options.channels!r}", fix=f"Choose from {', '.join(CHANNELS)}")
    if options.settings is not None and not isinstance(options.settings, Settings):
        raise InputError(f"settings is {options.settings!r}", fix="Pass fxprune.Settings(...)")
    ignore = (options.ignore,) if isinstance(options.ignore, str) else options.ignore
    data = options.data
    if isinstance(data, Iterator):
        data = list(islice(data, STREAMED))
    return replace(options, ignore=ignore, data=data)


def _backend(place: str | Backend, device_type: str, options: Options) -> Backend:
    """The backend, refused before any work where it cannot serve the model and the settings."""
    if isinstance(place, str) and "@" in place:
        return elsewhere(place, options.cache)
    backend = get_backend(place, device_type)
    if not isinstance(backend, Elsewhere):
        backend.require(options.settings, (torch.empty(0, device=device_type),))
    return backend


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


def _changeable(parts: Iterable[Part], options: Options) -> list[Part]:
    """The parts that may be taken: all but those with a tensor that is to keep some width."""
    wanted = [*options.ignore, *(name for name, (least, _) in options.bounds.items() if least > 0)]
    return [p for p in parts if not any(is_ignored(tensor, wanted) for tensor in p.tensors)]


def _faster(merges: Sequence[Merge], timed: Iterable[Timed]) -> list[Merge]:
    """The merges that are worth looking at on some backend, and known on those elsewhere."""
    worth = [(each.worthwhile(merges), each.watch is None) for each in timed]
    names = set().union(*(names for names, _ in worth))
    # Only those that were worth it there were measured there.
    names = names.intersection(*(known for known, is_elsewhere in worth if is_elsewhere))
    return [merge for merge in merges if merge.name in names]


def _require_something_to_slim(analysis: Analysis, model: nn.Module) -> None:
    if analysis.groups:
        return
    reasons = sorted({str(reason) for reason in analysis.reasons.values()})
    raise InputError(
        f"Nothing in {type(model).__name__} can be slimmed",
        "; ".join(reasons[:5]),
        "fxprune.analyze(model, example_inputs) shows what keeps every parameter dense",
    )


def _judge(module: fx.GraphModule, analysis: Analysis, options: Options, tell: Tell) -> Importance:
    name, data = options.importance, options.data
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
    return taylor(module, analysis, data, options.loss or _cross_entropy, step=step)


def _weighed(
    merges: Sequence[Merge],
    captured: Captured,
    analysis: Analysis,
    layers: Sequence[Layer],
    importance: Importance,
    options: Options,
    tell: Tell,
) -> tuple[Merge, ...]:
    """The merges with what each one loses: by the loss or the outputs on data, or as a guess."""
    if options.data is None:
        return by_guess(merges, captured.module, layers, importance)
    module, data, loss = captured.module, options.data, options.loss or _cross_entropy
    if options.importance == "magnitude":
        way, damage = "outputs", disagreement(module, data)
    else:
        way, damage = f"loss {name_of(loss)}", loss_rise(module, data, loss)
    if options.probe is not None:
        way, damage = f"{way} {options.probe}", options.probe.before(damage, data, loss)
    memory = Memory.of(module, data, way, options.cache)
    return by_damage(merges, captured, analysis, importance, damage, memory, tell)


def _cross_entropy(outputs: Any, targets: Any) -> Tensor:
    """The default loss, which is only right for class numbers."""
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        raise InputError(
            f"Without loss=, targets are class numbers, not {batches.describe(targets)}",
            fix="Pass loss=, for example torch.nn.functional.mse_loss",
        )
    return F.cross_entropy(outputs, targets)


def _count(tell: Tell, what: str, done: int) -> None:
    tell(what, done, 0)
