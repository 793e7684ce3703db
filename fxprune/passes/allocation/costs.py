"""Exact costs of a choice of widths: multiply-accumulates, parameters, bytes of weights.

What counts is what is deployed: a merged span costs what its one layer does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set

from torch import fx

from fxprune.axes import Atom, Axis, kept_size
from fxprune.passes.allocation.widths import Choices, Tables
from fxprune.passes.infer import Analysis, named_tensors
from fxprune.passes.merges import Merge


def macs(
    analysis: Analysis,
    sizes: Mapping[Atom, int] | None = None,
    gone: Set[str] = frozenset(),
    merges: Sequence[Merge] = (),
) -> int:
    """Multiply-accumulates of one forward pass.

    Args:
        sizes: of atoms in the slim model (dense: None).
        gone: nodes that were dropped.
        merges: spans that are merged.
    """
    sizes = sizes or {}
    inside = frozenset(gone).union(*(merge.gone for merge in merges))
    alone = (
        c.constant * math.prod(kept_size(axis, sizes) for axis in c.axes)
        for c in analysis.contractions
        if c.node not in inside
    )
    return sum(alone) + sum(merge.layer.at(sizes).macs() for merge in merges)


def macs_tables(analysis: Analysis, choices: Choices) -> Tables:
    """Multiply-accumulates as tables over the choices."""
    tables = Tables(choices.domains)
    for contraction in analysis.contractions:
        widths = [choices.width(axis) for axis in contraction.axes]
        tables.add_product(widths, contraction.constant, choices.runs.get(contraction.node))
    for merge in choices.forms.merges():
        axes = _weight_axes(merge)
        each = merge.layer.region.macs() / math.prod(axis.size for axis in axes)
        _add(tables, choices, merge, axes, each)
    return tables


def params_tables(module: fx.GraphModule, analysis: Analysis, choices: Choices) -> Tables:
    """Number of parameters as tables over the choices."""
    tables = Tables(choices.domains)
    for name, _ in module.named_parameters():
        widths = [choices.width(axis) for axis in analysis.tensors[name]]
        tables.add_product(widths, 1.0, choices.runs.get(name))
    for merge in choices.forms.merges():
        _add_merged_tensors(tables, choices, merge, 1)
    return tables


def memory_tables(module: fx.GraphModule, analysis: Analysis, choices: Choices) -> Tables:
    """Bytes of parameters and buffers as tables over the choices."""
    tables = Tables(choices.domains)
    for name, tensor in named_tensors(module):
        widths = [choices.width(axis) for axis in analysis.tensors[name]]
        tables.add_product(widths, tensor.element_size(), choices.runs.get(name))
    sizes = {name: tensor.element_size() for name, tensor in named_tensors(module)}
    for merge in choices.forms.merges():
        _add_merged_tensors(tables, choices, merge, sizes[merge.layer.weight])
    return tables


def _add_merged_tensors(tables: Tables, choices: Choices, merge: Merge, each: int) -> None:
    """Weight and bias of a merged layer, `each` per number."""
    _add(tables, choices, merge, _weight_axes(merge), each * math.prod(merge.span.geometry.kernel))
    if merge.span.geometry.bias:
        _add(tables, choices, merge, (merge.layer.outputs,), each)


def _weight_axes(merge: Merge) -> tuple[Axis, ...]:
    """The axes that the merged layer has a kernel for each combination of."""
    layer = merge.layer
    return (layer.outputs,) if layer.region.groups > 1 else (layer.outputs, layer.inputs)


def _add(
    tables: Tables, choices: Choices, merge: Merge, axes: Iterable[Axis], scale: float
) -> None:
    widths = [choices.width(axis) for axis in axes]
    tables.add_product(widths, scale, choices.forms.taken(merge.name))
