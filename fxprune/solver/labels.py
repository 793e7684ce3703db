"""Labels: partial assignments worth going on, one list per node of a tree of joins.

A label goes if another of its row is worth no less and costs no more.  Networks repeat their
blocks, so that exchanging the widths of two blocks changes little: a search over assignments looks
at all of these exchanges, dominance leaves one.

Desrochers and Soumis, A generalized permanent labelling algorithm, 1988.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from fxprune.solver.problem import FloatArray, IntArray

# A label is compared with so many of the best in its own cell and in each next to it.  The width of
# a cell, in units of value, relative to the window: what dominates can differ by a window at most.
_COMPARED = 3
_CELL = 0.15


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """Labels of one node, rows ascending.

    Attributes:
        row: [n], the combination of the node that each is for.
        value: [n].
        cost: [K, n], whole numbers.
        left, right: [n], where it comes from: labels of the nodes joined, or a leaf's row.
        bound: [n], what the best completion within the budgets is worth at most.
    """

    row: IntArray
    value: FloatArray
    cost: FloatArray
    left: IntArray
    right: IntArray
    bound: FloatArray

    def at(self, place: IntArray | npt.NDArray[np.bool_]) -> Labels:
        """Those at the given places."""
        return Labels(
            self.row[place],
            self.value[place],
            self.cost[:, place],
            self.left[place],
            self.right[place],
            self.bound[place],
        )

    def less(self, prices: FloatArray) -> FloatArray:
        """Value minus priced cost [n], without waking up the threads of a BLAS."""
        relaxed = self.value.copy()
        for price, cost in zip(prices, self.cost, strict=True):
            if price:
                relaxed -= price * cost
        return relaxed


def together(parts: Sequence[Labels]) -> Labels:
    """All of them, in no order of rows."""
    return Labels(
        row=np.concatenate([part.row for part in parts]),
        value=np.concatenate([part.value for part in parts]),
        cost=np.concatenate([part.cost for part in parts], axis=1),
        left=np.concatenate([part.left for part in parts]),
        right=np.concatenate([part.right for part in parts]),
        bound=np.concatenate([part.bound for part in parts]),
    )


def undominated(labels: Labels, prices: FloatArray, window: float) -> Labels:
    """Without labels that another of the same row matches in value and in every priced cost.

    With one price none of these stays.  With several, a label is compared with those that cost
    about as much and are worth most.

    Args:
        labels: in any order.
        prices: [K]; costs without a price are left out of the comparison.
        window: what labels may lack to the best of all completions.

    Returns:
        The labels that stay, rows ascending.
    """
    if (labels.row[1:] > labels.row[:-1]).all():
        return labels
    (priced,) = np.nonzero(prices)
    if len(priced) < 2:
        stays = _stairs(labels, labels.cost[priced].sum(axis=0))
    else:
        stays = _best_of_cells(labels, prices, priced, window)
    return labels.at(stays)


def _stairs(labels: Labels, cost: FloatArray) -> IntArray:
    """The labels that are worth more than all of their row that cost no more."""
    _, rank = np.unique(labels.value, return_inverse=True)
    order = np.lexsort((-rank, cost, labels.row))
    # Later rows stand higher, so that one running maximum does for all.
    height = rank[order] + labels.row[order] * len(rank)
    highest = np.maximum.accumulate(height)
    stays = np.ones(len(order), dtype=bool)
    stays[1:] = height[1:] > highest[:-1]
    return np.asarray(order[stays])


def _best_of_cells(labels: Labels, prices: FloatArray, priced: IntArray, window: float) -> IntArray:
    """The labels that none of the best in their cell, and in those next to it, dominates.

    Cells divide the priced costs of each row.  What dominates a label costs no more, so it lies in
    the same cell or towards lower costs.
    """
    costs = labels.cost[priced]
    height = (costs - costs.min(axis=1)[:, None]) * prices[priced][:, None]
    bits = max(1, (62 - int(labels.row.max() + 1).bit_length()) // len(priced))
    least = max(float(height.max()), np.finfo(float).tiny) / 2 ** (bits - 1)
    # One number per cell; each cost has its bits, and begins at 1 so that a step down is in there.
    cell = labels.row
    for line in height:
        cell = (cell << bits) + 1 + (line / max(window * _CELL, 1.001 * least)).astype(np.int64)
    order = np.lexsort((-labels.less(prices), cell))
    cell, value, costs = cell[order], labels.value[order], costs[:, order]
    fresh = np.concatenate([[True], cell[1:] > cell[:-1]])
    start, number = np.flatnonzero(fresh), np.cumsum(fresh) - 1
    size, names = np.diff(np.append(start, len(cell))), cell[start]
    beaten = np.zeros(len(cell), dtype=bool)
    for move in product((0, 1), repeat=len(priced)):
        wanted = names - sum(step << (bits * i) for i, step in enumerate(move))
        there = np.minimum(np.searchsorted(names, wanted), len(names) - 1)
        for place in range(_COMPARED):
            exists = (names[there] == wanted) & (size[there] > place)
            mine = np.flatnonzero(exists[number] & ~beaten)
            other = start[there[number[mine]]] + place
            # In a cell, what dominates comes first; of equals, the first stays.
            worse = (value[other] >= value[mine]) & (other < mine if not any(move) else True)
            for line in costs:
                worse &= line[other] <= line[mine]
            beaten[mine[worse]] = True
    stays = np.sort(order[~beaten])
    return np.asarray(stays[np.argsort(labels.row[stays], kind="stable")])
