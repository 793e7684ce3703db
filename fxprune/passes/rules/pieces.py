"""Concatenation, splitting, slicing and padding: axes made of consecutive pieces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fxprune.axes import ONE, Axis, concat
from fxprune.passes.rules.base import Op, Outputs, rule, tensors


@rule("cat", "concat")
def cat(op: Op) -> Outputs:
    """The pieces follow each other along `dim`; all other dimensions agree."""
    values = [t for t in op.args[0] if t.shape != (0,)]
    found = [op.axes(t) for t in values]
    dim = op.arg(1, "dim", 0) % len(found[0])
    for other in found[1:]:
        for d, (mine, theirs) in enumerate(zip(found[0], other, strict=True)):
            if d != dim:
                op.unify(mine, theirs)
    joined = concat(op.unifier.resolve(axes[dim]) for axes in found)
    return tuple(
        joined if d == dim else op.unifier.resolve(axis) for d, axis in enumerate(found[0])
    )


@rule("stack")
def stack(op: Op) -> Outputs:
    """A new dimension, one position for each tensor; all other dimensions agree."""
    found = [op.axes(t) for t in op.args[0]]
    for other in found[1:]:
        for mine, theirs in zip(found[0], other, strict=True):
            op.unify(mine, theirs)
    axes = list(found[0])
    dim = op.arg(1, "dim", 0) % (len(axes) + 1)
    axes.insert(dim, op.frozen(len(found), "tensors stacked"))
    return tuple(axes)


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split")
def split(op: Op) -> Outputs:
    """Consecutive pieces along `dim`, with the sizes that the results have."""
    axes = op.axes(op.args[0])
    dim = op.arg(2, "dim", 0) % len(axes)
    results = tensors(op.out)
    found = op.pieces(axes[dim], [t.shape[dim] for t in results])
    return [(*axes[:dim], piece, *axes[dim + 1 :]) for piece in found]


@rule("unbind")
def unbind(op: Op) -> Outputs:
    """One tensor for each position of `dim`, which therefore keeps all its positions."""
    axes = op.axes(op.args[0])
    dim = op.arg(1, "dim", 0) % len(axes)
    op.freeze(axes[dim], "unbound into separate tensors")
    return [axes[:dim] + axes[dim + 1 :] for _ in tensors(op.out)]


@rule("select")
def select(op: Op) -> Outputs:
    """One fixed position of `dim`: it must stay, the others are free."""
    axes = op.axes(op.args[0])
    dim, index = op.args[1] % len(axes), op.args[2]
    size = axes[dim].size
    op.pieces(axes[dim], (index % size, 1, size - index % size - 1))
    return axes[:dim] + axes[dim + 1 :]


@rule("slice", "slice_copy", "narrow")
def sliced(op: Op) -> Outputs:
    """`start:end:step` along `dim`; every step-th position."""
    value = op.args[0]
    axes = op.axes(value)
    dim = op.arg(1, "dim", 0) % len(axes)
    size, length = axes[dim].size, op.out.shape[dim]
    start = _start(op.arg(2, "start"), size)
    step = op.arg(4, "step", 1) if op.func.overloadpacket.__name__ != "narrow" else 1
    piece = _strided(op, axes[dim], start, length, step)
    return (*axes[:dim], piece, *axes[dim + 1 :])


def _start(start: int | None, size: int) -> int:
    if start is None:
        return 0
    return min(max(start + size, 0), size) if start < 0 else min(start, size)


def stride_block(start: int, length: int, step: int, size: int) -> int | None:
    """Where the `length` strides begin that `start` lies in the first of; None if they do not fit.

    Strides begin at multiples of `step` if they can, so that `[::2]` and `[1::2]` have the same.
    """
    earliest, latest = max(0, start - step + 1), min(start, size - step * length)
    if earliest > latest:
        return None
    aligned = start - start % step
    return aligned if aligned <= latest else latest


def _strided(op: Op, axis: Axis, start: int, length: int, step: int) -> Axis:
    size = axis.size
    if length == 0:
        return concat(())
    if step == 1 or length == 1:
        return op.pieces(axis, (start, length, size - start - length))[1]
    block = stride_block(start, length, step, size)
    if block is None and op.chooses and op.unifier.is_free(axis):
        # A copy in place of a view, once positions are gone: nobody may write into it.
        op.indices.rely(op.args[0], axis)
        return op.pick(axis, np.arange(start, start + step * length, step))
    if block is None:
        op.freeze(axis, "strided slice that does not divide the axis")
        return op.frozen(length, "strided slice that does not divide the axis")
    whole = op.pieces(axis, (block, step * length, size - block - step * length))[1]
    runs, within = op.factor(whole, (length, step))
    op.freeze(within, "positions within one stride")
    return runs


@rule("constant_pad_nd")
def pad(op: Op) -> Outputs:
    """Constants before and after an axis are pieces that stay; negative padding cuts pieces off."""
    axes = list(op.axes(op.args[0]))
    padding: Sequence[int] = op.arg(1, "pad")
    for from_right in range(len(padding) // 2):
        before, after = padding[2 * from_right], padding[2 * from_right + 1]
        dim = len(axes) - 1 - from_right
        axis = axes[dim]
        cut_before, cut_after = max(-before, 0), max(-after, 0)
        kept = axis.size - cut_before - cut_after
        middle = op.pieces(axis, (cut_before, kept, cut_after))[1]
        axes[dim] = concat(
            part
            for part in (
                op.frozen(max(before, 0), "padding"),
                middle,
                op.frozen(max(after, 0), "padding"),
            )
            if part.size
        )
    return tuple(op.unifier.resolve(axis) if axis.size != 1 else ONE for axis in axes)
