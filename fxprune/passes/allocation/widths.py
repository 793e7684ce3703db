"""Widths of axes, and blocks that may go, as tables over the choices of the solver.

The width of an axis is a number for each combination of the widths of its groups. `Tables` collects
sums of such tables by the choices that they depend on, which become the factors of the problem.

A concatenation of many groups would give a table with many dimensions. Its width is a choice of its
own instead, tied to those of its parts by running sums, which networks with dense links share. So
is a product of groups (as group norms and attention heads make) where tables would grow too large.

Where blocks may be dropped and spans merged (`forms`), the tables of whatever lies in them are
multiplied with 0 or 1 for each form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fxprune.axes import Atom, Axis, Concat, Product, counted, kept_size
from fxprune.passes.allocation.forms import NO_FORMS, Forms, Gate
from fxprune.passes.allocation.ladders import Ladder
from fxprune.solver import Choice, Factor, SparseFactor, sum_factor

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

# A group, and how often it occurs.
Term = tuple[Atom, int]
# The name of a choice, and the widths that it is among.
Total = tuple[str, tuple[int, ...]]

# Tables over more choices than this are replaced by sums of main effects.
MOST_CHOICES = 3
LARGEST_TABLE = 2_000_000
# Widths of more combinations than this are not made choices of their own.
MOST_COMBINATIONS = 20_000


@dataclass(frozen=True)
class Width:
    """The width of one axis as a function of the choices of `scope`."""

    scope: tuple[str, ...]
    dense: int
    along: Mapping[str, IntArray]
    """Width over the options of one choice, while all others are dense."""
    grid: Callable[[], IntArray]
    """Width over all combinations of options, one dimension per choice."""
    derive: Callable[[], Width] | None = None
    """Makes it a choice of its own, and the only one that the width depends on."""


@dataclass
class Choices:
    """The choices of the problem: a width per group, running sums of widths, forms.

    Attributes:
        runs: whether a node runs as itself, by name; in its stead may run a merged layer, or none.
        stays: whether a node's own weights count for something: its block is not dropped.
        by_part: whether worth that depends on a form is counted by the parts of concatenations.
    """

    by_part: ClassVar[bool] = True

    ladders: Mapping[Atom, Ladder]
    forms: Forms = NO_FORMS
    domains: dict[str, tuple[int, ...]] = field(default_factory=dict)
    sums: list[SparseFactor] = field(default_factory=list)
    runs: dict[str, Gate] = field(default_factory=dict)
    stays: dict[str, Gate] = field(default_factory=dict)
    derived: dict[tuple[tuple[str, ...], bytes], Width] = field(default_factory=dict)
    totals: dict[frozenset[Term], Total] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.domains = {rung.group.name: rung.widths for rung in self.ladders.values()}
        self.sums += [_all_but_dense(rung) for rung in self.ladders.values() if not rung.whole]
        self.sums += self.forms.ties
        self.domains |= {c.name: tuple(range(len(c.forms))) for c in self.forms.clusters}
        self.runs, self.stays = self.forms.runs(), self.forms.stays()

    def choices(self) -> tuple[Choice, ...]:
        """All choices, for the solver."""
        return tuple(Choice(name, len(widths)) for name, widths in self.domains.items())

    def live(self, axis: Axis) -> list[Ladder]:
        """The ladders of the groups that `axis` is made of, each once."""
        return [self.ladders[a] for a in dict.fromkeys(axis.atoms) if a in self.ladders]

    def is_free(self, axis: Axis) -> bool:
        """Whether the width of `axis` may change."""
        return any(len(ladder.widths) > 1 for ladder in self.live(axis))

    def least(self, axis: Axis) -> int:
        """The smallest width that `axis` may have."""
        return kept_size(axis, {ladder.group.atom: ladder.widths[0] for ladder in self.live(axis)})

    def is_sum(self, axis: Axis) -> bool:
        """Whether the width of `axis` is the sum of several groups'."""
        return len(self.live(axis)) > 1 and _linear(axis, self.ladders) is not None

    def width(self, axis: Axis) -> Width:
        """The width of `axis` over the choices that it depends on."""
        live = self.live(axis)
        linear = _linear(axis, self.ladders)
        if len(live) > 1 and linear is not None:
            return self._running_sum(*linear)
        return self.direct(axis, live)

    def direct(self, axis: Axis, live: Sequence[Ladder]) -> Width:
        """The width of `axis` over its groups themselves."""

        def grid() -> IntArray:
            options = np.meshgrid(*(ladder.widths for ladder in live), indexing="ij")
            sizes = np.empty([len(ladder.widths) for ladder in live], dtype=np.int64)
            for place in np.ndindex(sizes.shape):
                pairs = zip(live, options, strict=True)
                at = {ladder.group.atom: int(option[place]) for ladder, option in pairs}
                sizes[place] = kept_size(axis, at)
            return sizes

        along = {
            ladder.group.name: np.array(
                [kept_size(axis, {ladder.group.atom: width}) for width in ladder.widths]
            )
            for ladder in live
        }
        scope = tuple(along)
        combinations = math.prod(len(ladder.widths) for ladder in live)
        small = len(scope) > 1 and combinations <= MOST_COMBINATIONS
        derive = partial(self._derive, scope, grid) if small else None
        return Width(scope, axis.size, along, grid, derive)

    def _derive(self, scope: tuple[str, ...], grid: Callable[[], IntArray]) -> Width:
        """The width as a choice of its own, among the values that it can take."""
        sizes = grid()
        key = (scope, sizes.tobytes())
        if key not in self.derived:
            widths, places = np.unique(sizes, return_inverse=True)
            name = f"width {len(self.derived)} of {', '.join(scope)}"
            options = np.stack([*np.unravel_index(np.arange(sizes.size), sizes.shape)], axis=1)
            rows = np.concatenate([options, places.reshape(-1, 1)], axis=1)
            nothing = np.zeros((0, len(rows)), dtype=np.int64)
            tie = SparseFactor(name, (*scope, name), rows, nothing, np.zeros(len(rows)))
            self.sums.append(tie)
            self.domains[name] = tuple(widths.tolist())
            self.derived[key] = Width((name,), int(widths[-1]), {name: widths}, lambda: widths)
        return self.derived[key]

    def _running_sum(self, terms: Sequence[Term], constant: int) -> Width:
        """`constant + sum of times * width`, built up of sums that are known and of single groups.

        Each sum that a part has in common with another separates what is on either side of it: a
        network whose trunk is a concatenation, of which the next trunk is a part, stays a chain.
        """
        rest = dict.fromkeys(terms)
        done: frozenset[Term] = frozenset()
        while rest:
            known = (part for part in self.totals if len(part) > 1 and part <= rest.keys())
            part = max(known, key=len, default=None) or self._single(next(iter(rest)))
            done = self._joined(done, part) if done else part
            rest = {term: None for term in rest if term not in part}
        name, widths = self.totals[done]
        sizes = np.array(widths, dtype=np.int64) + constant
        return Width((name,), int(sizes[-1]), {name: sizes}, lambda: sizes)

    def _single(self, term: Term) -> frozenset[Term]:
        """Knows the width of one group, or a choice for a multiple of it, from here on."""
        key = frozenset([term])
        atom, times = term
        name, widths = self.ladders[atom].group.name, self.ladders[atom].widths
        if key not in self.totals and times == 1:
            self.totals[key] = name, widths
        elif key not in self.totals:
            multiple = tuple(times * width for width in widths)
            self.totals[key] = self._tied(f"{times}*{name}", [(name, multiple)], multiple)
        return key

    def _joined(self, left: frozenset[Term], right: frozenset[Term]) -> frozenset[Term]:
        """Knows the sum of two sums from here on."""
        key = left | right
        if key not in self.totals:
            parts = (one, other) = self.totals[left], self.totals[right]
            total = tuple(sorted({a + b for a in one[1] for b in other[1]}))
            self.totals[key] = self._tied(f"{one[0]} + {other[0]}", parts, total)
        return key

    def _tied(self, name: str, parts: Sequence[Total], widths: tuple[int, ...]) -> Total:
        """A choice among the values of a sum, tied to its parts."""
        self.domains[name] = widths
        self.sums.append(sum_factor(name, parts, (name, widths), 0))
        return name, widths


class AlikeChoices(Choices):
    """What a block or span is worth counts the parts of a concatenation as if all were cut alike.

    Else every part is tied to every block on a trunk that is a concatenation, and so to all others.
    """

    by_part = False


class SeparateChoices(Choices):
    """Without running sums: concatenations act on costs group by group, to first order.

    For networks whose concatenations tie so many groups together that no exact answer is in reach.
    """

    def width(self, axis: Axis) -> Width:
        """The width of `axis` over its groups themselves."""
        return replace(self.direct(axis, self.live(axis)), derive=None)


def _all_but_dense(ladder: Ladder) -> SparseFactor:
    """Allows every width of `ladder` but the last."""
    rows = np.arange(len(ladder.widths) - 1, dtype=np.int64)[:, None]
    cost, value = np.zeros((0, len(rows)), dtype=np.int64), np.zeros(len(rows))
    return SparseFactor(f"bound of {ladder.group.name}", (ladder.group.name,), rows, cost, value)


def _linear(
    axis: Axis, ladders: Mapping[Atom, Ladder]
) -> tuple[list[tuple[Atom, int]], int] | None:
    """`axis` as (groups with how often they occur, constant), if its width is such a sum."""
    times: dict[Atom, int] = {}
    constant = 0
    axis = counted(axis)
    for part in axis.parts if isinstance(axis, Concat) else (axis,):
        live = [a for a in part.atoms if a in ladders]
        if not live:
            constant += part.size
        elif isinstance(part, Atom):
            times[part] = times.get(part, 0) + 1
        elif isinstance(part, Product) and len(live) == 1 and live[0] in part.factors:
            times[live[0]] = times.get(live[0], 0) + part.size // live[0].size
        else:
            return None
    return list(times.items()), constant


@dataclass
class Tables:
    """Sums of tables, by the choices that they depend on."""

    domains: Mapping[str, tuple[int, ...]]
    constant: float = 0.0
    by_scope: dict[tuple[str, ...], Array] = field(default_factory=dict)

    def add(self, scope: Sequence[str], table: Array, gate: Gate | None = None) -> None:
        """Add a table with one dimension per choice of `scope`, where the gate is open."""
        if gate is not None:
            scope, table = (*scope, gate.choice), np.multiply.outer(table, gate.open)
        if not scope:
            self.constant += float(table)
            return
        order = sorted(range(len(scope)), key=lambda i: scope[i])
        key = tuple(scope[i] for i in order)
        table = np.transpose(table, order)
        self.by_scope[key] = self.by_scope[key] + table if key in self.by_scope else table

    def add_product(self, widths: Sequence[Width], scale: float, gate: Gate | None = None) -> None:
        """Add `scale` times the product of several widths."""

        def product(*sizes: IntArray) -> Array:
            return np.asarray(math.prod(sizes, start=np.array(scale)), dtype=np.float64)

        self.add_function(widths, product, gate)

    def add_function(
        self, widths: Sequence[Width], function: Callable[..., Array], gate: Gate | None = None
    ) -> None:
        """Add `function(*sizes)`, evaluated on every combination of the choices involved."""
        scope, shape = self._space(widths)
        if not fits(shape):
            derived = [width.derive() if width.derive else width for width in widths]
            if not fits(self._space(derived)[1]):
                self._add_main_effects(widths, scope, function, gate)
                return
            widths = derived
            scope, shape = self._space(widths)
        sizes = [_spread(width, scope) for width in widths]
        self.add(scope, np.broadcast_to(function(*sizes), shape).astype(np.float64), gate)

    def _space(self, widths: Sequence[Width]) -> tuple[tuple[str, ...], list[int]]:
        """The choices that `widths` depend on, and how many options each has."""
        scope = tuple(dict.fromkeys(name for width in widths for name in width.scope))
        return scope, [len(self.domains[name]) for name in scope]

    def _add_main_effects(
        self,
        widths: Sequence[Width],
        scope: Sequence[str],
        function: Callable[..., Array],
        gate: Gate | None,
    ) -> None:
        """The dense value, and what each choice alone changes: exact to first order."""
        dense = float(function(*(np.array(width.dense) for width in widths)))
        self.add((), np.array(dense), gate)
        for name in scope:
            alone = [width.along.get(name, np.array(width.dense)) for width in widths]
            self.add((name,), np.asarray(function(*alone), dtype=np.float64) - dense, gate)

    def at(self, options: Mapping[str, int]) -> float:
        """The sum of all tables when every choice takes the given option."""
        places = {scope: tuple(options[name] for name in scope) for scope in self.by_scope}
        found = [float(table[places[scope]]) for scope, table in self.by_scope.items()]
        return math.fsum([self.constant, *found])


def fits(shape: Sequence[int]) -> bool:
    """Whether a table of `shape` is small enough to be written out."""
    return len(shape) <= MOST_CHOICES and math.prod(shape) <= LARGEST_TABLE


def _spread(width: Width, scope: Sequence[str]) -> IntArray:
    """The grid of `width`, with a dimension (of size 1 if need be) for each choice of `scope`."""
    order = sorted(range(len(width.scope)), key=lambda i: scope.index(width.scope[i]))
    sizes = np.transpose(width.grid(), order)
    shape = iter(sizes.shape)
    return sizes.reshape([next(shape) if name in width.scope else 1 for name in scope])


def factors(
    choices: Choices, value: Tables, costs: Sequence[Tables], units: Sequence[float]
) -> tuple[tuple[Factor | SparseFactor, ...], tuple[int, ...]]:
    """The factors of a problem, and its fixed costs, in whole numbers of `units`, rounded up."""
    scopes = dict.fromkeys(scope for tables in (value, *costs) for scope in tables.by_scope)
    found: list[Factor | SparseFactor] = []
    for scope in scopes:
        shape = tuple(len(choices.domains[name]) for name in scope)
        rounded = [
            np.ceil(t.by_scope.get(scope, np.zeros(shape)) / unit).astype(np.int64)
            for t, unit in zip(costs, units, strict=True)
        ]
        worth = value.by_scope.get(scope, np.zeros(shape))
        found.append(Factor(" x ".join(scope), scope, np.stack(rounded), worth))
    none = np.zeros((len(costs), 1), dtype=np.int64)
    for tie in choices.sums:
        cost = np.repeat(none, len(tie.value), axis=1)
        found.append(SparseFactor(tie.name, tie.scope, tie.rows, cost, tie.value))
    fixed = tuple(int(np.ceil(t.constant / u)) for t, u in zip(costs, units, strict=True))
    return tuple(found), fixed
