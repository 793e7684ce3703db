"""The problem in the form that the solver computes on: numbered choices, and flat numbers.

Tables are dense (an array) or listed (rows and one number per row), and all their numbers lie
behind each other in one flat array, so that `value - prices @ cost` is one operation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fxprune.solver.problem import FloatArray, IntArray, every

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A factor over choice numbers: dense (`rows` is None) or listed.

    `shape`: options of each choice of the scope.  `value`: of that shape, or [n] if listed.
    `cost`: [K, *value.shape].
    """

    scope: tuple[int, ...]
    shape: tuple[int, ...]
    rows: IntArray | None
    value: FloatArray
    cost: IntArray

    def place(self, option: IntArray) -> tuple[IntArray, ...]:
        """Index into `value` for assignments [r, choices]; of what is not allowed, some index.

        Rows are in ascending order.
        """
        here = tuple(option[:, v] for v in self.scope)
        if self.rows is None:
            return here
        listed = np.ravel_multi_index(tuple(self.rows.T), self.shape)
        found = np.searchsorted(listed, np.ravel_multi_index(here, self.shape))
        return (np.minimum(found, len(listed) - 1),)


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """An assignment: `option` [choices] in original numbers, its value and its exact use [K]."""

    option: IntArray
    value: float
    use: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """Tables over numbered choices, with the original number of every option that is left.

    Attributes:
        options: per choice, the original numbers of its options.
        tables: of two and more options per choice, no scope within another if it is dense.
        flat_value, flat_cost: [N] and [K, N]; the tables' arrays are views of these.
        base_value, base_cost: what does not depend on any choice (float, [K]).
        magnitude: sum over the tables of the largest finite |value|, the scale of rounding errors.
    """

    options: tuple[IntArray, ...]
    tables: tuple[Table, ...]
    flat_value: FloatArray
    flat_cost: IntArray
    base_value: float
    base_cost: IntArray
    magnitude: float

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(options) for options in self.options)

    def split(self, flat: npt.NDArray[_Number]) -> list[npt.NDArray[_Number]]:
        """Views of a flat array [N], one per table and of its form."""
        pieces, start = [], 0
        for table in self.tables:
            stop = start + table.value.size
            pieces.append(flat[start:stop].reshape(table.value.shape))
            start = stop
        return pieces

    def measure(self, option: IntArray) -> tuple[FloatArray, IntArray]:
        """Values [r] and exact uses [r, K] of assignments [r, choices] in this model's numbers.

        The value of one that is not allowed is -inf.
        """
        value = np.full(len(option), self.base_value)
        use = np.tile(self.base_cost[:, None], len(option))
        for table in self.tables:
            place = table.place(option)
            value += table.value[place]
            if table.rows is not None:
                value[(table.rows[place] != option[:, list(table.scope)]).any(axis=1)] = -np.inf
            use += table.cost[every(place)]
        return value, use.T

    def point(self, option: IntArray) -> Point:
        """The assignment of an option (numbered within this model) to every choice."""
        value, use = self.measure(option[None])
        original = [int(left[i]) for left, i in zip(self.options, option, strict=True)]
        return Point(np.array(original, dtype=np.int64), float(value[0]), use[0])
