"""What the solver is asked and what it answers.

    maximise    sum_f value_f(x)
    subject to  fixed_k + sum_f cost_f,k(x) <= budget_k    for every budget k

where x takes one option of every choice and every factor f looks at a few choices only.  What a
choice means (a width, a block kept or dropped, a merged span, the sum of concatenated widths) is
the caller's business: nothing here knows of networks.

Costs and budgets are integers (nanoseconds, multiply-accumulates, bytes), so that a budget can be
checked exactly.  Values are floats; minus infinity forbids a combination (a large penalty instead
would cost precision).

A table over three choices that matters for one option of the middle one only (a layer merged with
its neighbour) is better given over a derived choice with two options, "is it merged", tied to the
middle one by a factor of zeros and minus infinities: the table then is as small as for a pair.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fxprune.errors import InputError

FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]

# Integers up to here are exact in float64, which the elimination computes in.
EXACT = 2**53


def _refuse(what: str, where: str, fix: str) -> InputError:
    return InputError(what, f"This is {where} of an allocation problem", fix)


@dataclass(frozen=True, slots=True)
class Choice:
    """A decision with `options` possible answers, numbered from 0."""

    name: str
    options: int

    def __post_init__(self) -> None:
        if self.options < 1:
            raise _refuse(
                f"A choice needs at least one option, not {self.options}",
                f"choice {self.name!r}",
                "Leave the choice out, or give it the one option it has",
            )


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """What every combination of the options of a few choices is worth and costs, as dense tables.

    Args:
        name: for error messages.
        scope: names of choices; a name may come twice, then only equal options meet.
        cost: int [K, n_1, ..., n_m], K budgets, n_i options of the i-th choice of the scope.
        value: float [n_1, ..., n_m]; -inf forbids the combination.
    """

    name: str
    scope: tuple[str, ...]
    cost: IntArray
    value: FloatArray

    def __post_init__(self) -> None:
        _check_numbers(self.name, self.cost, self.value)
        if self.value.ndim != len(self.scope):
            raise _refuse(
                f"The value table has {self.value.ndim} dimensions for {len(self.scope)} choices",
                f"factor {self.name!r}",
                "Give one dimension per choice of the scope",
            )


@dataclass(frozen=True, slots=True, eq=False)
class SparseFactor:
    """A factor that lists its allowed combinations; all others are forbidden.

    Args:
        name: for error messages.
        scope: names of choices, each once.
        rows: int [n, m], the option of each of the m choices in each of the n combinations.
        cost: int [K, n].
        value: float [n].
    """

    name: str
    scope: tuple[str, ...]
    rows: IntArray
    cost: IntArray
    value: FloatArray

    def __post_init__(self) -> None:
        where = f"factor {self.name!r}"
        _check_numbers(self.name, self.cost, self.value)
        shape = (len(self.value), len(self.scope))
        if self.rows.shape != shape or self.rows.dtype.kind not in "iu":
            raise _refuse(
                f"The rows are {self.rows.dtype} {self.rows.shape}, not integers of shape {shape}",
                where,
                "Give one row per value and one column per choice of the scope",
            )
        if len(set(self.scope)) < len(self.scope):
            raise _refuse("A choice comes twice in the scope", where, "List each choice once")
        if len(np.unique(self.rows, axis=0)) < len(self.rows):
            raise _refuse("A combination is listed twice", where, "List each combination once")


def _check_numbers(name: str, cost: npt.NDArray[Any], value: npt.NDArray[Any]) -> None:
    where = f"factor {name!r}"
    if cost.dtype.kind not in "iu":
        raise _refuse(
            f"Costs must be integers, not {cost.dtype}",
            where,
            "Round to a small unit (ns, bytes), then astype(np.int64)",
        )
    if value.dtype.kind not in "fiu":
        raise _refuse(f"Values must be real numbers, not {value.dtype}", where, "Use float64")
    if cost.shape[1:] != value.shape:
        raise _refuse(
            f"Costs of shape {cost.shape} do not match values of shape {value.shape}",
            where,
            "Costs need the shape [number of budgets, *shape of the values]",
        )
    if np.isnan(value).any() or np.isposinf(value).any():
        raise _refuse(
            "Values must be finite, or -inf to forbid a combination",
            where,
            "Look for a division by zero in the importance",
        )


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """An allocation problem: see the module's text.

    Args:
        choices: with distinct names.
        factors: dense and sparse ones, in any order; any number may share a scope.
        budgets: K integers.
        fixed: K integers, what is used whatever is chosen.
    """

    choices: tuple[Choice, ...]
    factors: tuple[Factor | SparseFactor, ...]
    budgets: tuple[int, ...]
    fixed: tuple[int, ...]

    def __post_init__(self) -> None:
        whole(self.budgets)
        whole(self.fixed)
        options = {choice.name: choice.options for choice in self.choices}
        if len(options) < len(self.choices):
            names = [choice.name for choice in self.choices]
            twice = next(name for name in names if names.count(name) > 1)
            raise _refuse("Two choices share a name", f"choice {twice!r}", "Rename one of them")
        if len(self.fixed) != len(self.budgets):
            raise _refuse(
                f"{len(self.fixed)} fixed uses for {len(self.budgets)} budgets",
                "the head",
                "Give one fixed use per budget (0 if there is none)",
            )
        for factor in self.factors:
            _check_scope(factor, options, len(self.budgets))
        self._check_magnitude()

    def _check_magnitude(self) -> None:
        for k, fixed in enumerate(self.fixed):
            total = abs(fixed) + sum(
                int(np.abs(f.cost[k]).max(initial=0)) for f in self.factors
            )  # fmt: skip
            if total > EXACT:
                raise _refuse(
                    f"The costs may add up to {total}, beyond exact arithmetic (2**53)",
                    f"budget {k}",
                    "Use a coarser unit",
                )


def whole(numbers: Iterable[Any]) -> tuple[int, ...]:
    """Budgets as integers; a float would be cut off silently somewhere.

    Raises:
        InputError: one of them is no integer.
    """
    listed = list(numbers)
    try:
        return tuple(operator.index(number) for number in listed)
    except TypeError as error:
        raise _refuse(
            f"Budgets and fixed uses must be integers, not {listed}",
            "the head",
            "Round budgets down, in the unit of the costs",
        ) from error


def _check_scope(factor: Factor | SparseFactor, options: Mapping[str, int], budgets: int) -> None:
    where = f"factor {factor.name!r}"
    if unknown := [name for name in factor.scope if name not in options]:
        raise _refuse(
            f"The scope names {unknown[0]!r}, which is no choice", where, "Add it to the choices"
        )
    if len(factor.cost) != budgets:
        raise _refuse(
            f"{len(factor.cost)} cost tables for {budgets} budgets", where, "Give one per budget"
        )
    shape = tuple(options[name] for name in factor.scope)
    if isinstance(factor, Factor):
        if factor.value.shape != shape:
            raise _refuse(
                f"Tables of shape {factor.value.shape} for choices with {shape} options",
                where,
                "Give one entry per combination of options",
            )
    elif len(factor.rows) and ((factor.rows < 0) | (factor.rows >= np.array(shape))).any():
        raise _refuse(
            f"A row names an option outside of {shape}", where, "Number options from 0"
        )  # fmt: skip


def every(place: Iterable[Any]) -> tuple[Any, ...]:
    """The index of a place of a value table, in the cost tables of all budgets."""
    return (slice(None), *place)
