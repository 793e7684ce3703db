"""One step of max-plus variable elimination: maximise one choice out of the tables that see it.

With tables A(v, s), B(v, t), ... a step computes M(s, t) = max_v A(v, s) + B(v, t) + ...
(a tropical matrix product).  Afterwards it tells the sums for every v, given s and t; and, on the
way back, turns the context D(s, t), the best that the rest of the problem can add, into the
contexts of A, B, ...  Only sums and maxima occur, so minus infinity needs no special care.

`DenseStep`, here, runs over all combinations in chunks that fit the cache.  `ListedStep`, in
`listed.py`, runs over the allowed combinations only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from fxprune.solver.problem import FloatArray, IntArray

# Numbers per chunk of a dense step: 512 KiB, which a core's own cache holds.
_CHUNK = 65536


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """How a table is laid out: dense over `scope`, or the listed `rows` [n, len(scope)]."""

    scope: tuple[int, ...]
    shape: tuple[int, ...]
    rows: IntArray | None = None

    @property
    def count(self) -> int:
        return int(np.prod(self.shape)) if self.rows is None else len(self.rows)

    def columns(self) -> dict[int, IntArray]:
        """The listed rows by choice."""
        assert self.rows is not None
        return dict(zip(self.scope, self.rows.T, strict=True))

    @property
    def array_shape(self) -> tuple[int, ...]:
        return self.shape if self.rows is None else (len(self.rows),)


class Step(Protocol):
    """Eliminates `choice` from the tables numbered `inputs`; the result has the form `out`."""

    @property
    def choice(self) -> int: ...

    @property
    def inputs(self) -> tuple[int, ...]: ...

    @property
    def out(self) -> Form: ...

    def forward(self, tables: Sequence[FloatArray]) -> FloatArray:
        """The message M, of the form `out`."""

    def column(self, tables: Sequence[FloatArray], option: IntArray) -> FloatArray:
        """The sum [r, size] for each option of the choice, given [r, choices] of the out scope."""

    def backward(self, tables: Sequence[FloatArray], context: FloatArray) -> dict[int, FloatArray]:
        """The contexts of the input tables, given that of the result."""


@dataclass(frozen=True, slots=True, eq=False)
class DenseStep:
    """Elimination over dense tables; `scopes` are those of the inputs."""

    choice: int
    inputs: tuple[int, ...]
    scopes: tuple[tuple[int, ...], ...]
    size: int
    out: Form

    def forward(self, tables: Sequence[FloatArray]) -> FloatArray:
        sums = {scope: _sum(tables[i] for i in same) for scope, same in self._alike().items()}
        return _maximum(sums, self.out.scope, (self.choice,), self._sizes())

    def column(self, tables: Sequence[FloatArray], option: IntArray) -> FloatArray:
        total = np.zeros((len(option), self.size))
        for number, scope in zip(self.inputs, self.scopes, strict=True):
            first = tables[number].transpose(_order(scope, (*self.out.scope, self.choice)))
            total += first[tuple(option[:, v] for v in self.out.scope if v in scope)]
        return total

    def backward(self, tables: Sequence[FloatArray], context: FloatArray) -> dict[int, FloatArray]:
        sums = {scope: _sum(tables[i] for i in same) for scope, same in self._alike().items()}
        contexts = {}
        for scope, same in self._alike().items():
            others = {s: table for s, table in sums.items() if s != scope}
            over = tuple(v for v in self.out.scope if v not in scope)
            # The choice is in `scope` and not in the out scope, so no key is lost here.
            around = _maximum(others | {self.out.scope: context}, scope, over, self._sizes())
            # Leave-one-out sums from both ends: a trunk meets dozens of tables alike.
            before = [around]
            for i in same[:-1]:
                before.append(before[-1] + tables[i])
            after = np.zeros(1)
            for i, so_far in zip(reversed(same), reversed(before), strict=True):
                contexts[i] = so_far + after
                after = after + tables[i]
        return contexts

    def _alike(self) -> dict[tuple[int, ...], list[int]]:
        """The numbers of the inputs by scope."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, scope in zip(self.inputs, self.scopes, strict=True):
            groups.setdefault(scope, []).append(number)
        return groups

    def _sizes(self) -> dict[int, int]:
        return {
            self.choice: self.size,
            **dict(zip(self.out.scope, self.out.shape, strict=True)),
        }


def _sum(tables: Iterable[FloatArray]) -> FloatArray:
    first, *others = tables
    for table in others:
        first = first + table
    return first


@lru_cache(maxsize=4096)
def _order(scope: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation of a table's axes that brings them into the order of `axes`."""
    return tuple(sorted(range(len(scope)), key=lambda i: axes.index(scope[i])))


def _maximum(
    tables: Mapping[tuple[int, ...], FloatArray],
    keep: tuple[int, ...],
    over: tuple[int, ...],
    sizes: Mapping[int, int],
) -> FloatArray:
    """The sum of tables (by scope), maximised over some choices: a dense array over `keep`.

    The axes to go come first, so that maxima are taken between long rows and not within short ones.
    """
    axes = (*over, *keep)
    views = []
    for scope in sorted(tables, key=len):  # small ones first, so that their sum is small too
        shape = [sizes[v] if v in scope else 1 for v in axes]
        views.append(
            np.ascontiguousarray(tables[scope].transpose(_order(scope, axes))).reshape(shape)
        )
    best = np.full([sizes[v] for v in keep], -np.inf)
    length, rest = sizes[axes[0]], math.prod(sizes[v] for v in axes[1:])
    chunk = max(1, _CHUNK // rest) if over else length
    for start in range(0, length, chunk):
        stop = start + chunk
        total = _sum(view if len(view) == 1 else view[start:stop] for view in views)
        top = total.reshape(-1, *total.shape[len(over) :])
        np.maximum(best, top[0] if len(top) == 1 else top.max(axis=0), out=best)
    return best
