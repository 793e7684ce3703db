"""Pairs of labels that meet in a join: only those that may be worth enough are ever looked at.

The labels on the right are sorted by row and then by worth at given prices, so that the partners of
a label on the left are a range.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fxprune.solver.join import Join
from fxprune.solver.labels import Labels
from fxprune.solver.listed import ranges
from fxprune.solver.problem import FloatArray, IntArray

# Pairs looked at together.
_CHUNK = 1 << 17
# How often the threshold is halved that leaves no more pairs than wanted.
_HALVINGS = 10


@dataclass(frozen=True, slots=True, eq=False)
class Meeting:
    """The labels of two nodes that are joined.

    A seat is a label on the left with a combination of the join in which it meets labels.

    Attributes:
        left, right: labels; `order` sorts those on the right.
        key: sorted, row and rank by worth of the labels on the right.
        heights: sorted, the worth of the labels on the right.
        label, row, worth, first: per seat, the label, the row of the join, what the label and the
            rest are worth, and the key from which on its partners come.
    """

    left: Labels
    right: Labels
    order: IntArray
    key: IntArray
    heights: FloatArray
    label: IntArray
    row: IntArray
    worth: FloatArray
    first: IntArray

    @classmethod
    def of(
        cls,
        node: Join,
        labels: tuple[Labels, Labels],
        prices: FloatArray,
        rest: FloatArray,
        target: float,
    ) -> Meeting:
        """With the seats that reach the target.

        Args:
            node: the join.
            labels: of its two nodes, rows ascending.
            prices: [K], at which worth is counted.
            rest: [r], what the rest adds to each row of the join, at most.
            target: for label, partner and rest.
        """
        left, right = labels
        worth = right.less(prices)
        heights = np.sort(worth)
        key = right.row * (len(heights) + 1) + len(heights) - 1 - np.searchsorted(heights, worth)
        order = np.argsort(key, kind="stable")
        begin, end = (np.searchsorted(left.row, node.left_row, side) for side in ("left", "right"))
        entry, label = ranges(begin, end)
        possible = rest[node.out[entry]] > -np.inf
        entry, label = entry[possible], label[possible]
        meeting = cls(
            left=left,
            right=right,
            order=order,
            key=key[order],
            heights=heights,
            label=label,
            row=node.out[entry],
            worth=left.less(prices)[label] + rest[node.out[entry]],
            first=node.right_row[entry] * (len(heights) + 1),
        )
        first, last = meeting._partners(target)
        return meeting._only(np.flatnonzero(last > first))

    def most(self, target: float, top: float, count: int) -> tuple[float, Iterator[Labels]]:
        """The pairs that reach the target, or if these are too many, those that reach more.

        Args:
            target: for label, partner and rest.
            top: what no pair exceeds.
            count: how many pairs are wanted at most.

        Returns:
            What they reach, and the pairs, in chunks.
        """
        low = target
        if self._count(target) > count:
            # Without any incumbent the target is -inf: then from the worst pair on.
            low = max(target, float(self.worth.min() + self.heights[0]))
            target = math.nextafter(top, math.inf)
            for _ in range(_HALVINGS):
                middle = (low + target) / 2
                if self._count(middle) > count:
                    low = middle
                else:
                    target = middle
        return target, self._chunks(target)

    def _only(self, seats: IntArray) -> Meeting:
        return Meeting(
            self.left,
            self.right,
            self.order,
            self.key,
            self.heights,
            self.label[seats],
            self.row[seats],
            self.worth[seats],
            self.first[seats],
        )

    def _partners(self, target: float) -> tuple[IntArray, IntArray]:
        """Per seat, the range of sorted labels on the right with which it reaches the target."""
        short = np.searchsorted(self.heights, target - self.worth)
        begin = np.searchsorted(self.key, self.first)
        return begin, np.searchsorted(self.key, self.first + len(self.heights) - short)

    def _count(self, target: float) -> int:
        begin, end = self._partners(target)
        return int((end - begin).sum())

    def _chunks(self, target: float) -> Iterator[Labels]:
        begin, end = self._partners(target)
        chunk = np.cumsum(end - begin) // _CHUNK
        for part in np.split(np.arange(len(begin)), np.flatnonzero(np.diff(chunk)) + 1):
            seat, place = ranges(begin[part], end[part])
            mine, other = self.label[part][seat], self.order[place]
            yield Labels(
                row=self.row[part][seat],
                value=self.left.value[mine] + self.right.value[other],
                cost=self.left.cost[:, mine] + self.right.cost[:, other],
                left=mine,
                right=other,
                bound=np.full(len(mine), np.inf),
            )
