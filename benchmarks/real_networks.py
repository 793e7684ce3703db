"""Allocation problems of real networks: those that `fxprune.optimize` makes, layer by layer.

Structure, groups, ladders and importance (squared weights) are read from a model.  Latencies
follow the roofline of the synthetic problems (`solver_networks`): a GPU at batch 128 with tiles of
128 positions x 64 output channels x 32 inputs, waves over 108 multiprocessors and a launch cost per
kernel, evaluated at every combination of widths of every layer.  What runs outside of the layers'
kernels is charged for the memory it moves.  Whole nanoseconds everywhere, so that the sum of the
layers is the product's own problem to the last digit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from benchmarks.instance import Instance, Term
from fxprune.axes import Atom, Axes, Axis
from fxprune.passes.allocate import Allocator, CostTables
from fxprune.passes.allocation.costs import macs_tables, params_tables
from fxprune.passes.allocation.ladders import Ladder, build_ladders
from fxprune.passes.allocation.values import value_tables
from fxprune.passes.allocation.widths import Choices, Tables
from fxprune.passes.bake import bake
from fxprune.passes.capture import Captured, capture
from fxprune.passes.constants import operation
from fxprune.passes.importance import Importance, magnitude
from fxprune.passes.infer import Analysis
from fxprune.passes.latency import FREE_OPERATIONS
from fxprune.passes.layers import Layer, find_layers

Array = NDArray[np.float64]

BATCH = 128
BANDWIDTH = 1555.0  # bytes per nanosecond
ELEMENT = 2.0  # bytes
LAUNCH = 3000.0  # nanoseconds
STEP = 180.0  # nanoseconds of one tile's step over 32 inputs
PROCESSORS = 108


@dataclass(frozen=True)
class Kernel:
    """Something that takes time, as a function of widths.

    Attributes:
        name: of its node.
        weight: name of its weight, if it is a layer.
        reads: axis of the channels that it reads.
        writes: axis of the channels that it writes.
        axes: what its time depends on.
        time: whole nanoseconds at the sizes of these axes, which broadcast.
    """

    name: str
    weight: str | None
    reads: Axes
    writes: Axes
    axes: Axes
    time: Callable[..., Array]


@dataclass(frozen=True)
class Network:
    """A model as the product sees it before it allocates."""

    captured: Captured
    analysis: Analysis
    ladders: Mapping[Atom, Ladder]
    importance: Importance
    kernels: tuple[Kernel, ...]

    def latency(self, choices: Choices) -> Tables:
        """Nanoseconds as tables over the choices."""
        tables = Tables(choices.domains)
        for kernel in self.kernels:
            _add_time(tables, kernel, choices)
        return tables

    def macs(self, choices: Choices) -> Tables:
        """Multiply-accumulates as tables over the choices."""
        return macs_tables(self.analysis, choices)

    def params(self, choices: Choices) -> Tables:
        """Number of parameters as tables over the choices."""
        return params_tables(self.captured.module, self.analysis, choices)

    def allocator(self, *costs: CostTables) -> Allocator:
        """The product's allocator for these costs, which are whole numbers."""
        units = [1.0] * len(costs)
        return Allocator.build(self.analysis, self.ladders, self.importance, costs, units)

    def instance(self, choices: Choices) -> Instance:
        """Value and latency layer by layer, over the choices of an allocator for the latency."""
        terms, fixed = [], 0.0
        ends = {kernel.weight: kernel for kernel in self.kernels if kernel.weight}
        total = sum(float(saliency.sum()) for saliency in self.importance.weights.values())
        for name, saliency in self.importance.weights.items():
            only = replace(self.importance, weights={name: saliency})
            value = value_tables(self.analysis, only, choices)
            share = float(saliency.sum()) / total
            rows, columns = self.analysis.tensors[name][:2]
            kernel = ends.get(name)
            reads = kernel.reads if kernel else (columns,)
            writes = kernel.writes if kernel else (rows,)
            for scope, table in value.by_scope.items():
                terms.append(_term(name, scope, table * share, None, reads, writes, choices))
        for kernel in self.kernels:
            time = Tables(choices.domains)
            _add_time(time, kernel, choices)
            fixed += time.constant
            for scope, table in time.by_scope.items():
                whole = table.astype(np.int64)
                terms.append(
                    _term(kernel.name, scope, None, whole, kernel.reads, kernel.writes, choices)
                )
        ladders = {name: np.array(widths) for name, widths in choices.domains.items()}
        return Instance(ladders, _joined(terms), tuple(choices.sums), (int(fixed),))


def read(model: nn.Module, example_inputs: tuple[torch.Tensor, ...], multiple_of: int) -> Network:
    """Capture a model and judge its channels by the squares of their weights."""
    captured, analysis = bake(capture(model, example_inputs))
    layers = find_layers(captured.module, analysis)
    return Network(
        captured=captured,
        analysis=analysis,
        ladders=build_ladders(analysis, multiple_of),
        importance=magnitude(captured.module, analysis),
        kernels=(*map(_layer, layers), *_others(captured.module, analysis, layers)),
    )


def _layer(layer: Layer) -> Kernel:
    reads, writes = (layer.inputs,), (layer.outputs,)
    axes = (*reads, *writes, layer.inner)
    time = partial(_roofline, layer)
    return Kernel(layer.node, layer.weight, reads, writes, axes, time)


def _roofline(layer: Layer, inputs: Array, outputs: Array, inner: Array) -> Array:
    """Whole nanoseconds of a layer at the given widths."""
    region = layer.region
    kernel = math.prod(region.kernel)
    positions = BATCH * math.prod(region.out_spatial)
    read_places = BATCH * math.prod(region.spatial)
    channels = positions * outputs * (2 if region.residual else 1) + read_places * inputs
    traffic = ELEMENT * (channels + inner * outputs * kernel) / BANDWIDTH
    if region.groups == region.in_width > 1:  # depthwise: no tiles, nothing but memory
        return np.asarray(np.rint(traffic + LAUNCH))
    groups = 1 if region.groups == 1 else inputs / inner
    tiles = np.ceil(positions / 128) * np.ceil(outputs / groups / 64) * groups
    compute = np.ceil(tiles / PROCESSORS) * np.ceil(inner * kernel / 32) * STEP
    return np.asarray(np.rint(np.maximum(compute, traffic) + LAUNCH))


def _others(module: fx.GraphModule, analysis: Analysis, layers: Sequence[Layer]) -> list[Kernel]:
    """What runs outside of the layers' kernels: it reads and writes its result's size."""
    inside = {name for layer in layers for name in layer.fused}
    found = []
    for node in module.graph.nodes:
        free = (operation(node) or "").removesuffix("_") in FREE_OPERATIONS
        if node.op not in ("call_module", "call_function", "call_method") or node.name in inside:
            continue
        for axes in () if free else analysis.values[node.name]:
            found.append(Kernel(node.name, None, axes, axes, axes, _moved))
    return found


def _moved(*sizes: Array) -> Array:
    elements = BATCH * math.prod(sizes, start=np.array(1.0))
    return np.asarray(np.rint(2 * ELEMENT * elements / BANDWIDTH + LAUNCH))


def _add_time(tables: Tables, kernel: Kernel, choices: Choices) -> None:
    tables.add_function([choices.width(axis) for axis in kernel.axes], kernel.time)


def _term(
    name: str,
    scope: tuple[str, ...],
    value: Array | None,
    cost: NDArray[np.int64] | None,
    reads: Sequence[Axis],
    writes: Sequence[Axis],
    choices: Choices,
) -> Term:
    shape = tuple(len(choices.domains[choice]) for choice in scope)
    ends = [
        frozenset(choice for axis in axes for choice in choices.width(axis).scope) & set(scope)
        for axes in (reads, writes)
    ]
    return Term(
        name,
        scope,
        np.zeros(shape) if value is None else value,
        np.zeros((1, *shape), dtype=np.int64) if cost is None else cost[None],
        *ends,
    )


def _joined(terms: Sequence[Term]) -> tuple[Term, ...]:
    """Terms with equal ends as one, which nothing looks at apart."""
    joined: dict[tuple[Any, ...], Term] = {}
    for term in terms:
        key = (term.scope, term.reads, term.writes)
        if known := joined.get(key):
            term = replace(term, value=known.value + term.value, cost=known.cost + term.cost)
        joined[key] = replace(term, name=f"term {len(joined) if known is None else known.name}")
    return tuple(joined.values())
