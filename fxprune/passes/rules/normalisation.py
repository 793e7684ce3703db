"""Normalisation: statistics per channel (exact under slimming) or over channels.

A norm *over* channels is defined over the positions that are kept; the verifier's reference
computes it so. That is only possible where the norm is a node of its own in the captured graph,
elsewhere its channels stay dense.
"""

from __future__ import annotations

from collections.abc import Sequence

from fxprune.axes import Axis, product
from fxprune.passes.rules.base import Op, Outputs, rule, tensors

HIDDEN = "normalised over channels inside a module that is not taken apart"


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_native_batch_norm_legit_functional",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
    "cudnn_batch_norm",
    "miopen_batch_norm",
)
def batch_norm(op: Op) -> Outputs:
    """Every vector beside the input has one entry per channel (dimension 1)."""
    value, *vectors = tensors([op.args, op.kwargs])
    axes = op.axes(value)
    for vector in vectors:
        op.unify(axes[1], op.axes(vector)[0])
    if any(argument is True for argument in op.args[3:6]):
        for axis in (axes[0], *axes[2:]):
            op.freeze(axis, "statistics of a batch norm in training mode")
    statistics = [
        (axes[1],)
        if tuple(t.shape) == (axes[1].size,)
        else tuple(op.unifier.fresh(s) for s in t.shape)
        for t in tensors(op.out)[1:]
    ]
    return [axes, *statistics]


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(op: Op) -> Outputs:
    """Statistics over the last dimensions; weight and bias have an entry for each position."""
    value, shape = op.args[0], op.args[1]
    axes = op.axes(value)
    normalised = axes[len(axes) - len(shape) :]
    for vector in tensors([op.args[2:], op.kwargs]):
        for mine, theirs in zip(normalised, op.axes(vector), strict=True):
            op.unify(mine, theirs)
    freeze_unless_renormalised(op, normalised)
    return [axes, *(_statistics(op, t.shape) for t in tensors(op.out)[1:])]


@rule("native_group_norm")
def group_norm(op: Op) -> Outputs:
    """Channels are `G * I`; statistics over I and all places of each of the G groups."""
    value, weight, bias, _, channels, _, groups, _ = op.args
    axes = op.axes(value)
    group, inner = op.factor(axes[1], (groups, channels // groups))
    for vector in (weight, bias):
        if vector is not None:
            op.unify(product((group, inner)), op.axes(vector)[0])
    freeze_unless_renormalised(op, (inner,))
    for place in axes[2:]:
        op.freeze(place, "normalised over places")
    return [axes, *(_statistics(op, t.shape) for t in tensors(op.out)[1:])]


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(op: Op) -> Outputs:
    """`v * (g / |v|)`, a norm for each position of `dim` (Salimans and Kingma 2016)."""
    direction, magnitude = op.axes(op.args[0]), op.axes(op.args[1])
    dim = op.arg(2, "dim", 0)
    op.unify(direction[dim], magnitude[dim])
    for place, axis in enumerate(direction):
        if place != dim % len(direction):
            op.freeze(axis, "weights are divided by a norm over these positions")
    return [direction, *(magnitude for _ in tensors(op.out)[1:])]


def freeze_unless_renormalised(op: Op, axes: Sequence[Axis]) -> None:
    """Keep `axes` dense if the verifier's reference cannot normalise over the kept positions."""
    if not op.renormalises:
        for axis in axes:
            op.freeze(axis, HIDDEN)


def _statistics(op: Op, shape: Sequence[int]) -> tuple[Axis, ...]:
    return tuple(op.frozen(size, "statistics of a norm") for size in shape)
