"""The axis algebra on its own: normal forms, unification, evaluation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxprune.axes import (
    NONE,
    ONE,
    Atom,
    Concat,
    Product,
    Reason,
    Reordered,
    concat,
    counted,
    kept_positions,
    kept_size,
    product,
    project,
    reordered,
)
from fxprune.unifier import Unifier

WHY = Reason("test", "node", "a test")


def resolved(unifier, *axes):
    return tuple(unifier.resolve(axis) for axis in axes)


def test_sizes_of_one_are_one_axis_and_never_free():
    unifier = Unifier()
    assert unifier.fresh(1) is ONE
    assert not unifier.is_free(unifier.fresh(1))
    assert product([ONE, ONE]) == ONE


def test_a_product_with_a_leading_concatenation_is_distributed():
    a, b, c = Atom(0, 2), Atom(1, 3), Atom(2, 4)
    assert product([concat([a, b]), c]) == Concat((Product((a, c)), Product((b, c))))


def test_binding_freezes_what_a_frozen_atom_meets():
    unifier = Unifier()
    free, frozen = unifier.fresh(6), unifier.fresh(6, WHY)
    unifier.unify(free, frozen, WHY)
    assert not unifier.is_free(free)
    assert unifier.reason(unifier.resolve(free).atoms[0]) == WHY


def test_products_are_refined_to_common_factors():
    unifier = Unifier()
    a, b, c, d = (unifier.fresh(n) for n in (8, 6, 4, 12))
    unifier.unify(product([a, b]), product([c, d]), WHY)
    left, right = resolved(unifier, product([a, b]), product([c, d]))
    assert left == right
    assert [f.size for f in left.factors] == [4, 2, 6]
    assert unifier.is_free(left)


def test_products_without_common_factors_are_frozen():
    unifier = Unifier()
    a, b, c, d = (unifier.fresh(n) for n in (4, 6, 6, 4))
    unifier.unify(product([a, b]), product([c, d]), WHY)
    assert not any(map(unifier.is_free, (a, b, c, d)))


def test_concatenations_are_refined_to_common_boundaries():
    unifier = Unifier()
    a, b, c, d = (unifier.fresh(n) for n in (5, 7, 8, 4))
    unifier.unify(concat([a, b]), concat([c, d]), WHY)
    left, right = resolved(unifier, concat([a, b]), concat([c, d]))
    assert left == right
    assert [p.size for p in left.parts] == [5, 3, 4]


def test_a_view_in_two_halves_makes_concatenated_axes_one():
    unifier = Unifier()
    a, b = unifier.fresh(6), unifier.fresh(6)
    _, within = unifier.factor(concat([a, b]), (2, 6), WHY)
    assert unifier.resolve(a) == unifier.resolve(b) == within


def test_a_group_axis_is_split_where_a_concatenation_ends():
    unifier = Unifier()
    a, b = unifier.fresh(6), unifier.fresh(9)
    groups, inner = unifier.factor(concat([a, b]), (5, 3), WHY)
    assert [p.size for p in groups.parts] == [2, 3]
    assert unifier.resolve(a) == Product((groups.parts[0], inner))
    assert unifier.is_free(groups)
    assert unifier.is_free(inner)


def test_a_cut_inside_a_row_separates_that_row():
    unifier = Unifier()
    rows, columns = unifier.fresh(4), unifier.fresh(5)
    left, right = unifier.pieces(product([rows, columns]), (7, 13), WHY)
    assert (left.size, right.size) == (7, 13)
    assert unifier.resolve(concat([left, right])) == unifier.resolve(product([rows, columns]))


def test_different_sizes_are_a_mistake_of_the_caller():
    unifier = Unifier()
    with pytest.raises(ValueError, match="different size"):
        unifier.unify(unifier.fresh(2), unifier.fresh(3), WHY)


def test_positions_of_a_product_are_row_major():
    a, b = Atom(0, 2), Atom(1, 3)
    kept = {b: np.array([0, 2])}
    assert kept_positions(Product((a, b)), kept).tolist() == [0, 2, 3, 5]
    assert kept_positions(Concat((b, a)), kept).tolist() == [0, 2, 3, 4]
    assert kept_positions(ONE, kept).tolist() == [0]
    assert kept_positions(NONE, kept).tolist() == []


def test_projecting_adds_up_every_occurrence():
    a, b = Atom(0, 2), Atom(1, 3)
    axis = Concat((Product((a, b)), a))
    totals = project(axis, np.array([1.0, 2, 3, 4, 5, 6, 10, 20]))
    assert totals[a].tolist() == [16.0, 35.0]
    assert totals[b].tolist() == [5.0, 7.0, 9.0]


@st.composite
def terms(draw, depth=2):
    """A random term over atoms 0 to 3, which have fixed sizes."""
    if depth == 0 or draw(st.booleans()):
        ident = draw(st.integers(0, 3))
        return Atom(ident, (2, 3, 4, 5)[ident])
    children = draw(st.lists(terms(depth=depth - 1), min_size=1, max_size=3))
    found = draw(st.sampled_from([product, concat]))(children)
    if found.size <= 60 and draw(st.booleans()):
        return reordered(found, np.array(draw(st.permutations(range(found.size)))))
    return found


@given(terms(), st.data())
def test_size_and_positions_agree_for_any_choice(term, data):
    kept = {
        atom: np.flatnonzero(
            data.draw(st.lists(st.booleans(), min_size=atom.size, max_size=atom.size))
        )
        for atom in sorted(set(term.atoms), key=lambda a: a.ident)
    }
    positions = kept_positions(term, kept)
    assert len(positions) == kept_size(term, {a: len(k) for a, k in kept.items()})
    assert (np.diff(positions) > 0).all()
    assert positions.max(initial=-1) < term.size
    assert kept_size(counted(term), {a: len(k) for a, k in kept.items()}) == len(positions)


def test_there_is_one_way_to_write_a_reordered_concatenation():
    four, two = Atom(2, 4), Atom(0, 2)
    found = reordered(concat([four, two]), np.array([0, 1, 4, 5, 2, 3]))
    assert found == reordered(concat([two, four]), np.array([2, 3, 0, 1, 4, 5]))


@given(terms(), st.data())
def test_a_reordered_axis_keeps_what_its_order_says(term, data):
    kept = {
        atom: np.array(sorted(data.draw(st.sets(st.integers(0, atom.size - 1)))), dtype=int)
        for atom in sorted(set(term.atoms), key=lambda a: a.ident)
    }
    order = np.random.default_rng(term.size).permutation(term.size)
    found = reordered(term, order)
    whole = set(kept_positions(term, kept).tolist())
    expected = [i for i, position in enumerate(order.tolist()) if position in whole]
    assert kept_positions(found, kept).tolist() == expected
    assert reordered(found, np.argsort(order)) == reordered(term, np.arange(term.size))
    weights = np.arange(term.size) + 1.0
    mine, theirs = project(found, weights[order]), project(term, weights)
    assert {a: w.tolist() for a, w in mine.items()} == {a: w.tolist() for a, w in theirs.items()}


def test_whole_pieces_that_change_places_are_a_concatenation():
    a, b = Atom(0, 2), Atom(1, 3)
    assert reordered(concat([a, b]), np.array([2, 3, 4, 0, 1])) == Concat((b, a))
    found = reordered(concat([a, b]), np.array([3, 2, 4, 0, 1]))
    assert found == Concat((Reordered(b, (1, 0, 2)), a))


def test_an_axis_in_its_own_order_is_that_axis_and_in_another_it_stays():
    unifier = Unifier()
    axis = unifier.fresh(4)
    unifier.unify(axis, reordered(axis, np.arange(4)), WHY)
    assert unifier.is_free(axis)
    unifier.unify(axis, reordered(axis, np.array([1, 0, 2, 3])), WHY)
    assert not unifier.is_free(axis)


def test_equal_orders_of_two_axes_make_them_one():
    unifier = Unifier()
    a, b, order = unifier.fresh(4), unifier.fresh(4), np.array([1, 3, 0, 2])
    unifier.unify(reordered(a, order), reordered(b, order), WHY)
    assert unifier.resolve(a) == unifier.resolve(b)
    assert unifier.is_free(a)


def test_positions_picked_equally_often_go_together():
    unifier = Unifier()
    axis = unifier.fresh(9)
    found = unifier.pick(axis, np.array([1, 3, 5, 8, 7, 1, 3]), WHY)
    assert sorted(a.size for a in set(found.atoms)) == [2, 3]
    assert sorted(a.size for a in unifier.resolve(axis).atoms) == [2, 3, 4]


@given(st.data())
def test_what_is_picked_stays_where_its_position_stays(data):
    unifier = Unifier()
    axis = fresh_term(data.draw, unifier, data.draw(st.sampled_from([6, 12, 16])))
    index = np.array(data.draw(st.lists(st.integers(0, axis.size - 1), max_size=20)), dtype=int)
    found = unifier.pick(axis, index, WHY)
    whole = unifier.resolve(axis)
    assert found.size == len(index)
    kept = random_positions(data.draw, unifier, whole, found)
    stays = set(kept_positions(whole, kept).tolist())
    expected = [j for j, position in enumerate(index.tolist()) if position in stays]
    assert kept_positions(found, kept).tolist() == expected


def fresh_term(draw, unifier, size, depth=2):
    """A random axis of `size` positions made of fresh atoms."""
    if depth == 0 or size < 4:
        return unifier.fresh(size)
    kind = draw(st.sampled_from(["atom", "product", "concat", "reordered"]))
    if kind == "reordered":
        inner = fresh_term(draw, unifier, size, depth - 1)
        return reordered(inner, np.array(draw(st.permutations(range(size)))))
    divisors = [d for d in range(2, size) if size % d == 0]
    if kind == "product" and divisors:
        first = draw(st.sampled_from(divisors))
        sizes = (first, size // first)
        return product([fresh_term(draw, unifier, n, depth - 1) for n in sizes])
    if kind == "concat":
        first = draw(st.integers(1, size - 1))
        sizes = (first, size - first)
        return concat([fresh_term(draw, unifier, n, depth - 1) for n in sizes])
    return unifier.fresh(size)


def random_positions(draw, unifier, *axes):
    """Positions of every free atom of `axes`, at least one of each."""
    free = {a for axis in axes for a in axis.atoms if unifier.reason(a) is None}
    return {
        atom: np.array(sorted(draw(st.sets(st.integers(0, atom.size - 1), min_size=1))), dtype=int)
        for atom in sorted(free, key=lambda a: a.ident)
    }


@given(st.data())
def test_orders_of_what_is_unified_already_keep_the_same_positions(data):
    unifier = Unifier()
    axis = fresh_term(data.draw, unifier, data.draw(st.sampled_from([6, 12, 16])))
    for _ in range(2):
        order = np.array(data.draw(st.permutations(range(axis.size))))
        other = reordered(unifier.resolve(axis), order)
        unifier.unify(axis, other, WHY)
        left, right = resolved(unifier, axis, other)
        kept = random_positions(data.draw, unifier, left, right)
        assert kept_positions(left, kept).tolist() == kept_positions(right, kept).tolist()


@given(st.data())
def test_unified_axes_always_keep_the_same_positions(data):
    unifier = Unifier()
    size = data.draw(st.sampled_from([6, 12, 16, 24, 30]))
    left = fresh_term(data.draw, unifier, size)
    right = fresh_term(data.draw, unifier, size)
    unifier.unify(left, right, WHY)
    left, right = resolved(unifier, left, right)
    assert left.size == right.size == size
    kept = random_positions(data.draw, unifier, left, right)
    assert kept_positions(left, kept).tolist() == kept_positions(right, kept).tolist()


@given(st.data())
def test_cutting_an_axis_changes_neither_its_size_nor_its_positions(data):
    unifier = Unifier()
    size = data.draw(st.sampled_from([6, 12, 16, 24, 30]))
    axis = fresh_term(data.draw, unifier, size)
    offset = data.draw(st.integers(0, size))
    left, right = unifier.pieces(axis, (offset, size - offset), WHY)
    assert left.size == offset
    cut, whole = resolved(unifier, concat([left, right]), axis)
    kept = random_positions(data.draw, unifier, cut, whole)
    assert kept_positions(cut, kept).tolist() == kept_positions(whole, kept).tolist()
