"""The best assignment of a reduced model within its budgets, by labels along a tree of joins.

What an incomplete label can still become is bounded at several prices at once, and what cannot
reach the target goes.  If there are too many labels, those with the lowest bounds go, and the
largest of their bounds joins the certificate.

What no table connects is joined in the end, short lists first: the last join then looks for the two
halves that fill the budgets best among the pairs of two long lists, and keeps none of the others.

Bergman et al., Discrete optimization with decision diagrams, 2016 (restriction to a width, bounds
of what was left out); Horowitz and Sahni, Computing partitions, 1974 (the two halves).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from fxprune.solver.dual import ROUNDING
from fxprune.solver.join import Join, Leaf, Tree, tree_of
from fxprune.solver.labels import Labels, together, undominated
from fxprune.solver.meeting import Meeting
from fxprune.solver.model import Model, Point
from fxprune.solver.problem import FloatArray, IntArray

# The prices at which completions are bounded, next to the best ones: all together, relative to
# these, and with several budgets one at a time, by shares of what all are worth.  The rest of the
# network, seen from one label, is better off at other prices than the whole.
_TOGETHER = (1.0, 0.85, 1.2, 0.7, 1.5)
_STEPS = (0.03, 0.1)
# Pairs looked at in a join, per label that it may keep, and in the last join of all.
_PAIRS = 4
_LAST = 1 << 20
# What a bound excludes is taken out once no larger share than this stays.
_WORTHWHILE = 0.8


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What was found, and a bound on every value within the budgets."""

    point: Point | None
    bound: float


def best_within(
    model: Model, budgets: IntArray, prices: FloatArray, target: float, width: int
) -> Answer:
    """The best assignment of the model within its budgets, if it is worth the target.

    Args:
        model: already reduced.
        budgets: [K], for the model's use including its base cost.
        prices: [K], near the best ones of the dual.  A budget without a price is not looked at
            before the end.
        target: what is worth less is not looked for.
        width: labels kept per node, besides one per row.

    Returns:
        What was found, and a bound, at least the target, on every value within the budgets.
    """
    tree = tree_of(model)
    if tree is None:
        return Answer(None, math.inf)
    search = _Search(tree, model, budgets, prices, target, width)
    option = search.run()
    point = None if option is None else model.point(option)
    return Answer(point, max(target, search.lost, -math.inf if point is None else point.value))


def _around(prices: FloatArray, room: IntArray) -> list[FloatArray]:
    """Prices [K] near the given ones, which come first."""
    near = [prices * share for share in _TOGETHER]
    (priced,) = np.nonzero(prices)
    if len(priced) > 1:
        # A step moves a share of what all budgets are worth on to one, off one, or across.
        size = np.maximum(np.abs(room), 1)
        unit = np.diag(float(prices @ size) / size)[priced]
        across = [a - b for a in unit for b in unit if a is not b]
        moves = [*unit, *-unit, *across]
        near += [np.maximum(prices + step * move, 0.0) for step in _STEPS for move in moves]
    return near


class _Search:
    """One pass over a tree; `lost` is the largest bound of a label dropped for want of width."""

    def __init__(
        self,
        tree: Tree,
        model: Model,
        budgets: IntArray,
        prices: FloatArray,
        target: float,
        width: int,
    ) -> None:
        self.lost = -math.inf
        self._tree, self._model, self._width = tree, model, width
        self._target = target - ROUNDING * model.magnitude
        self._room = budgets - model.base_cost
        self._prices = _around(prices, self._room)
        contexts = [tree.contexts(p) for p in self._prices]
        # Per price: what the whole room is worth, and the best of each root, [P] and [P, roots].
        self._spare = np.array([p @ self._room + model.base_value for p in self._prices])
        self._tops = np.array([tops for _, tops in contexts])
        # Per node and price: what the rest and the room left add to a label of each row, at most.
        self._rest = [
            [around[i] + spare for (around, _), spare in zip(contexts, self._spare, strict=True)]
            for i in range(len(tree.nodes))
        ]
        self._top = float(self._tops[0].sum() + self._spare[0])
        self._nodes: list[Leaf | Join] = []
        self._found: list[Labels] = []

    def run(self) -> IntArray | None:
        """The options [choices] of the best assignment found."""
        for node, rest in zip(self._tree.nodes, self._rest, strict=True):
            self._add(node, rest)
        roots = np.arange(len(self._tree.roots))
        parts = {root: roots == i for i, root in enumerate(self._tree.roots)}
        while len(parts) > 2:
            left, right = sorted(parts, key=lambda i: len(self._found[i].row))[:2]
            inside = parts.pop(left) | parts.pop(right)
            rest = self._tops[:, ~inside].sum(axis=1) + self._spare
            parts[self._add(_across(left, right), list(rest[:, None]))] = inside
        best = self._last(min(parts), max(parts))
        return None if best is None else self._options(best)

    def _add(self, node: Leaf | Join, rest: list[FloatArray]) -> int:
        """Makes the labels of a node, given what the rest adds; its number."""
        chunks: Iterable[Labels]
        if isinstance(node, Leaf):
            chunks = [_of_leaf(node)]
        else:
            chunks = self._pairs(node, rest[0], _PAIRS * (self._width + len(node.rows)))
        kept = [self._promising(labels, rest) for labels in chunks]
        window = max(self._top - self._target, 0.0)
        labels = undominated(together(kept), self._prices[0], window)
        self._found.append(self._narrow(labels, self._width + len(node.rows)))
        self._nodes.append(node)
        return len(self._nodes) - 1

    def _pairs(self, node: Join, rest: FloatArray, most: int) -> Iterator[Labels]:
        """The pairs of labels that meet in a join and may reach the target, or the best of them."""
        labels = self._found[node.left], self._found[node.right]
        meeting = Meeting.of(node, labels, self._prices[0], rest, self._target)
        reached, chunks = meeting.most(self._target, self._top, most)
        if reached > self._target:
            self.lost = max(self.lost, reached)
        return chunks

    def _promising(self, labels: Labels, rest: list[FloatArray]) -> Labels:
        """Those whose best completion within the budgets may reach the target."""
        bound = labels.bound
        for prices, around in zip(self._prices, rest, strict=True):
            bound = np.minimum(bound, labels.less(prices) + around[labels.row])
            stays = np.flatnonzero(bound >= self._target)
            if len(stays) < _WORTHWHILE * len(bound):
                labels, bound = labels.at(stays), bound[stays]
        labels = replace(labels, bound=bound)
        stays = np.flatnonzero(bound >= self._target)
        return labels if len(stays) == len(bound) else labels.at(stays)

    def _narrow(self, labels: Labels, width: int) -> Labels:
        """As many of the labels as the width allows, by their bounds."""
        if len(labels.row) <= width:
            return labels
        order = np.argpartition(labels.bound, -width)
        self.lost = max(self.lost, float(labels.bound[order[:-width]].max()))
        return labels.at(np.sort(order[-width:]))

    def _last(self, left: int, right: int) -> tuple[int, int, int, int] | None:
        """The nodes, and the label of either, that are worth most within the budgets."""
        best, least = None, self._target - self._model.base_value
        for labels in self._pairs(_across(left, right), self._spare[:1], _LAST):
            enough = labels.at(labels.value >= least)
            inside = enough.cost <= self._room[:, None]
            fits = inside.all(axis=0)
            # What only exceeds budgets that have no price stands for all that it dominated.
            over = inside[self._prices[0] > 0].all(axis=0) & ~fits
            most = float(enough.value[over].max(initial=-math.inf)) + self._model.base_value
            self.lost = max(self.lost, most)
            enough = enough.at(np.flatnonzero(fits))
            if len(enough.row):
                i = int(enough.value.argmax())
                least = float(enough.value[i])
                best = left, int(enough.left[i]), right, int(enough.right[i])
        return best

    def _options(self, best: tuple[int, int, int, int]) -> IntArray:
        """The assignment that two labels stand for."""
        option = np.zeros(len(self._model.sizes), dtype=np.int64)
        open_ = [best[:2], best[2:]]
        while open_:
            number, label = open_.pop()
            node, labels = self._nodes[number], self._found[number]
            if isinstance(node, Leaf):
                option[list(node.scope)] = node.rows[labels.left[label]]
                continue
            open_.append((node.left, int(labels.left[label])))
            open_.append((node.right, int(labels.right[label])))
        return option


def _across(left: int, right: int) -> Join:
    """Two nodes that look at nothing any more, joined."""
    zero = np.zeros(1, dtype=np.int64)
    return Join((), np.zeros((1, 0), dtype=np.int64), left, right, zero, zero, zero)


def _of_leaf(node: Leaf) -> Labels:
    row = np.arange(len(node.rows))
    cost = node.cost.astype(np.float64)  # whole numbers stay exact, see `EXACT`
    return Labels(row, node.value, cost, row, row, np.full(len(row), np.inf))
