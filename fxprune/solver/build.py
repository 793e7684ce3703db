"""Models from problems, and smaller models from larger ones.

Tables with equal scopes, and tables whose scope lies within another's, are added up; a choice twice
in a scope is reduced to the diagonal; the axes of choices with a single option vanish.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from fxprune.solver.model import Model, Table
from fxprune.solver.problem import Factor, IntArray, Problem, SparseFactor, every

# Below this share of allowed combinations, listing them beats computing on the dense table.
_SPARSE = 1 / 8


def model_of(problem: Problem) -> Model:
    """The problem as a model in which every option still has its original number."""
    number = {choice.name: v for v, choice in enumerate(problem.choices)}
    sizes = [choice.options for choice in problem.choices]
    pieces = [_from_factor(factor, number, sizes) for factor in problem.factors]
    base = np.array(problem.fixed, dtype=np.int64)
    return _assemble([np.arange(size) for size in sizes], pieces, 0.0, base)


def restrict(
    model: Model,
    keep: Sequence[npt.NDArray[np.bool_]],
    entries: npt.NDArray[np.bool_] | None = None,
) -> Model:
    """The model with the kept options only.

    Args:
        model: stays as it is.
        keep: per choice, which of its options stay (at least one).
        entries: [N], which entries of the tables stay; all if None.
    """
    masks = model.split(np.ones(model.flat_value.shape, bool) if entries is None else entries)
    number = [np.cumsum(kept) - 1 for kept in keep]
    pieces = []
    for table, mask in zip(model.tables, masks, strict=True):
        value = np.where(mask, table.value, -np.inf)
        if table.rows is None:
            cut = np.ix_(*(np.flatnonzero(keep[v]) for v in table.scope))
            cost = table.cost[every(cut)]
            pieces.append(Table(table.scope, value[cut].shape, None, value[cut], cost))
            continue
        columns = list(zip(table.scope, table.rows.T, strict=True))
        stays = np.logical_and.reduce([keep[v][column] for v, column in columns])
        stays &= np.isfinite(value)
        rows = np.stack([number[v][column[stays]] for v, column in columns], axis=1)
        shape = tuple(int(keep[v].sum()) for v in table.scope)
        pieces.append(Table(table.scope, shape, rows, value[stays], table.cost[:, stays]))
    options = [options[kept] for options, kept in zip(model.options, keep, strict=True)]
    return _assemble(options, pieces, model.base_value, model.base_cost)


def _from_factor(
    factor: Factor | SparseFactor, number: dict[str, int], sizes: Sequence[int]
) -> Table:
    """The factor with its scope sorted and without repeated choices."""
    names = [number[name] for name in factor.scope]
    scope = tuple(sorted(set(names)))
    shape = tuple(sizes[v] for v in scope)
    value = factor.value.astype(np.float64)
    cost = factor.cost.astype(np.int64)
    if isinstance(factor, SparseFactor):
        rows = factor.rows.astype(np.int64)[:, np.argsort(names)]
        order = np.lexsort(rows.T[::-1]) if scope else np.arange(len(rows))
        order = order[np.isfinite(value[order])]
        return Table(scope, shape, rows[order], value[order], cost[:, order])
    # Indexing every axis by the grid of its choice sorts the axes and takes diagonals at once.
    grid = np.ix_(*(np.arange(size) for size in shape))
    index = tuple(grid[scope.index(v)] for v in names)
    if index:
        value, cost = value[index], cost[every(index)]
    return Table(scope, shape, None, value, cost)


def _assemble(
    options: Sequence[IntArray], pieces: Iterable[Table], base_value: float, base_cost: IntArray
) -> Model:
    by_scope: dict[tuple[int, ...], list[Table]] = {}
    for piece in pieces:
        small = _thin(_squeeze(piece))
        by_scope.setdefault(small.scope, []).append(small)
    base_cost = base_cost.copy()
    for table in by_scope.pop((), []):
        base_value += float(table.value.max(initial=-np.inf))
        base_cost += table.cost.reshape(len(base_cost), table.value.size).sum(axis=1)
    tables = _absorb(by_scope)
    flat_value = np.concatenate([t.value.ravel() for t in tables] or [np.zeros(0)])
    flat_cost = np.concatenate(
        [t.cost.reshape(len(base_cost), t.value.size) for t in tables]
        or [np.zeros((len(base_cost), 0), dtype=np.int64)],
        axis=1,
    )
    views, start, magnitude = [], 0, 0.0
    for t in tables:
        stop = start + t.value.size
        value = flat_value[start:stop].reshape(t.value.shape)
        cost = flat_cost[:, start:stop].reshape(t.cost.shape)
        views.append(Table(t.scope, t.shape, t.rows, value, cost))
        magnitude += float(
            np.abs(value, where=np.isfinite(value), out=np.zeros_like(value)).max(initial=0.0)
        )
        start = stop
    return Model(
        options=tuple(options),
        tables=tuple(views),
        flat_value=flat_value,
        flat_cost=flat_cost,
        base_value=base_value,
        base_cost=base_cost,
        magnitude=magnitude + (abs(base_value) if np.isfinite(base_value) else 0.0),
    )


def _squeeze(table: Table) -> Table:
    """Without the choices that have a single option; listed only over two choices and more."""
    wide = [i for i, size in enumerate(table.shape) if size > 1]
    scope = tuple(table.scope[i] for i in wide)
    shape = tuple(table.shape[i] for i in wide)
    if table.rows is None:
        cost = table.cost.reshape(len(table.cost), *shape)
        return Table(scope, shape, None, table.value.reshape(shape), cost)
    if len(wide) > 1:
        return Table(scope, shape, table.rows[:, wide], table.value, table.cost)
    value = np.full(shape, -np.inf)
    cost = np.zeros((len(table.cost), *shape), dtype=np.int64)
    if wide:
        option = table.rows[:, wide[0]]
        value[option], cost[:, option] = table.value, table.cost
    elif len(table.rows):
        value[()], cost[...] = table.value[0], table.cost[:, 0]
    return Table(scope, shape, None, value, cost)


def _thin(table: Table) -> Table:
    """Listed, if few of its combinations are allowed."""
    if table.rows is not None or len(table.scope) < 2:
        return table
    allowed = np.isfinite(table.value)
    if allowed.sum() > _SPARSE * allowed.size:
        return table
    place = np.nonzero(allowed)
    rows = np.stack(place, axis=1).astype(np.int64)
    cost = table.cost[every(place)]
    return Table(table.scope, table.shape, rows, table.value[place], cost)


def _absorb(by_scope: dict[tuple[int, ...], list[Table]]) -> list[Table]:
    """Adds up equal scopes, and adds dense tables into those whose scope includes theirs."""
    whole: list[Table] = []
    around: dict[int, list[int]] = {}  # choice -> tables of `whole` that look at it
    for scope in sorted(by_scope, key=lambda scope: (-len(scope), scope)):
        for table in sorted(by_scope[scope], key=lambda table: table.rows is None):
            hosts = (i for i in around.get(scope[0], ()) if set(scope) <= set(whole[i].scope))
            host = next(hosts, None) if table.rows is None else None
            if host is not None:
                whole[host] = _add(whole[host], table)
                continue
            for v in scope:
                around.setdefault(v, []).append(len(whole))
            whole.append(table)
    return whole


def _add(big: Table, small: Table) -> Table:
    """`big` plus the dense table `small`, whose scope lies within that of `big`."""
    columns = np.ix_(*map(np.arange, big.shape)) if big.rows is None else tuple(big.rows.T)
    place = tuple(columns[big.scope.index(v)] for v in small.scope)
    value = big.value + small.value[place]
    cost = big.cost + small.cost[every(place)]
    return Table(big.scope, big.shape, big.rows, value, cost)
