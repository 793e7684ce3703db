"""Exact costs of a choice of widths: multiply-accumulates, parameters, bytes of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set

from torch import fx

from fxprune.axes import Atom, kept_size
from fxprune.passes.allocation.widths import Choices, Tables
from fxprune.passes.infer import Analysis, named_tensors


def macs(
    analysis: Analysis,
    sizes: Mapping[Atom, int] | None = None,
    gone: Set[str] = frozenset(),
) -> int:
    """Multiply-accumulates of one forward pass.

    Args:
        sizes: of atoms in the slim model (dense: None).
        gone: nodes that were dropped.
    """
    sizes = sizes or {}
    return sum(
        c.constant * math.prod(kept_size(axis, sizes) for axis in c.axes)
        for c in analysis.contractions
        if c.node not in gone
    )


def macs_tables(analysis: Analysis, choices: Choices) -> Tables:
    """Multiply-accumulates as tables over the choices."""
    tables = Tables(choices.domains)
    for contraction in analysis.contractions:
        widths = [choices.width(axis) for axis in contraction.axes]
        tables.add_product(widths, contraction.constant, choices.gates.get(contraction.node))
    return tables


def params_tables(module: fx.GraphModule, analysis: Analysis, choices: Choices) -> Tables:
    """Number of parameters as tables over the choices."""
    tables = Tables(choices.domains)
    for name, _ in module.named_parameters():
        widths = [choices.width(axis) for axis in analysis.tensors[name]]
        tables.add_product(widths, 1.0, choices.gates.get(name))
    return tables


def memory_tables(module: fx.GraphModule, analysis: Analysis, choices: Choices) -> Tables:
    """Bytes of parameters and buffers as tables over the choices."""
    tables = Tables(choices.domains)
    for name, tensor in named_tensors(module):
        widths = [choices.width(axis) for axis in analysis.tensors[name]]
        tables.add_product(widths, tensor.element_size(), choices.gates.get(name))
    return tables
