"""Tensors made inside the graph."""

from __future__ import annotations

from fxprune.passes.rules.base import Op, Outputs, rule


@rule(
    "zeros",
    "ones",
    "full",
    "empty",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "scalar_tensor",
)
def uniform(op: Op) -> Outputs:
    """The same value everywhere: any part of it looks alike, so its axes are free."""
    return tuple(op.unifier.fresh(size) for size in op.out.shape)


@rule(
    "arange",
    "linspace",
    "eye",
    "tril_indices",
    "triu_indices",
    "rand",
    "randn",
    "randint",
    "randperm",
)
def distinct(op: Op) -> Outputs:
    """Values that differ from position to position: every position stays."""
    return tuple(op.frozen(size, "positions with values of their own") for size in op.out.shape)


@rule("tril", "triu")
def triangle(op: Op) -> Outputs:
    """Zeroed by comparing two positions, which therefore stay."""
    axes = op.axes(op.args[0])
    for axis in axes[-2:]:
        op.freeze(axis, "compared with another position")
    return axes
