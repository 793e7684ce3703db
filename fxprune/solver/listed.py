"""Elimination over listed tables: only allowed combinations are ever looked at.

Which combinations are allowed does not depend on the numbers in the tables.  So the listed tables
are joined once, as relations, when the step is made; what remains for every run is to gather, to
add, and to take the maximum of each group of rows with equal out scope.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fxprune.solver.problem import FloatArray, IntArray
from fxprune.solver.steps import Form

# A result with more than this share of its combinations allowed is laid out densely.
_DENSE = 1 / 4


@dataclass(frozen=True, slots=True, eq=False)
class ListedStep:
    """Elimination over n allowed rows, sorted by the out scope and then by the choice.

    Attributes:
        option: int [n], the option of the choice in each row.
        gather: per input, int [n], the place in its flat array that each row reads.
        starts: int [g], where each group of rows with equal out scope begins.
        keys: int [g], the group's combination of out options as one number, ascending.
    """

    choice: int
    inputs: tuple[int, ...]
    size: int
    out: Form
    option: IntArray
    gather: tuple[IntArray, ...]
    starts: IntArray
    keys: IntArray

    @classmethod
    def make(
        cls, choice: int, size: int, inputs: Mapping[int, Form], scope: tuple[int, ...]
    ) -> ListedStep:
        """`scope`: what the result is to look at, all choices of the inputs but this one."""
        sizes: dict[int, int] = {}
        for form in inputs.values():
            sizes.update(zip(form.scope, form.shape, strict=True))
        columns = _join(inputs.values(), sizes)
        shape = tuple(sizes[v] for v in scope)
        key = row_number(columns, scope, sizes)
        order = np.lexsort((columns[choice], key))
        columns = {v: column[order] for v, column in columns.items()}
        keys, starts = np.unique(key[order], return_index=True)
        rows = np.stack([columns[v][starts] for v in scope], axis=1) if scope else None
        if rows is not None and len(keys) > _DENSE * np.prod(shape):
            rows = None
        gather = []
        for form in inputs.values():
            place = row_number(columns, form.scope, sizes)
            if form.rows is not None:
                listed = row_number(
                    dict(zip(form.scope, form.rows.T, strict=True)), form.scope, sizes
                )
                by_key = np.argsort(listed)
                place = by_key[np.searchsorted(listed[by_key], place)]
            gather.append(place)
        out = Form(scope, shape, rows)
        return cls(choice, tuple(inputs), size, out, columns[choice], tuple(gather), starts, keys)

    def _total(self, tables: Sequence[FloatArray], skip: int | None = None) -> FloatArray:
        total = np.zeros(len(self.option))
        for number, place in zip(self.inputs, self.gather, strict=True):
            if number != skip:
                total += tables[number].ravel()[place]
        return total

    def forward(self, tables: Sequence[FloatArray]) -> FloatArray:
        best = np.full(self.out.array_shape, -np.inf)
        if len(self.starts):
            groups = np.maximum.reduceat(self._total(tables), self.starts)
            best.ravel()[self.keys if self.out.rows is None else slice(None)] = groups
        return best

    def column(self, tables: Sequence[FloatArray], option: IntArray) -> FloatArray:
        sizes = dict(zip(self.out.scope, self.out.shape, strict=True))
        key = row_number(dict(enumerate(option.T)), self.out.scope, sizes)
        group = np.searchsorted(self.keys, key)
        stop = np.append(self.starts[1:], len(self.option))[group]
        i, row = ranges(self.starts[group], stop)
        total = np.full((len(option), self.size), -np.inf)
        total[i, self.option[row]] = sum(
            tables[number].ravel()[place[row]]
            for number, place in zip(self.inputs, self.gather, strict=True)
        )
        return total

    def backward(self, tables: Sequence[FloatArray], context: FloatArray) -> dict[int, FloatArray]:
        count = np.diff(np.append(self.starts, len(self.option)))
        groups = context.ravel()[self.keys if self.out.rows is None else slice(None)]
        around = np.repeat(groups, count)
        contexts = {}
        for number, place in zip(self.inputs, self.gather, strict=True):
            best = np.full(tables[number].size, -np.inf)
            np.maximum.at(best, place, self._total(tables, skip=number) + around)
            contexts[number] = best.reshape(tables[number].shape)
        return contexts


def row_number(
    columns: Mapping[int, IntArray], scope: Sequence[int], sizes: Mapping[int, int] | Sequence[int]
) -> IntArray:
    """Each row's options of the scope as one number, in row-major order."""
    if not scope:
        return np.zeros(len(next(iter(columns.values()))), dtype=np.int64)
    shape = tuple(sizes[v] for v in scope)
    return np.ravel_multi_index(tuple(columns[v] for v in scope), shape).astype(np.int64)


def _join(forms: Iterable[Form], sizes: Mapping[int, int]) -> dict[int, IntArray]:
    """All combinations that every listed form allows, one column per choice."""
    listed = sorted((form for form in forms if form.rows is not None), key=lambda form: form.count)
    columns: dict[int, IntArray] = {}
    for form in listed:
        right = form.columns()
        if not columns:
            columns = right
            continue
        shared = [v for v in form.scope if v in columns]
        left_row, right_row = _matches(
            row_number(columns, shared, sizes), row_number(right, shared, sizes)
        )
        columns = {v: column[left_row] for v, column in columns.items()}
        columns |= {v: column[right_row] for v, column in right.items() if v not in columns}
    for v, size in sizes.items():
        if v not in columns:
            length = len(next(iter(columns.values())))
            columns = {w: np.repeat(column, size) for w, column in columns.items()}
            columns[v] = np.tile(np.arange(size), length)
    return columns


def _matches(left: IntArray, right: IntArray) -> tuple[IntArray, IntArray]:
    """All pairs (i, j) with left[i] == right[j]."""
    order = np.argsort(right, kind="stable")
    start = np.searchsorted(right[order], left, side="left")
    i, j = ranges(start, np.searchsorted(right[order], left, side="right"))
    return i, order[j]


def ranges(start: IntArray, stop: IntArray) -> tuple[IntArray, IntArray]:
    """All pairs (i, j) with start[i] <= j < stop[i]."""
    count = stop - start
    i = np.repeat(np.arange(len(start)), count)
    return i, np.arange(len(i)) + np.repeat(start - (np.cumsum(count) - count), count)
