"""The axis algebra: what one dimension of one tensor is made of, and when two dimensions agree.

An axis is a term over *atoms*, the smallest sets of positions that can be kept or removed alone:

* `Atom(n)`            n positions, free or frozen;
* `Product(a, b, ...)` row-major: position (i, j) = i * |b| + j  (`view`, heads, conv groups);
* `Concat(a, b, ...)`  one piece after the other                 (`cat`, `split`, slices);
* `Reordered(a, order)` position i is position `order[i]` of a   (constant indices).

`Unifier` holds the bindings: union-find over terms, as in Hindley-Milner type inference. To unify
two axes is to make them the same axis: atoms are bound, products refined to common factors,
concatenations to common boundaries. Where no refinement exists both sides are frozen, which is
always sound.

Terms are kept in a normal form: size-1 axes are `ONE`, products and concatenations are flat, and a
factor that is a concatenation is distributed over those after it, `(a + b) * c = a*c + b*c`, which
row-major order allows. No term is reordered twice, nor to the order it has.

A selection needs no term of its own: an axis is parted into what is selected and what is not, the
axis itself becomes both in another order, and the selection is the first of them.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Atom:
    """A set of `size` positions that nothing splits further; `ident` tells atoms apart."""

    ident: int
    size: int

    def __str__(self) -> str:
        return f"a{self.ident}({self.size})"


@dataclass(frozen=True)
class Product:
    """Row-major product of `factors`; the empty product is `ONE`, the axis with one position."""

    factors: tuple[Axis, ...]

    @cached_property
    def size(self) -> int:
        return prod(f.size for f in self.factors)

    def __str__(self) -> str:
        return "*".join(f"({f})" if isinstance(f, Concat) else str(f) for f in self.factors) or "1"


@dataclass(frozen=True)
class Concat:
    """`parts` one after the other; the empty concatenation has no position."""

    parts: tuple[Axis, ...]

    @cached_property
    def size(self) -> int:
        return sum(p.size for p in self.parts)

    def __str__(self) -> str:
        return " + ".join(map(str, self.parts)) or "0"


@dataclass(frozen=True)
class Reordered:
    """`axis` in another order: position i is position `order[i]` of it, and each is there once."""

    axis: Axis
    order: tuple[int, ...]

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
        # Pieces that only change places, each whole, are a concatenation again.
        sizes = [part.size for part in axis.parts]
        starts = np.cumsum([0, *sizes])
        piece = np.repeat(np.arange(len(sizes)), sizes)[order]
        ends = [*np.flatnonzero(np.diff(piece)) + 1, len(order)]
        if len(ends) == len(sizes):
            runs = [order[start:end] for start, end in pairwise([0, *ends])]
            first = [int(piece[start]) for start in [0, *ends[:-1]]]
            pairs = zip(first, runs, strict=True)
            return concat([reordered(axis.parts[p], run - starts[p]) for p, run in pairs])
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


def atoms(axis: Axis) -> Iterator[Atom]:
    """Every atom of `axis`, in order, repetitions included."""
    match axis:
        case Atom():
            yield axis
        case Product(factors=children) | Concat(parts=children):
            for child in children:
                yield from atoms(child)
        case Reordered():
            yield from atoms(axis.axis)


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


def in_order(axis: Reordered, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """`values`, one for each position of `axis`, in the order that its positions had."""
    found = np.empty_like(values)
    found[np.asarray(axis.order)] = values
    return found


def project(axis: Axis, weights: NDArray[np.float64]) -> dict[Atom, NDArray[np.float64]]:
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


class Unifier:
    """The bindings between axes found so far: union-find with terms in place of plain roots."""

    def __init__(self) -> None:
        self._next = 0
        self.changes = 0
        """How often a binding was made: what was resolved before is so until the next."""
        # Both by the number of the atom, which is quicker to look up than the atom.
        self._bound: dict[int, Axis] = {}
        self._frozen: dict[int, Reason] = {}

    # -- making axes -------------------------------------------------------------------------------

    def fresh(self, size: int, frozen: Reason | None = None) -> Axis:
        """A new axis with `size` positions; a size of one or none is never prunable."""
        if size <= 1:
            return ONE if size == 1 else NONE
        atom = Atom(self._next, size)
        self._next += 1
        if frozen is not None:
            self._frozen[atom.ident] = frozen
        return atom

    def reason(self, atom: Atom) -> Reason | None:
        """Why `atom` is frozen, or None if it is free."""
        return self._frozen.get(atom.ident)

    def is_free(self, axis: Axis) -> bool:
        """Whether any atom of `axis` may still lose positions."""
        return any(atom.ident not in self._frozen for atom in atoms(self.resolve(axis)))

    # -- reading -----------------------------------------------------------------------------------

    def resolve(self, axis: Axis) -> Axis:
        """`axis` in normal form, with every bound atom replaced by what it is bound to."""
        if isinstance(axis, Atom):
            target = self._bound.get(axis.ident)
            if target is None:
                return axis
            resolved = self.resolve(target)
            if resolved is not target:
                self._bound[axis.ident] = resolved
            return resolved
        if isinstance(axis, Reordered):
            inner = self.resolve(axis.axis)
            return axis if inner is axis.axis else reordered(inner, np.asarray(axis.order))
        children = axis.factors if isinstance(axis, Product) else axis.parts
        found = [self.resolve(child) for child in children]
        if all(map(operator.is_, found, children)):
            return axis
        return product(found) if isinstance(axis, Product) else concat(found)

    # -- relating axes -----------------------------------------------------------------------------

    def freeze(self, axis: Axis, reason: Reason) -> None:
        """Keep every position of `axis`; the first reason given for an atom is remembered."""
        for atom in atoms(self.resolve(axis)):
            self._frozen.setdefault(atom.ident, reason)

    def unify(self, left: Axis, right: Axis, reason: Reason) -> None:
        """Make two axes of equal size one. `reason` is recorded where they have no common form.

        Raises:
            ValueError: the sizes differ, which means that the calling rule is wrong.
        """
        left, right = self.resolve(left), self.resolve(right)
        if left is right or left == right:
            return
        if left.size != right.size:
            raise ValueError(f"axes of different size cannot agree: {left} and {right}")
        match left, right:
            case Atom(), _:
                self._bind(left, right, reason)
            case _, Atom():
                self._bind(right, left, reason)
            case Product(), Product():
                self._unify_products(left, right, reason)
            case Reordered(), Product() | Reordered():
                self._unify_orders(left, right, reason)
            case Product(), Reordered():
                self._unify_orders(right, left, reason)
            case _:
                self._unify_pieces(left, right, reason)

    def factor(self, axis: Axis, sizes: Sequence[int], reason: Reason) -> Axes:
        """`axis` as a row-major product of factors with the given `sizes`."""
        factors = tuple(self.fresh(size) for size in sizes)
        self.unify(product(factors), axis, reason)
        return tuple(self.resolve(f) for f in factors)

    def pieces(self, axis: Axis, sizes: Sequence[int], reason: Reason) -> Axes:
        """`axis` cut into consecutive pieces of the given `sizes`."""
        found: list[Axis] = []
        rest = axis
        for size in sizes:
            piece, rest = self._cut(rest, size, reason)
            found.append(piece)
        return tuple(self.resolve(piece) for piece in found)

    def pick(self, axis: Axis, index: Positions, reason: Reason) -> Axis:
        """The positions of `axis` that `index` lists, in this order, some perhaps several times.

        Positions that are listed equally often go together, so that as many of the result stay
        whichever of them stay.
        """
        times, labels = np.unique(np.bincount(index, minlength=axis.size), return_inverse=True)
        parts: list[Axis] = []
        places = [np.zeros(0, dtype=np.int64)]
        found = self._parted(axis, labels, len(times), reason)
        for label, (count, part) in enumerate(zip(times.tolist(), found, strict=True)):
            parts.extend([part] * count)
            places.extend([np.flatnonzero(labels == label)] * count)
        order = np.empty(len(index), dtype=np.int64)
        # The nth time that a position is listed is its nth copy among the parts.
        order[np.argsort(index, kind="stable")] = np.argsort(np.concatenate(places), kind="stable")
        return reordered(concat(map(self.resolve, parts)), order)

    # -- how terms are refined ---------------------------------------------------------------------

    def _bind(self, atom: Atom, target: Axis, reason: Reason) -> None:
        if isinstance(target, Reordered) and target.axis == atom:
            self.freeze(atom, reason)  # each position would be another one
            return
        frozen = self._frozen.pop(atom.ident, None)
        if frozen is not None:
            self.freeze(target, frozen)
        self._bound[atom.ident] = target
        self.changes += 1

    def _unify_products(self, left: Product, right: Product, reason: Reason) -> None:
        """Refine both to the factors between the union of their strides, if these divide."""
        strides = sorted(_strides(left) | _strides(right), reverse=True)
        if any(big % small for big, small in pairwise(strides)):
            self.freeze(left, reason)
            self.freeze(right, reason)
            return
        split_left = [self._split_factor(f, s, strides, reason) for f, s in _with_stride(left)]
        split_right = [self._split_factor(f, s, strides, reason) for f, s in _with_stride(right)]
        pairs = zip(_flatten(split_left), _flatten(split_right), strict=True)
        for mine, theirs in pairs:
            self.unify(mine, theirs, reason)

    def _unify_orders(self, left: Reordered, right: Product | Reordered, reason: Reason) -> None:
        """At least one side is reordered, and none is a concatenation: undo one of the orders."""
        moved = reordered(right, np.argsort(left.order))
        if not isinstance(left.axis, Product) or not isinstance(moved, Reordered):
            self.unify(left.axis, moved, reason)
        elif not isinstance(moved.axis, Product):
            self.unify(reordered(left.axis, np.argsort(moved.order)), moved.axis, reason)
        else:
            self.freeze(left, reason)
            self.freeze(right, reason)

    def _split_factor(
        self, factor: Axis, stride: int, strides: Sequence[int], reason: Reason
    ) -> Axes:
        top = stride * factor.size
        inside = [s for s in strides if stride <= s <= top]
        sizes = [big // small for big, small in pairwise(inside)]
        return (factor,) if len(sizes) <= 1 else self.factor(factor, sizes, reason)

    def _unify_pieces(self, left: Axis, right: Axis, reason: Reason) -> None:
        """At least one side is a concatenation: piece by piece, each cut where the other ends."""
        # What is still to do, the next piece last.
        mine, theirs = [left], [right]
        while (a := self._next_piece(mine)) is not None:
            b = self._next_piece(theirs)
            assert b is not None, "both sides have equally many positions"
            if a.size > b.size:
                a, rest = self._cut(a, b.size, reason)
                mine.append(rest)
            elif b.size > a.size:
                b, rest = self._cut(b, a.size, reason)
                theirs.append(rest)
            self.unify(a, b, reason)

    def _next_piece(self, pieces: list[Axis]) -> Axis | None:
        """Take the last of `pieces` that has positions, taken apart as far as it is known to be."""
        while pieces:
            piece = self.resolve(pieces.pop())
            if not isinstance(piece, Concat):
                return piece
            pieces.extend(reversed(piece.parts))
        return None

    def _cut(self, axis: Axis, offset: int, reason: Reason) -> tuple[Axis, Axis]:
        """`axis` as two consecutive pieces, the first with `offset` positions."""
        axis = self.resolve(axis)
        if offset == 0:
            return NONE, axis
        if offset == axis.size:
            return axis, NONE
        match axis:
            case Atom():
                left, right = self._split_atom(axis, offset)
                self._bound[axis.ident] = concat((left, right))
                self.changes += 1
                return left, right
            case Concat(parts=parts):
                for index, part in enumerate(parts):
                    if offset < part.size:
                        left, right = self._cut(part, offset, reason)
                        return concat((*parts[:index], left)), concat((right, *parts[index + 1 :]))
                    offset -= part.size
                    if offset == 0:
                        return concat(parts[: index + 1]), concat(parts[index + 1 :])
            case Product(factors=(first, *rest)):
                inner = product(rest)
                row, column = divmod(offset, inner.size)
                above, below = self._cut(first, row, reason)
                if column == 0:
                    return product((above, inner)), product((below, inner))
                # The cut falls inside one row: that row stands alone, and every row is cut alike.
                _, after = self._cut(below, 1, reason)
                left, right = self._cut(inner, column, reason)
                inner = concat((left, right))
                return (
                    concat((product((self.resolve(above), inner)), left)),
                    concat((right, product((after, inner)))),
                )
            case Reordered():
                behind = (np.arange(axis.size) >= offset).astype(np.int64)
                left, right = self._parted(axis, behind, 2, reason)
                return left, right
        raise AssertionError(f"offset {offset} lies outside {axis}")

    def _split_atom(self, atom: Atom, offset: int) -> tuple[Axis, Axis]:
        reason = self._frozen.pop(atom.ident, None)
        return self.fresh(offset, reason), self.fresh(atom.size - offset, reason)

    def _parted(self, axis: Axis, labels: Positions, count: int, reason: Reason) -> list[Axis]:
        """The positions of `axis` with label 0, those with label 1, and so on, each in order."""
        axis = self.resolve(axis)
        sizes = np.bincount(labels, minlength=count).tolist()
        if axis.size in sizes:
            return [axis if size else NONE for size in sizes]
        match axis:
            case Atom():
                frozen = self._frozen.pop(axis.ident, None)
                parts = [self.fresh(size, frozen) for size in sizes]
                order = np.argsort(np.argsort(labels, kind="stable"))
                self._bound[axis.ident] = reordered(concat(parts), order)
                self.changes += 1
                return parts
            case Concat(parts=pieces):
                cuts = np.cumsum([piece.size for piece in pieces])[:-1]
                found = [
                    self._parted(piece, own, count, reason)
                    for piece, own in zip(pieces, np.split(labels, cuts), strict=True)
                ]
                return [concat(map(self.resolve, parts)) for parts in zip(*found, strict=True)]
            case Reordered():
                order = np.asarray(axis.order)
                inside = np.empty_like(labels)
                inside[order] = labels
                parts = self._parted(axis.axis, inside, count, reason)
                ranks = [np.argsort(np.argsort(order[labels == n])) for n in range(count)]
                pairs = zip(parts, ranks, strict=True)
                return [reordered(self.resolve(part), rank) for part, rank in pairs]
            case Product(factors=factors):
                grid = labels.reshape([factor.size for factor in factors])
                for dim, factor in enumerate(factors):
                    lines = np.moveaxis(grid, dim, 0).reshape(factor.size, -1)
                    if (lines == lines[:, :1]).all():
                        parts = self._parted(factor, lines[:, 0], count, reason)
                        before, behind = factors[:dim], factors[dim + 1 :]
                        return [product((*before, self.resolve(p), *behind)) for p in parts]
        # Labels that differ within every factor: no part is a product.
        self.freeze(axis, reason)
        return [self.fresh(size, reason) for size in sizes]


def _strides(axis: Product) -> set[int]:
    """How far apart neighbours along each factor lie, with the size of the whole."""
    return {stride for _, stride in _with_stride(axis)} | {axis.size}


def _with_stride(axis: Product) -> list[tuple[Axis, int]]:
    strides = [prod(f.size for f in axis.factors[i + 1 :]) for i in range(len(axis.factors))]
    return list(zip(axis.factors, strides, strict=True))


def _flatten(groups: Iterable[Axes]) -> list[Axis]:
    return [axis for group in groups for axis in group]
