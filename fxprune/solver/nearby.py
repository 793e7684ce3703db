"""Better answers near those that are known: the best change of one choice, or of two at once.

The dual meets assignments at the corners of what prices can reach.  Where many choices are worth
about the same per unit of a budget, no price leads in between, and labels are too many to tell the
answers apart that fill the budget: but these are one or two changes away from a corner.
"""

from __future__ import annotations

import math

import numpy as np

from fxprune.solver.dual import Bundle
from fxprune.solver.model import Model, Point
from fxprune.solver.problem import FloatArray, IntArray

# Pairs of changes that are measured, best estimate first.
_PAIRS = 200
# Changes that are looked at in pairs, best first.
_CHANGES = 1500
_ROUNDS = 30


def look_nearby(bundle: Bundle, budgets: IntArray) -> None:
    """Climb from the incumbent and from the corners that the dual mixes; the bundle learns.

    Args:
        budgets: [K].
    """
    incumbent = bundle.incumbent(budgets)
    for start in (*bundle.mixture(budgets), *([] if incumbent is None else [incumbent])):
        _climb(bundle, start, budgets)


def _climb(bundle: Bundle, point: Point, budgets: IntArray) -> None:
    """From a point to better ones, as long as these are the best that the bundle knows."""
    for _ in range(_ROUNDS):
        better = _better(bundle.model, point, budgets)
        if better is None or better.value <= bundle.worth(budgets):
            break
        point = bundle.learn(better)


def _better(model: Model, point: Point, budgets: IntArray) -> Point | None:
    """The best found within the budgets that differs from a point in one choice or two."""
    pairs_of_options = zip(model.options, point.option, strict=True)
    here = np.array([np.searchsorted(options, i) for options, i in pairs_of_options])
    choices = np.repeat(np.arange(len(here)), model.sizes)
    options = np.concatenate([np.arange(size) for size in model.sizes])
    stays = options == here[choices]
    choices, options = choices[~stays], options[~stays]
    value, use = model.measure(_changed(here, choices, options))
    gain, more = value - point.value, use - point.use
    room = budgets - point.use
    # At a price, since what saves a budget is needed as much as what uses it.
    allowed = np.flatnonzero(np.isfinite(gain))
    price = _price(gain[allowed], more[allowed])
    order = allowed[np.argsort(-(gain[allowed] - more[allowed] @ price), kind="stable")][:_CHANGES]
    choices, options, gain, more = choices[order], options[order], gain[order], more[order]
    found = _changed(here, choices, options)[(more <= room).all(axis=1)]
    # Two changes of one choice exclude each other.
    fits = (more[:, None] + more[None] <= room).all(axis=2) & (choices[:, None] != choices[None])
    worth = np.where(np.triu(fits), gain[:, None] + gain[None], -math.inf).ravel()
    if not len(worth):
        return None
    best = np.argpartition(-worth, min(_PAIRS, len(worth) - 1))[:_PAIRS]
    first, second = np.divmod(best, len(choices))
    pairs = _changed(here, choices[first], options[first])
    pairs[np.arange(len(pairs)), choices[second]] = options[second]
    candidates = np.concatenate([found, pairs])
    value, use = model.measure(candidates)
    value[(use > budgets).any(axis=1)] = -math.inf
    if not len(value) or value.max() == -math.inf:
        return None
    return model.point(candidates[int(value.argmax())])


def _changed(here: IntArray, choices: IntArray, options: IntArray) -> IntArray:
    """Assignments [n, choices] that differ from one in one choice each."""
    found = np.tile(here, (len(choices), 1))
    found[np.arange(len(choices)), choices] = options
    return found


def _price(gain: FloatArray, more: IntArray) -> FloatArray:
    """What a unit of each budget is worth among these changes, about."""
    return np.array(
        [
            float(np.median(np.abs(gain[used] / column[used]))) if used.any() else 0.0
            for column in more.T
            for used in [column != 0]
        ]
    )
