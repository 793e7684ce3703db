"""Operators that reduce, order or accumulate along dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from fxprune.axes import ONE, Axis
from fxprune.passes.rules.base import Op, Outputs, broadcast, rule, tensors

Dims = Sequence[int] | int | None


@rule("sum")
def summed(op: Op) -> Outputs:
    """A sum may lose positions: those removed add nothing, as if they were zero."""
    return _reduced(op, op.arg(1, "dim"), bool(op.arg(2, "keepdim", False)))


@rule("mean", "amax", "amin")
def statistic(op: Op) -> Outputs:
    """Defined over the positions that are kept, as a norm is; only in a node of its own."""
    dims = op.arg(1, "dim")
    if not op.renormalises:
        _freeze(op, dims)
    return _reduced(op, dims, _keepdim(op))


@rule("std", "var", "var_mean", "std_mean")
def deviation(op: Op) -> Outputs:
    """As `statistic`; corrected for the count, it does not exist for a single kept position."""
    dims = op.arg(1, "dim")
    overload = str(op.func)
    dims = dims if not isinstance(dims, bool) else None
    corrected = op.kwargs.get("correction", 1) != 0
    if not overload.endswith("correction"):
        corrected = bool(op.arg(1 if overload.endswith("default") else 2, "unbiased", True))
    if corrected or not op.renormalises:
        _freeze(op, dims)
    return _reduced(op, dims, _keepdim(op))


@rule("aminmax", "all", "any", "prod", "argmax", "argmin", "count_nonzero")
def reduced(op: Op) -> Outputs:
    """Any other reduction depends on how many positions there are, or on which."""
    dims = op.arg(1, "dim")
    _freeze(op, dims)
    return _reduced(op, dims, _keepdim(op))


@rule("max", "min", "median", "nanmedian", "logsumexp")
def extremes(op: Op) -> Outputs:
    """Reductions with several results or overloads; `max(a, b)` of two tensors is pointwise."""
    if len(tensors(op.args)) == 2:
        return broadcast(op)
    dims = op.arg(1, "dim")
    dims = dims if isinstance(dims, (int, list, tuple)) and not isinstance(dims, bool) else None
    if not op.renormalises:  # as `statistic`, where only the value is read
        _freeze(op, dims)
    return _reduced(op, dims, _keepdim(op))


@rule("linalg_vector_norm", "norm")
def vector_norm(op: Op) -> Outputs:
    """The norm over a set of positions. Zeros add nothing to one of positive order."""
    dims = op.arg(2, "dim")
    order = op.arg(1, "p" if "norm.Scalar" in str(op.func) else "ord", 2)
    if not (isinstance(order, (int, float)) and order > 0):
        _freeze(op, dims)
    return _reduced(op, dims, _keepdim(op))


@rule(
    "_softmax",
    "_log_softmax",
    "softmax",
    "log_softmax",
    "_safe_softmax",
    "cumsum",
    "cumprod",
    "logcumsumexp",
    "cummax",
    "cummin",
    "sort",
    "argsort",
)
def along(op: Op) -> Outputs:
    """Results have the input's shape, but each position depends on the others along `dim`."""
    by_name = op.kwargs.get("dim")
    dim = by_name if by_name is not None else next((a for a in op.args[1:] if type(a) is int), -1)
    axes = op.axes(op.args[0])
    op.freeze(axes[dim], f"positions depend on each other along dimension {dim}")
    return [axes for _ in tensors(op.out)]


@rule("mode")
def mode(op: Op) -> Outputs:
    """The most frequent value along one dimension, by default the last."""
    dim = op.arg(1, "dim", -1)
    _freeze(op, dim)
    return _reduced(op, dim, _keepdim(op))


@rule("topk", "kthvalue")
def selected(op: Op) -> Outputs:
    """Positions chosen by value along `dim`."""
    dim = op.arg(2, "dim", -1)
    axes = op.axes(op.args[0])
    op.freeze(axes[dim], "positions are chosen by value")
    results: list[tuple[Axis, ...]] = []
    for result in tensors(op.out):
        found = list(axes[: result.dim()])
        if result.dim() == len(axes):
            found[dim] = op.frozen(result.shape[dim], "positions are chosen by value")
        else:
            found = [a for i, a in enumerate(axes) if i != dim % len(axes)]
        results.append(tuple(found))
    return list(results)


def _keepdim(op: Op) -> bool:
    return len(tensors(op.out)[0].shape) == len(op.args[0].shape)


def _normal(dims: Dims, rank: int) -> set[int]:
    if dims is None or (isinstance(dims, Sequence) and not dims):
        return set(range(rank))
    return {d % rank for d in ([dims] if isinstance(dims, int) else dims)} if rank else set()


def _freeze(op: Op, dims: Dims) -> None:
    axes = op.axes(op.args[0])
    for dim in _normal(dims, len(axes)):
        op.freeze(axes[dim], f"reduced by {op.func.overloadpacket.__name__}")


def _reduced(op: Op, dims: Dims, keepdim: bool) -> Outputs:
    axes = op.axes(op.args[0])
    gone = _normal(dims, len(axes))
    kept = [ONE if d in gone else axis for d, axis in enumerate(axes) if keepdim or d not in gone]
    return [tuple(kept) for _ in tensors(op.out)]
