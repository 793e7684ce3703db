"""A reduced model as a tree of joins: tables are combined two by two, and choices projected out.

Elimination in the same sense as `elimination`, but in steps of two tables and over the allowed
combinations only, so that a search (`within`) can carry several candidates per combination.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fxprune.solver.listed import ranges, row_number
from fxprune.solver.model import Model
from fxprune.solver.problem import FloatArray, IntArray

# More combinations in one join than this, and there is no tree.
_WIDEST = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """A table: its allowed combinations `rows` [r, scope], with value [r] and cost [K, r]."""

    scope: tuple[int, ...]
    rows: IntArray
    value: FloatArray
    cost: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Join:
    """Two earlier nodes combined; combination e takes one row of either.

    Attributes:
        scope: what is left to look at.
        rows: [r, scope], all combinations of it that occur.
        left, right: the numbers of the nodes combined.
        left_row, right_row: [e], the rows combined.
        out: [e], the row of the result.
    """

    scope: tuple[int, ...]
    rows: IntArray
    left: int
    right: int
    left_row: IntArray
    right_row: IntArray
    out: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """Leaves and joins, children first.

    The roots, of which the first is an empty leaf, look at nothing any more: what no table connects
    stays apart.
    """

    nodes: tuple[Leaf | Join, ...]
    roots: tuple[int, ...]

    def contexts(self, price: FloatArray) -> tuple[list[FloatArray], FloatArray]:
        """The most that the rest adds to every row of every node, [r], and the most of each root.

        At prices [K].
        """
        inside: list[FloatArray] = []
        for node in self.nodes:
            if isinstance(node, Leaf):
                inside.append(node.value - price @ node.cost)
                continue
            best = np.full(len(node.rows), -np.inf)
            pairs = inside[node.left][node.left_row] + inside[node.right][node.right_row]
            np.maximum.at(best, node.out, pairs)
            inside.append(best)
        around = [np.full(len(node.rows), -np.inf) for node in self.nodes]
        tops = np.array([inside[root].max(initial=-np.inf) for root in self.roots])
        for i, root in enumerate(self.roots):
            around[root][:] = np.delete(tops, i).sum()
        for i in reversed(range(len(self.nodes))):
            node = self.nodes[i]
            if isinstance(node, Join):
                above = around[i][node.out]
                left = above + inside[node.right][node.right_row]
                right = above + inside[node.left][node.left_row]
                np.maximum.at(around[node.left], node.left_row, left)
                np.maximum.at(around[node.right], node.right_row, right)
        return around, tops


def tree_of(model: Model) -> Tree | None:
    """The joins of a model; None if one of them would be too large."""
    budgets = len(model.base_cost)
    nodes: list[Leaf | Join] = []
    # Nothing, worth nothing: a table without a partner is joined with it.
    none = np.zeros((1, 0), dtype=np.int64)
    nodes.append(Leaf((), none, np.zeros(1), np.zeros((budgets, 1), dtype=np.int64)))
    for table in model.tables:
        allowed = np.isfinite(table.value)
        rows = np.argwhere(allowed) if table.rows is None else table.rows[allowed]
        rows = rows.astype(np.int64)
        nodes.append(Leaf(table.scope, rows, table.value[allowed], table.cost[:, allowed]))
    roots = {i for i, node in enumerate(nodes) if not node.scope}
    live = set(range(len(nodes))) - roots
    # How many assignments stand behind a node, as a logarithm: equals are joined, as in a
    # tournament, so that lists grow late.
    weight = [math.log(max(len(node.rows), 1)) for node in nodes]
    while live:
        choice = _cheapest(nodes, live, model.sizes)
        inputs = [i for i in live if choice in nodes[i].scope]
        live.difference_update(inputs)
        if len(inputs) == 1:
            inputs.append(0)
        # Small and alike first: what meets in one choice only is added up over that choice alone.
        queue = [(len(nodes[i].scope), nodes[i].scope, weight[i], i) for i in inputs]
        heapq.heapify(queue)
        while len(queue) > 1:
            (*_, left), (*_, right) = heapq.heappop(queue), heapq.heappop(queue)
            joined = _join(nodes, left, right, None if queue else choice, model.sizes)
            if joined is None:
                return None
            nodes.append(joined)
            weight.append(weight[left] + weight[right])
            first = len(nodes) - 1
            heapq.heappush(queue, (len(joined.scope), joined.scope, weight[first], first))
        (live if nodes[first].scope else roots).add(first)
    return Tree(tuple(nodes), tuple(sorted(roots)))


def _cheapest(nodes: Sequence[Leaf | Join], live: set[int], sizes: tuple[int, ...]) -> int:
    """The choice that looks at the fewest combinations."""
    around: dict[int, set[int]] = {}
    for i in live:
        for v in nodes[i].scope:
            around.setdefault(v, set()).update(nodes[i].scope)
    return min(around, key=lambda v: (np.prod([float(sizes[u]) for u in around[v]]), v))


def _join(
    nodes: Sequence[Leaf | Join], left: int, right: int, gone: int | None, sizes: tuple[int, ...]
) -> Join | None:
    a, b = nodes[left], nodes[right]
    columns = dict(zip(a.scope, a.rows.T, strict=True))
    others = dict(zip(b.scope, b.rows.T, strict=True))
    shared = [v for v in a.scope if v in others]
    key, other_key = (
        row_number(table, shared, sizes) if shared else np.zeros(count, dtype=np.int64)
        for table, count in ((columns, len(a.rows)), (others, len(b.rows)))
    )
    order = np.argsort(other_key, kind="stable")
    start = np.searchsorted(other_key[order], key, side="left")
    stop = np.searchsorted(other_key[order], key, side="right")
    if int((stop - start).sum()) > _WIDEST:
        return None
    left_row, place = ranges(start, stop)
    right_row = order[place]
    both = {v: column[right_row] for v, column in others.items()}
    both |= {v: column[left_row] for v, column in columns.items()}
    scope = tuple(sorted(v for v in both if v != gone))
    key = row_number(both, scope, sizes) if scope else np.zeros(len(left_row), dtype=np.int64)
    _, first, out = np.unique(key, return_index=True, return_inverse=True)
    rows = np.stack([both[v][first] for v in scope], axis=1) if scope else np.zeros((len(first), 0))
    return Join(scope, rows.astype(np.int64), left, right, left_row, right_row, out)
