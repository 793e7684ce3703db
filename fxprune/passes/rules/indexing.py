"""Look-ups by index tensors."""

from __future__ import annotations

from fxprune.axes import ONE, Axis
from fxprune.passes.rules.base import Op, Outputs, broadcast_axes, rule

CHOSEN = "positions are chosen by an index tensor"


@rule("embedding")
def embedding(op: Op) -> Outputs:
    """Rows of `(entries, width)` chosen by indices; the width passes."""
    entries, width = op.axes(op.args[0])
    op.freeze(entries, CHOSEN)
    return (*op.axes(op.args[1]), width)


@rule("index", "_unsafe_index")
def index(op: Op) -> Outputs:
    """Advanced indexing: indexed dimensions stay, the others pass through."""
    value, indices = op.args
    axes = op.axes(value)
    indexed = [d for d, i in enumerate(indices) if i is not None]
    for dim in indexed:
        op.freeze(axes[dim], CHOSEN)
    picked = [indices[d] for d in indexed]
    if any(i.dtype.is_floating_point is False and str(i.dtype) == "torch.bool" for i in picked):
        return tuple(op.frozen(size, CHOSEN) for size in op.out.shape)
    rank = max(i.dim() for i in picked)
    passing: list[Axis] = [axis for d, axis in enumerate(axes) if d not in indexed]
    shape = op.out.shape
    contiguous = indexed == list(range(indexed[0], indexed[-1] + 1))
    place = indexed[0] if contiguous else 0
    chosen = broadcast_axes(op, [op.axes(i) for i in picked], shape[place : place + rank])
    for axis in chosen:
        op.freeze(axis, CHOSEN)
    return (*passing[:place], *chosen, *passing[place:])


@rule("index_select")
def index_select(op: Op) -> Outputs:
    """One dimension indexed by a vector, whose own positions stay too."""
    axes = list(op.axes(op.args[0]))
    dim, chosen = op.arg(1, "dim"), op.arg(2, "index")
    op.freeze(axes[dim], CHOSEN)
    axes[dim] = op.axes(chosen)[0] if chosen.dim() else ONE
    op.freeze(axes[dim], CHOSEN)
    return tuple(axes)


@rule("gather")
def gather(op: Op) -> Outputs:
    """Positions of `dim` chosen anew for every place; along other dimensions places correspond."""
    axes, chosen = list(op.axes(op.args[0])), list(op.axes(op.arg(2, "index")))
    if not axes:
        return tuple(chosen)
    dim = op.arg(1, "dim") % len(axes)
    for d, (mine, theirs) in enumerate(zip(axes, chosen, strict=True)):
        if d != dim and mine.size == theirs.size:
            op.unify(mine, theirs)
            continue
        op.freeze(mine, CHOSEN)
        op.freeze(theirs, CHOSEN)
    return tuple(op.unifier.resolve(axis) for axis in chosen)
