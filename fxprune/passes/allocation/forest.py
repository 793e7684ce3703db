"""The last resort of allocation: tables in which so little interacts that any network is solved.

Where every width meets every other, no elimination is in reach. Tables over several choices are
kept here along a forest, the strongest interactions first, as a maximum spanning tree takes edges
(Chow and Liu, "Approximating discrete probability distributions with dependence trees", 1968). Of
all others their main effects are kept: the sum of functions of one choice each that is closest in
least squares. The closed loop corrects what that says of costs, as it does any table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from networkx.utils import UnionFind
from numpy.typing import NDArray

from fxprune.passes.allocation.widths import Tables
from fxprune.solver import SparseFactor

Array = NDArray[np.float64]
Scope = tuple[str, ...]


def along_forest(tables: Sequence[Tables], ties: Iterable[SparseFactor]) -> tuple[Tables, ...]:
    """The tables of value and costs, with no interactions but those along one forest.

    Args:
        ties: what holds between choices whatever the tables say.
    """
    scopes = {scope for each in tables for scope in each.by_scope if len(scope) > 1}
    strength = {scope: sum(_strength(each, scope) for each in tables) for scope in scopes}
    kept = _without_cycles(sorted(scopes, key=lambda scope: (-strength[scope], scope)), ties)
    return tuple(_reduced(each, kept) for each in tables)


def _strength(tables: Tables, scope: Scope) -> float:
    """The largest error of leaving an interaction out, relative to the dense network."""
    if scope not in tables.by_scope:
        return 0.0
    table = tables.by_scope[scope]
    mean, effects = _main_effects(table)
    error = float(np.abs(table - mean - sum(np.ix_(*effects))).max())
    dense = abs(tables.at(dict.fromkeys(tables.domains, -1)))
    return error / dense if dense else error


def _main_effects(table: Array) -> tuple[float, list[Array]]:
    """The mean, and what each option of each choice adds to it on average."""
    mean = float(table.mean())
    dims = range(table.ndim)
    return mean, [table.mean(axis=tuple(d for d in dims if d != dim)) - mean for dim in dims]


def _without_cycles(scopes: Iterable[Scope], ties: Iterable[SparseFactor]) -> frozenset[Scope]:
    """Those of the scopes, taken in order, that close no cycle with the ones before."""
    joined = UnionFind()
    for tie in ties:
        joined.union(*tie.scope)
    kept: set[Scope] = set()
    for scope in scopes:
        if len({joined[name] for name in scope}) == len(scope):
            joined.union(*scope)
            kept.add(scope)
        elif any(set(scope) <= set(other) for other in kept):
            kept.add(scope)
    return frozenset(kept)


def _reduced(tables: Tables, kept: frozenset[Scope]) -> Tables:
    """The tables with main effects in place of interactions that are not kept."""
    reduced = Tables(tables.domains, tables.constant)
    for scope, table in tables.by_scope.items():
        if len(scope) == 1 or scope in kept:
            reduced.add(scope, table)
            continue
        mean, effects = _main_effects(table)
        reduced.add((), np.array(mean))
        for name, effect in zip(scope, effects, strict=True):
            reduced.add((name,), effect)
    return reduced
