"""What a choice is worth: pairwise saliency of every layer as tables over the choices.

A layer in a residual block is worth nothing without the block. What is inside of a merged span
keeps its worth, since it still shapes the merged kernel; only the activations between are lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fxprune.axes import (
    Atom,
    Axis,
    Concat,
    Numbers,
    Reordered,
    counted,
    in_order,
    kept_positions,
)
from fxprune.passes.allocation.forms import Gate
from fxprune.passes.allocation.widths import Choices, Tables, fits
from fxprune.passes.importance import Importance
from fxprune.passes.infer import Analysis

Array = NDArray[np.float64]
Levels = dict[Atom, NDArray[np.int64]]

TOTAL = 100.0
STRIP = 1 << 20
"""Elements of a weight that are looked at together."""


def value_tables(analysis: Analysis, importance: Importance, choices: Choices) -> Tables:
    """The worth of every combination of widths; the dense network is worth 100.

    A layer whose channels are a concatenation of several groups would tie all of these to its other
    side; half of the worth is counted on either side alone instead.
    """
    total = importance.total
    tables = Tables(choices.domains)
    for name, saliency in importance.weights.items():
        rows, columns = analysis.tensors[name][:2]
        gate = choices.stays.get(name)
        share = saliency * np.float32(TOTAL / total) if total else saliency
        if _is_wide(rows, choices) or _is_wide(columns, choices):
            for dim, axis in enumerate((rows, columns)):
                half = share.sum(axis=1 - dim, dtype=np.float64)[:, None] / 2
                _add(tables, half, (axis,), importance, choices, gate)
        else:
            _add(tables, share, (rows, columns), importance, choices, gate)
    for merge in choices.forms.merges():
        tables.add((), np.array(-merge.loss), choices.forms.taken(merge.name))
    return tables


def _is_wide(axis: Axis, choices: Choices) -> bool:
    return (
        isinstance(counted(axis), Concat) and sum(a in choices.ladders for a in set(axis.atoms)) > 1
    )


def _add(
    tables: Tables,
    saliency: Numbers,
    axes: Sequence[Axis],
    importance: Importance,
    choices: Choices,
    gate: Gate | None,
) -> None:
    """Add the sum of `saliency` over the positions that stay, for every combination of widths."""
    if len(axes) == 1 and isinstance(axes[0], Reordered):
        before = in_order(axes[0], saliency)
        _add(tables, before, (axes[0].axis,), importance, choices, gate)
        return
    if len(axes) == 1 and isinstance(axes[0], Concat):
        if gate is not None and not choices.by_part and choices.is_sum(axes[0]):
            _add_alike(tables, saliency, axes[0], importance, choices, gate)
            return
        offset = 0
        for part in axes[0].parts:
            piece = saliency[offset : offset + part.size]
            _add(tables, piece, (part,), importance, choices, gate)
            offset += part.size
        return
    live = [a for axis in axes for a in axis.atoms if a in choices.ladders]
    live = list(dict.fromkeys(live))
    shape = [len(choices.ladders[a].widths) for a in live]
    if not fits(shape):
        if len(axes) == 2:
            for dim in (0, 1):
                half = saliency.sum(axis=1 - dim, dtype=np.float64)[:, None] / 2
                _add(tables, half, axes[dim : dim + 1], importance, choices, gate)
        return
    per_axis = [_levels(axis, live, importance, choices) for axis in axes]
    first_met = np.zeros(math.prod(shape))
    for rows in _strips(saliency):
        place = np.zeros(saliency[rows].shape, dtype=np.int64)
        for atom, options in zip(live, shape, strict=True):
            level = per_axis[0][atom][rows, None]
            if len(axes) == 2:
                level = np.maximum(level, per_axis[1][atom][None, :])
            place = place * options + level
        first_met += np.bincount(place.ravel(), saliency[rows].ravel(), minlength=len(first_met))
    table: Array = first_met.reshape(shape).astype(np.float64)
    for dim in range(len(shape)):
        table = np.cumsum(table, axis=dim)
    tables.add(tuple(choices.ladders[a].group.name for a in live), table, gate)


def _strips(saliency: Numbers) -> Iterator[slice]:
    """Some rows at a time: what is worked out of all places of a matrix is larger than itself."""
    rows = max(1, STRIP // max(1, math.prod(saliency.shape[1:])))
    for start in range(0, len(saliency), rows):
        yield slice(start, start + rows)


def _add_alike(
    tables: Tables,
    saliency: Numbers,
    axis: Concat,
    importance: Importance,
    choices: Choices,
    gate: Gate,
) -> None:
    """Add what stays of the saliency along `axis`, by its width, all of its parts cut alike."""
    width = choices.width(axis)
    (name,) = width.scope
    fixed = sum(part.size for part in axis.parts if not choices.live(part))
    share = (width.along[name] - fixed) / (width.dense - fixed)
    worth = np.zeros(len(share))
    offset = 0
    for part in axis.parts:
        piece = saliency[offset : offset + part.size]
        alone = Tables(choices.domains)
        _add(alone, piece, (part,), importance, choices, None)
        worth += alone.constant
        for (group,), table in alone.by_scope.items():
            widths = np.array(choices.domains[group])
            # Nothing is worth nothing: shares may lie below the narrowest width of a group.
            worth += np.interp(share, [0, *widths / widths[-1]], [0, *table])
        offset += part.size
    tables.add((name,), worth, gate)


def _levels(axis: Axis, live: Sequence[Atom], importance: Importance, choices: Choices) -> Levels:
    """For each position of `axis`, the first option of each choice at which it stays."""
    levels: Levels = {}
    for atom in live:
        level = np.zeros(axis.size, dtype=np.int64)
        if atom in set(axis.atoms):
            order = importance.order[atom]
            for option, width in enumerate(choices.ladders[atom].widths[:-1]):
                kept = kept_positions(axis, {atom: np.sort(order[:width])})
                gone = np.ones(axis.size, dtype=bool)
                gone[kept] = False
                level[gone] = option + 1
        levels[atom] = level
    return levels
