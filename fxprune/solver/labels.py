"""The optimum of a reduced model under one budget, by labels: partial assignments worth going on.

Along a tree of joins (`join`) every combination keeps a list of labels (value, cost).  A label goes
if another is worth no less and costs no more, or if even its best completion stays below the
target.  Networks repeat their blocks, so that exchanging the widths of two blocks changes little:
branch and cut looks at all of these exchanges, dominance leaves one.

What an incomplete label can still become is bounded at several prices at once.  If there are too
many labels, those with the lowest bounds go, and the largest of their bounds joins the certificate.

Desrochers and Soumis, A generalized permanent labelling algorithm, 1988; Bergman et al., Discrete
optimization with decision diagrams, 2016 (restriction to a width, bounds of what was left out).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt

from fxprune.solver.dual import ROUNDING
from fxprune.solver.join import Join, Leaf, Tree, tree_of
from fxprune.solver.listed import ranges
from fxprune.solver.model import Model
from fxprune.solver.polytope import Answer
from fxprune.solver.problem import FloatArray, IntArray

# The prices at which completions are bounded, relative to the best one.  The rest of the network,
# seen from one label, is better off at another price than the whole.
_PRICES = (1.0, 0.85, 1.2, 0.7, 1.5)
# Pairs of labels looked at together, and in one join at most.
_CHUNK = 1 << 18
_MOST_PAIRS = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class _Labels:
    """Labels of one node.

    Attributes:
        row: [n], the combination of the node that each is for.
        value: [n].
        cost: [n].
        left, right: [n], where it comes from: labels of the nodes joined, or a leaf's row.
    """

    row: IntArray
    value: FloatArray
    cost: IntArray
    left: IntArray
    right: IntArray

    def at(self, place: IntArray | npt.NDArray[np.bool_]) -> _Labels:
        """Those at the given places."""
        return _Labels(
            self.row[place],
            self.value[place],
            self.cost[place],
            self.left[place],
            self.right[place],
        )


def best_within(model: Model, budget: int, price: float, target: float, width: int) -> Answer:
    """The best assignment of the model within its one budget, if it is worth the target.

    Args:
        model: already reduced.
        budget: for the model's use including its base cost.
        price: near the best one of the dual.
        target: what is worth less is not looked for.
        width: labels kept per node.

    Returns:
        What was found, and a bound, at least the target, on every value within the budget.
    """
    tree = tree_of(model)
    if tree is None:
        return Answer(None, math.inf)
    search = _Search(tree, model, budget, price, target, width)
    option = search.run()
    point = None if option is None else model.point(option)
    return Answer(point, max(target, search.lost, -math.inf if point is None else point.value))


class _Search:
    """One pass over a tree; `lost` is the largest bound of a label dropped for want of width."""

    def __init__(
        self, tree: Tree, model: Model, budget: int, price: float, target: float, width: int
    ) -> None:
        self.lost = -math.inf
        self._tree, self._model, self._width = tree, model, width
        self._target = target - ROUNDING * model.magnitude
        self._room = budget - int(model.base_cost[0])
        self._prices = [price * share for share in _PRICES]
        # Per price and node: what the rest and the room left add to a label of each row, at most.
        self._rest = [
            [
                around + (p * self._room + model.base_value)
                for around in tree.contexts(np.array([p]))
            ]
            for p in self._prices
        ]

    def run(self) -> IntArray | None:
        """The options [choices] of the best assignment found."""
        found: list[_Labels] = []
        for number, node in enumerate(self._tree.nodes):
            if isinstance(node, Leaf):
                made = _leaf(node)
            else:
                self._limit(node, found)
                made = _pairs(node, found)
            kept = [labels.at(self._bound(number, labels) >= self._target) for labels in made]
            labels = _undominated(_together(kept))
            found.append(self._narrow(number, labels, len(node.rows) + self._width))
        root = found[-1]
        inside = np.flatnonzero(root.cost <= self._room)
        if not len(inside):
            return None
        return self._options(found, int(inside[root.value[inside].argmax()]))

    def _bound(self, number: int, labels: _Labels) -> FloatArray:
        """What the best completion of each label within the budget is worth at most."""
        bounds = (
            labels.value - price * labels.cost + rest[number][labels.row]
            for price, rest in zip(self._prices, self._rest, strict=True)
        )
        return reduce(np.minimum, bounds)

    def _narrow(self, number: int, labels: _Labels, width: int) -> _Labels:
        """As many of the labels as the width allows, by their bounds."""
        if len(labels.row) <= width:
            return labels
        bound = self._bound(number, labels)
        order = np.argpartition(bound, -width)
        self.lost = max(self.lost, float(bound[order[:-width]].max()))
        return labels.at(np.sort(order[-width:]))

    def _limit(self, node: Join, found: list[_Labels]) -> None:
        """Narrows the labels that meet in a join, until their pairs are not too many."""
        while _count(node, found).sum() > _MOST_PAIRS:
            larger = max(node.left, node.right, key=lambda i: len(found[i].row))
            found[larger] = self._narrow(larger, found[larger], len(found[larger].row) // 2)

    def _options(self, found: list[_Labels], best: int) -> IntArray:
        """The assignment that the root's label `best` stands for."""
        option = np.zeros(len(self._model.sizes), dtype=np.int64)
        open_ = [(len(found) - 1, best)]
        while open_:
            number, label = open_.pop()
            node, labels = self._tree.nodes[number], found[number]
            if isinstance(node, Leaf):
                option[list(node.scope)] = node.rows[labels.left[label]]
                continue
            open_.append((node.left, int(labels.left[label])))
            open_.append((node.right, int(labels.right[label])))
        return option


def _leaf(node: Leaf) -> Iterator[_Labels]:
    row = np.arange(len(node.rows))
    yield _Labels(row, node.value, node.cost[0], row, row)


def _count(node: Join, found: list[_Labels]) -> IntArray:
    """How many pairs of labels meet in each combination [e] of a join."""
    left, right = found[node.left], found[node.right]
    first = np.bincount(left.row, minlength=int(node.left_row.max(initial=-1)) + 1)
    second = np.bincount(right.row, minlength=int(node.right_row.max(initial=-1)) + 1)
    return np.asarray(first[node.left_row] * second[node.right_row])


def _pairs(node: Join, found: list[_Labels]) -> Iterator[_Labels]:
    """All pairs of labels that meet in a join, in chunks; the rows of `found` ascend."""
    left, right = found[node.left], found[node.right]
    first, last = (np.searchsorted(left.row, node.left_row, side) for side in ("left", "right"))
    begin, end = (np.searchsorted(right.row, node.right_row, side) for side in ("left", "right"))
    # Every label on the left, with the combination in which it meets a range of labels.
    entry, one = ranges(first, last)
    count = (end - begin)[entry]
    chunk = (np.cumsum(count) - count) // _CHUNK
    for part in np.split(np.arange(len(entry)), np.flatnonzero(np.diff(chunk)) + 1):
        i, other = ranges(begin[entry[part]], end[entry[part]])
        mine, row = one[part][i], node.out[entry[part]][i]
        value, cost = left.value[mine] + right.value[other], left.cost[mine] + right.cost[other]
        yield _Labels(row, value, cost, mine, other)


def _together(parts: list[_Labels]) -> _Labels:
    return _Labels(
        row=np.concatenate([part.row for part in parts]),
        value=np.concatenate([part.value for part in parts]),
        cost=np.concatenate([part.cost for part in parts]),
        left=np.concatenate([part.left for part in parts]),
        right=np.concatenate([part.right for part in parts]),
    )


def _undominated(labels: _Labels) -> _Labels:
    """Without labels that another of the same row matches in value and in cost; rows ascending."""
    if (labels.row[1:] > labels.row[:-1]).all():
        return labels
    _, rank = np.unique(labels.value, return_inverse=True)
    order = np.lexsort((-rank, labels.cost, labels.row))
    # By rising cost, what stays is worth more than all before it.  Later rows stand higher.
    height = rank[order] + labels.row[order] * len(rank)
    highest = np.maximum.accumulate(height)
    stays = np.ones(len(order), dtype=bool)
    stays[1:] = height[1:] > highest[:-1]
    return labels.at(order[stays])
