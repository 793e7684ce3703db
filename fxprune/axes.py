"""The axis algebra: what one dimension of one tensor is made of.

An axis is a term over *atoms*, the smallest sets of positions that can be kept or removed alone:

* `Atom(n)`            n positions, free or frozen;
* `Product(a, b, ...)` row-major: position (i, j) = i * |b| + j  (`view`, heads, conv groups);
* `Concat(a, b, ...)`  one piece after the other                 (`cat`, `split`, slices);
* `Reordered(a, order)` position i is position `order[i]` of a   (constant indices).

Terms are kept in a normal form: size-1 axes are `ONE`, products and concatenations are flat, and a
factor that is a concatenation is distributed over those after it, `(a + b) * c = a*c + b*c`, which
row-major order allows. No term is reordered twice, nor to the order it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]
Numbers = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Atom:
    """A set of `size` positions that nothing splits further; `ident` tells atoms apart."""

    ident: int
    size: int

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """Itself, as any term has its atoms."""
        return (self,)

    def __str__(self) -> str:
        return f"a{self.ident}({self.size})"


class _Compound:
    """A term made of others. What is asked again and again is worked out once."""

    @property
    def children(self) -> tuple[Axis, ...]:
        raise NotImplementedError

    @cached_property
    def atoms(self) -> tuple[Atom, ...]:
        """Every atom it is made of, in order, repetitions included."""
        return tuple(chain.from_iterable([child.atoms for child in self.children]))

    @cached_property
    def idents(self) -> frozenset[int]:
        """The numbers of its atoms."""
        return frozenset([atom.ident for atom in self.atoms])


@dataclass(frozen=True)
class Product(_Compound):
    """Row-major product of `factors`; the empty product is `ONE`, the axis with one position."""

    factors: tuple[Axis, ...]

    @property
    def children(self) -> tuple[Axis, ...]:
        return self.factors

    @cached_property
    def size(self) -> int:
        return prod(f.size for f in self.factors)

    def __str__(self) -> str:
        return "*".join(f"({f})" if isinstance(f, Concat) else str(f) for f in self.factors) or "1"


@dataclass(frozen=True)
class Concat(_Compound):
    """`parts` one after the other; the empty concatenation has no position."""

    parts: tuple[Axis, ...]

    @property
    def children(self) -> tuple[Axis, ...]:
        return self.parts

    @cached_property
    def size(self) -> int:
        return sum(p.size for p in self.parts)

    def __str__(self) -> str:
        return " + ".join(map(str, self.parts)) or "0"


@dataclass(frozen=True)
class Reordered(_Compound):
    """`axis` in another order: position i is position `order[i]` of it, and each is there once."""

    axis: Axis
    order: tuple[int, ...]

    @property
    def children(self) -> tuple[Axis, ...]:
        return (self.axis,)

    @property
    def size(self) -> int:
        return len(self.order)

    def __str__(self) -> str:
        shown = " ".join(map(str, self.order[:8])) + (" ..." if len(self.order) > 8 else "")
        return f"({self.axis})[{shown}]"


Axis = Atom | Product | Concat | Reordered
Axes = tuple[Axis, ...]

ONE = Product(())
NONE = Concat(())


@dataclass(frozen=True)
class Reason:
    """Why an axis keeps its width: the rule that says so, the node it was met at, a sentence."""

    rule: str
    node: str
    detail: str

    def __str__(self) -> str:
        return f"{self.detail} [{self.rule} at {self.node}]"


def product(factors: Iterable[Axis]) -> Axis:
    """The row-major product of already normal `factors`, in normal form."""
    flat: list[Axis] = []
    for factor in factors:
        flat.extend(factor.factors if isinstance(factor, Product) else (factor,))
    if any(factor.size == 0 for factor in flat):
        return NONE
    if len(flat) == 1:
        return flat[0]
    pieces = next((i for i, factor in enumerate(flat) if isinstance(factor, Concat)), len(flat))
    if pieces == len(flat):
        return Product(tuple(flat)) if flat else ONE
    head, split, tail = flat[:pieces], flat[pieces], flat[pieces + 1 :]
    if tail and isinstance(split, Concat):
        return product((*head, concat(product((part, *tail)) for part in split.parts)))
    return Product((*head, split))


def concat(parts: Iterable[Axis]) -> Axis:
    """The concatenation of already normal `parts`, in normal form."""
    flat: list[Axis] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Concat) else (part,))
    return flat[0] if len(flat) == 1 else Concat(tuple(flat))


def reordered(axis: Axis, order: Positions) -> Axis:
    """The already normal `axis` in another order, in normal form."""
    axis, order = _in_order(axis, order)
    if np.array_equal(order, np.arange(axis.size)):
        return axis
    if isinstance(axis, Concat):
        sizes = np.array([part.size for part in axis.parts])
        starts = np.cumsum(sizes) - sizes
        piece = np.repeat(np.arange(len(sizes)), sizes)[order]
        ends = [*np.flatnonzero(np.diff(piece)) + 1, len(order)]
        if len(ends) == len(sizes):
            # Pieces that only change places, each whole, are a concatenation again.
            runs = [order[start:end] for start, end in pairwise([0, *ends])]
            first = [int(piece[start]) for start in [0, *ends[:-1]]]
            pairs = zip(first, runs, strict=True)
            return concat([reordered(axis.parts[p], run - starts[p]) for p, run in pairs])
        # Which piece comes first in a concatenation that is reordered is a matter of taste: the
        # one that is met first.
        met = np.array(list(dict.fromkeys(piece.tolist())))
        moved = np.empty_like(starts)
        moved[met] = np.cumsum(sizes[met]) - sizes[met]
        order = order - starts[piece] + moved[piece]
        axis = concat([axis.parts[p] for p in met])
    return Reordered(axis, tuple(order.tolist()))


def _in_order(axis: Axis, order: Positions) -> tuple[Axis, Positions]:
    """The same as (axis, order), with `axis` and its pieces no longer reordered themselves."""
    match axis:
        case Reordered():
            return axis.axis, np.asarray(axis.order)[order]
        case Concat(parts=parts) if any(isinstance(part, Reordered) for part in parts):
            inner = [_in_order(part, np.arange(part.size)) for part in parts]
            starts = np.cumsum([0, *(part.size for part in parts)])[:-1]
            places = [own + start for (_, own), start in zip(inner, starts, strict=True)]
            return _in_order(concat(part for part, _ in inner), np.concatenate(places)[order])
        case _:
            return axis, order


def counted(axis: Axis) -> Axis:
    """`axis` without regard to the order of its positions: as many stay, whatever stays."""
    match axis:
        case Reordered():
            return counted(axis.axis)
        case Product(factors=factors):
            return product(map(counted, factors))
        case Concat(parts=parts):
            return concat(map(counted, parts))
        case _:
            return axis


def kept_positions(axis: Axis, kept: Mapping[Atom, Positions]) -> Positions:
    """Positions of `axis` that remain when every atom in `kept` keeps only the listed positions.

    They are in order if those listed are; else what is listed third takes the third place, and so
    on.
    """
    match axis:
        case Atom():
            found = kept.get(axis)
            return np.arange(axis.size) if found is None else found
        case Product(factors=factors):
            positions = np.zeros(1, dtype=np.int64)
            for factor in factors:
                inner = kept_positions(factor, kept)
                positions = (positions[:, None] * factor.size + inner[None, :]).ravel()
            return positions
        case Concat(parts=parts):
            pieces, offset = [np.zeros(0, dtype=np.int64)], 0
            for part in parts:
                pieces.append(kept_positions(part, kept) + offset)
                offset += part.size
            return np.concatenate(pieces)
        case Reordered():
            inside, order = kept_positions(axis.axis, kept), np.asarray(axis.order)
            ranks = np.searchsorted(np.sort(inside), order[np.isin(order, inside)])
            return np.argsort(order)[inside[ranks]]


def kept_size(axis: Axis, sizes: Mapping[Atom, int]) -> int:
    """Number of positions of `axis` when every atom in `sizes` has that many left."""
    match axis:
        case Atom():
            return sizes.get(axis, axis.size)
        case Product(factors=factors):
            return prod(kept_size(f, sizes) for f in factors)
        case Concat(parts=parts):
            return sum(kept_size(p, sizes) for p in parts)
        case Reordered():
            return kept_size(axis.axis, sizes)


def in_order(axis: Reordered, values: Numbers) -> NDArray[np.float64]:
    """`values`, one for each position of `axis`, in the order that its positions had."""
    found = np.empty(values.shape)
    found[np.asarray(axis.order)] = values
    return found


def project(axis: Axis, weights: Numbers) -> dict[Atom, NDArray[np.float64]]:
    """Sum `weights`, one number per position of `axis`, onto the positions of its atoms.

    An atom that occurs several times, or beside other factors, collects all it stands for.
    """
    totals: dict[Atom, NDArray[np.float64]] = {}

    def collect(term: Axis, values: NDArray[np.float64]) -> None:
        match term:
            case Atom():
                totals[term] = totals[term] + values if term in totals else values
            case Product(factors=factors):
                grid = values.reshape([f.size for f in factors])
                for dim, factor in enumerate(factors):
                    others = tuple(d for d in range(len(factors)) if d != dim)
                    collect(factor, grid.sum(axis=others))
            case Concat(parts=parts):
                offset = 0
                for part in parts:
                    collect(part, values[offset : offset + part.size])
                    offset += part.size
            case Reordered():
                collect(term.axis, in_order(term, values))

    collect(axis, np.asarray(weights, dtype=np.float64))
    return totals
