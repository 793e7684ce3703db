"""Look-ups by index tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fxprune.axes import ONE, Axis
from fxprune.passes.indices import Numbers, line
from fxprune.passes.rules.base import Op, Outputs, broadcast_axes, rule, tensors

# An index that lists positions 1, 2, 3, ... times is a table of places, not an order of channels.
MOST_COPIES = 16

CHOSEN = "positions are chosen by an index tensor"


@rule("embedding")
def embedding(op: Op) -> Outputs:
    """Rows of `(entries, width)` chosen by indices; the width passes."""
    entries, width = op.axes(op.args[0])
    op.freeze(entries, CHOSEN)
    return (*op.axes(op.args[1]), width)


@rule("_embedding_bag", "_embedding_bag_forward_only", "embedding_bag")
def embedding_bag(op: Op) -> Outputs:
    """Rows of `(entries, width)`, added up or compared by bag; the width passes."""
    entries, width = op.axes(op.args[0])
    op.freeze(entries, CHOSEN)
    for places in tensors([op.args[1:], op.kwargs]):
        for axis in op.axes(places):
            op.freeze(axis, CHOSEN)
    bags, *others = tensors(op.out)
    results: list[tuple[Axis, ...]] = [(op.frozen(bags.shape[0], CHOSEN), width)]
    for result in others:
        axes = [op.frozen(size, CHOSEN) for size in result.shape]
        if result.dim() == 2:  # which entry was the largest
            axes[1] = width
        results.append(tuple(axes))
    return list(results)


@rule("index", "_unsafe_index")
def index(op: Op) -> Outputs:
    """Advanced indexing: indexed dimensions stay, the others pass through."""
    value, indices = op.args
    axes = op.axes(value)
    indexed = [d for d, i in enumerate(indices) if i is not None]
    if len(indexed) == 1 and indices[indexed[0]].dim() == 1:
        (dim,) = indexed
        picked = _picked(op, axes[dim], indices[dim], op.indices.of(indices[dim]))
        if picked is not None:
            return (*axes[:dim], picked, *axes[dim + 1 :])
    for dim in indexed:
        op.freeze(axes[dim], CHOSEN)
    given = [indices[d] for d in indexed]
    if any(i.dtype.is_floating_point is False and str(i.dtype) == "torch.bool" for i in given):
        return tuple(op.frozen(size, CHOSEN) for size in op.out.shape)
    rank = max(i.dim() for i in given)
    passing: list[Axis] = [axis for d, axis in enumerate(axes) if d not in indexed]
    shape = op.out.shape
    contiguous = indexed == list(range(indexed[0], indexed[-1] + 1))
    place = indexed[0] if contiguous else 0
    chosen = broadcast_axes(op, [op.axes(i) for i in given], shape[place : place + rank])
    for axis in chosen:
        op.freeze(axis, CHOSEN)
    return (*passing[:place], *chosen, *passing[place:])


@rule("index_select")
def index_select(op: Op) -> Outputs:
    """One dimension indexed by a vector, whose own positions stay too."""
    axes = list(op.axes(op.args[0]))
    dim, chosen = op.arg(1, "dim"), op.arg(2, "index")
    picked = _picked(op, axes[dim], chosen, op.indices.of(chosen)) if chosen.dim() else None
    if picked is not None:
        axes[dim] = picked
        return tuple(axes)
    op.freeze(axes[dim], CHOSEN)
    axes[dim] = op.axes(chosen)[0] if chosen.dim() else ONE
    op.freeze(axes[dim], CHOSEN)
    return tuple(axes)


@rule("gather")
def gather(op: Op) -> Outputs:
    """Positions of `dim` chosen anew for every place; along other dimensions places correspond."""
    axes, chosen = op.axes(op.args[0]), op.axes(op.arg(2, "index"))
    if not axes:
        return chosen
    dim = op.arg(1, "dim") % len(axes)
    index = op.arg(2, "index")
    if all(a.size == c.size for d, (a, c) in enumerate(zip(axes, chosen, strict=True)) if d != dim):
        picked = _picked(op, axes[dim], index, line(op.indices.of(index), dim))
        if picked is not None:
            return (*axes[:dim], picked, *axes[dim + 1 :])
    _correspond(op, axes, chosen, dim)
    return tuple(op.unifier.resolve(axis) for axis in chosen)


def _picked(op: Op, axis: Axis, index: Tensor, numbers: Numbers | None) -> Axis | None:
    """The positions of `axis` with the given numbers, where the slim graph can name them anew."""
    if numbers is None or not op.chooses or not op.unifier.is_free(axis):
        return None
    places = numbers % axis.size
    if np.unique(np.bincount(places)).sum() > MOST_COPIES:
        return None
    for own in op.axes(index):
        op.freeze(own, CHOSEN)
    op.indices.rely(index, axis)
    return op.pick(axis, places)


@rule("index_add", "index_copy")
def index_add(op: Op) -> Outputs:
    """Rows of a source go to chosen positions of `dim`; along the others positions correspond."""
    axes, source = op.axes(op.args[0]), op.axes(op.arg(3, "source"))
    if len(source) != len(axes) or not axes:
        return _all_chosen(op)
    for axis in op.axes(op.arg(2, "index")):
        op.freeze(axis, CHOSEN)
    _correspond(op, axes, source, op.arg(1, "dim"))
    return tuple(op.unifier.resolve(axis) for axis in axes)


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(op: Op) -> Outputs:
    """Numbers go to a position of `dim` of their own; along the others places correspond."""
    axes, *others = (op.axes(t) for t in tensors([op.args, op.kwargs]) if t.dim())
    if not axes or any(len(other) != len(axes) for other in others):
        return _all_chosen(op)
    for other in others:
        _correspond(op, axes, other, op.arg(1, "dim"))
    return tuple(op.unifier.resolve(axis) for axis in axes)


@rule("index_put", "_index_put_impl", "_unsafe_index_put")
def index_put(op: Op) -> Outputs:
    """Values written where indices say; dimensions that are not indexed correspond."""
    axes, indices = list(op.axes(op.args[0])), op.args[1]
    values = op.axes(op.arg(2, "values"))
    first = next(d for d, index in enumerate(indices) if index is not None)
    for index in (index for index in indices if index is not None):
        for axis in op.axes(index):
            op.freeze(axis, CHOSEN)
    behind = len(axes) - first - sum(_consumed(index) for index in indices[first:])
    for axis in axes[: len(axes) - behind]:
        op.freeze(axis, CHOSEN)
    for mine, theirs in zip(reversed(axes[len(axes) - behind :]), reversed(values), strict=False):
        if mine.size == theirs.size:
            op.unify(mine, theirs)
    for axis in values[: max(len(values) - behind, 0)]:
        op.freeze(axis, CHOSEN)
    return tuple(op.unifier.resolve(axis) for axis in axes)


def _correspond(op: Op, axes: Sequence[Axis], others: Sequence[Axis], dim: int) -> None:
    """Positions are the same, but along `dim` and where there are not as many: chosen there."""
    for d, (mine, theirs) in enumerate(zip(axes, others, strict=True)):
        if d != dim % len(axes) and mine.size == theirs.size:
            op.unify(mine, theirs)
        else:
            op.freeze(mine, CHOSEN)
            op.freeze(theirs, CHOSEN)


def _consumed(index: Tensor | None) -> int:
    """How many dimensions `index` takes the place of: a mask, as many as it has."""
    masks = (torch.bool, torch.uint8)
    return index.dim() if index is not None and index.dtype in masks else 1


def _all_chosen(op: Op) -> Outputs:
    for tensor in tensors([op.args, op.kwargs]):
        for axis in op.axes(tensor):
            op.freeze(axis, CHOSEN)
    return op.axes(op.args[0])
