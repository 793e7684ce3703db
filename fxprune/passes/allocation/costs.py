"""Exact costs of a choice of widths: multiply-accumulates, parameters, bytes of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import fx

from fxprune.axes import Atom, kept_size
from fxprune.passes.allocation.widths import Choices, Tables
from fxprune.passes.infer import Analysis, named_tensors


def macs(analysis: Analysis, sizes: Mapping[Atom, int] | None = None) -> int:
    """Multiply-accumulates of one forward pass when atoms have the given sizes (dense: None)."""
    sizes = sizes or {}
    return sum(
        c.constant * math.prod(kept_size(axis, sizes) for axis in c.axes)
        for c in analysis.contractions
    )


def macs_tables(analysis: Analysis, choices: Choices) -> Tables:
    """Multiply-accumulates as tables over the choices."""
    tables = Tables(choices.domains)
    for contraction in analysis.contractions:
        tables.add_product([choices.width(a) for a in contraction.axes], contraction.constant)
    return tables


def params_tables(module: fx.GraphModule, analysis: Analysis, choices: Choices) -> Tables:
    """Number of parameters as tables over the choices."""
    tables = Tables(choices.domains)
    for name, _ in module.named_parameters():
        tables.add_product([choices.width(axis) for axis in analysis.tensors[name]], 1.0)
    return tables


def memory_tables(module: fx.GraphModule, analysis: Analysis, choices: Choices) -> Tables:
    """Bytes of parameters and buffers as tables over the choices."""
    tables = Tables(choices.domains)
    for name, tensor in named_tensors(module):
        widths = [choices.width(axis) for axis in analysis.tensors[name]]
        tables.add_product(widths, tensor.element_size())
    return tables
