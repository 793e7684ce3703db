"""Derived choices: sums of others, as concatenated widths are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fxprune.solver.problem import SparseFactor


def sum_factor(
    name: str,
    parts: Sequence[tuple[str, Sequence[int]]],
    total: tuple[str, Sequence[int]],
    budgets: int,
) -> SparseFactor:
    """The factor that ties a derived choice to the sum of others, as concatenation does.

    Args:
        name: of the factor.
        parts: (choice, size of each of its options) of every summand.
        total: (choice, size of each of its options) of the sum, sizes distinct.
        budgets: number of budgets of the problem.

    Returns:
        A factor of zero cost and value that allows exactly the combinations that add up.
    """
    size_of = np.asarray(total[1], dtype=np.int64)
    order = np.argsort(size_of, kind="stable")
    grids = np.meshgrid(*(np.arange(len(sizes)) for _, sizes in parts), indexing="ij")
    rows = np.stack([grid.ravel() for grid in grids], axis=1)
    sums = sum(np.asarray(sizes)[rows[:, i]] for i, (_, sizes) in enumerate(parts))
    place = np.minimum(np.searchsorted(size_of[order], sums), len(order) - 1)
    option = order[place]
    fits = size_of[option] == sums
    rows = np.concatenate([rows, option[:, None]], axis=1)[fits].astype(np.int64)
    return SparseFactor(
        name=name,
        scope=(*(part for part, _ in parts), total[0]),
        rows=rows,
        cost=np.zeros((budgets, len(rows)), dtype=np.int64),
        value=np.zeros(len(rows)),
    )
