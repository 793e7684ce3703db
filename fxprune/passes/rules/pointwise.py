"""Operators that act on every element alone but do not carry PyTorch's `pointwise` tag."""

from __future__ import annotations

from fxprune.passes.rules.base import Op, Outputs, broadcast, rule, tensors


@rule("copy", "masked_fill", "hardswish", "floor_divide", "polar", "_conj")
def elementwise(op: Op) -> Outputs:
    """Broadcast like a pointwise operator."""
    return broadcast(op)


@rule(
    "clone",
    "alias",
    "detach",
    "contiguous",
    "_to_copy",
    "lift_fresh",
    "lift_fresh_copy",
    "zero",
    "zeros_like",
    "ones_like",
    "full_like",
    "empty_like",
    "fill",
)
def same_shape(op: Op) -> Outputs:
    """Every result has the shape, and so the axes, of the first argument."""
    axes = op.axes(op.args[0])
    return [axes for _ in tensors(op.out)]


@rule("native_dropout", "log_sigmoid_forward", "rrelu_with_noise")
def with_state(op: Op) -> Outputs:
    """A pointwise result, and a second tensor kept for the backward pass."""
    axes = op.axes(op.args[0])
    same = tuple(op.args[0].shape)
    return [
        axes if tuple(t.shape) == same else tuple(op.frozen(n, "state") for n in t.shape)
        for t in tensors(op.out)
    ]


@rule("prelu", "_prelu_kernel")
def prelu(op: Op) -> Outputs:
    """`weight` has one slope for all, or one per channel; in the kernel form it is broadcast."""
    value, weight = op.args
    axes = op.axes(value)
    if weight.dim() == value.dim():
        return broadcast(op)
    if weight.numel() > 1 and len(axes) > 1:
        op.unify(axes[1], op.axes(weight)[0])
    return axes


@rule("glu")
def glu(op: Op) -> Outputs:
    """The two halves of `dim` are multiplied with each other: they are one axis."""
    value, dim = op.args[0], op.arg(1, "dim", -1)
    axes = list(op.axes(value))
    half = axes[dim].size // 2
    left, right = op.pieces(axes[dim], (half, half))
    op.unify(left, right)
    axes[dim] = left
    return tuple(axes)
