"""Which axes are the same one: union-find over terms, as in Hindley-Milner type inference.

To unify two axes is to make them the same axis: atoms are bound, products refined to common
factors, concatenations to common boundaries. Where no refinement exists both sides are frozen,
which is always sound.

A selection needs no term of its own: an axis is parted into what is selected and what is not, the
axis itself becomes both in another order, and the selection is the first of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import prod

import numpy as np

from fxprune.axes import (
    NONE,
    ONE,
    Atom,
    Axes,
    Axis,
    Concat,
    Positions,
    Product,
    Reason,
    Reordered,
    concat,
    product,
    reordered,
)


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
        return any(atom.ident not in self._frozen for atom in self.resolve(axis).atoms)

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
        if self._bound.keys().isdisjoint(axis.idents):
            return axis
        if isinstance(axis, Reordered):
            return reordered(self.resolve(axis.axis), np.asarray(axis.order))
        found = [self.resolve(child) for child in axis.children]
        return product(found) if isinstance(axis, Product) else concat(found)

    # -- relating axes -----------------------------------------------------------------------------

    def freeze(self, axis: Axis, reason: Reason) -> None:
        """Keep every position of `axis`; the first reason given for an atom is remembered."""
        for atom in self.resolve(axis).atoms:
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
