"""Operators that rearrange dimensions without touching values."""

from __future__ import annotations

from collections.abc import Sequence

from fxprune.axes import ONE, Axis, product
from fxprune.passes.rules.base import Op, Outputs, rule, tensors


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy", "unflatten")
def view(op: Op) -> Outputs:
    """Runs of dimensions with equal products correspond: the same axes, factored anew."""
    value = op.args[0]
    if op.out.dtype != value.dtype:
        return dtype_view(op)
    return reshaped(op, op.axes(value), tuple(op.out.shape))


def reshaped(op: Op, axes: Sequence[Axis], shape: Sequence[int]) -> tuple[Axis, ...]:
    """The axes of a tensor with `axes` viewed as `shape`."""
    if 0 in shape:
        return tuple(op.frozen(size, "a tensor without elements") for size in shape)
    wide = [axis for axis in axes if axis.size != 1]
    result: list[Axis] = []
    run: list[int] = []
    for size in shape:
        if size == 1:
            result.append(ONE)
            continue
        run.append(size)
        result.append(ONE)  # overwritten as soon as the run is complete
        taken = _take(wide, run)
        if taken is None:
            continue
        factors = op.factor(product(taken), run) if run != [a.size for a in taken] else tuple(taken)
        places = [i for i, s in enumerate(shape[: len(result)]) if s != 1][-len(run) :]
        for place, factor in zip(places, factors, strict=True):
            result[place] = factor
        wide = wide[len(taken) :]
        run = []
    return tuple(op.unifier.resolve(axis) for axis in result)


def _take(wide: Sequence[Axis], run: Sequence[int]) -> list[Axis] | None:
    """The shortest prefix of `wide` with as many positions as `run`, if there is one."""
    target = product_of(run)
    total, count = 1, 0
    while total < target and count < len(wide):
        total *= wide[count].size
        count += 1
    return list(wide[:count]) if total == target else None


def product_of(sizes: Sequence[int]) -> int:
    """The product of `sizes`."""
    total = 1
    for size in sizes:
        total *= size
    return total


def dtype_view(op: Op) -> Outputs:
    """A view as another element type changes what the last dimension counts."""
    axes = op.axes(op.args[0])
    if tuple(op.out.shape) == tuple(op.args[0].shape):
        return axes
    op.freeze(axes[-1], "viewed as another element type")
    return (*axes[:-1], op.frozen(op.out.shape[-1], "viewed as another element type"))


@rule("permute")
def permute(op: Op) -> Outputs:
    """Dimensions in another order."""
    axes = op.axes(op.args[0])
    return tuple(axes[dim] for dim in op.arg(1, "dims"))


@rule("transpose", "swapaxes")
def transpose(op: Op) -> Outputs:
    """Two dimensions swapped."""
    axes = list(op.axes(op.args[0]))
    first, second = op.args[1], op.args[2]
    axes[first], axes[second] = axes[second], axes[first]
    return tuple(axes)


@rule("t")
def matrix_transpose(op: Op) -> Outputs:
    """The transpose of a matrix; vectors stay as they are."""
    return tuple(reversed(op.axes(op.args[0])))


@rule("unsqueeze")
def unsqueeze(op: Op) -> Outputs:
    """A new dimension of size 1."""
    axes = list(op.axes(op.args[0]))
    dim = op.arg(1, "dim")
    axes.insert(dim % (len(axes) + 1), ONE)
    return tuple(axes)


@rule("squeeze")
def squeeze(op: Op) -> Outputs:
    """Dimensions of size 1 dropped: all of them, or those that are named."""
    axes = op.axes(op.args[0])
    dims = op.arg(1, "dim")
    named = range(len(axes)) if dims is None else ([dims] if isinstance(dims, int) else dims)
    gone = {d % len(axes) for d in named if len(axes) and axes[d].size == 1}
    return tuple(axis for d, axis in enumerate(axes) if d not in gone)


@rule("expand")
def expand(op: Op) -> Outputs:
    """Dimensions of size 1 are repeated; the copies have an axis of their own."""
    axes = op.axes(op.args[0])
    shape = op.out.shape
    aligned = (ONE,) * (len(shape) - len(axes)) + axes
    return tuple(
        axis if axis.size == size else op.unifier.fresh(size)
        for axis, size in zip(aligned, shape, strict=True)
    )


@rule("repeat")
def repeat(op: Op) -> Outputs:
    """Copies one after the other: `n * axis`; those of one position are an axis of their own."""
    axes = op.axes(op.args[0])
    counts = op.arg(1, "repeats")
    aligned = (ONE,) * (len(counts) - len(axes)) + axes
    return tuple(
        op.unifier.fresh(count)
        if axis.size == 1
        else product((op.frozen(count, "copies made by repeat"), axis))
        for count, axis in zip(counts, aligned, strict=True)
    )


@rule("rot90")
def rotate(op: Op) -> Outputs:
    """A plane turned by quarters; its own positions stay."""
    axes = list(op.axes(op.args[0]))
    turns, (first, second) = op.arg(1, "k", 1), op.arg(2, "dims", (0, 1))
    for dim in (first, second):
        op.freeze(axes[dim], "turned by quarters")
    if turns % 2:
        axes[first], axes[second] = axes[second], axes[first]
    return tuple(axes)


@rule("as_strided")
def as_strided(op: Op) -> Outputs:
    """Explicit strides: the same axes if shape and order are those of the input, else dense."""
    value, size = op.args[0], op.arg(1, "size")
    axes = op.axes(value)
    if tuple(size) == tuple(value.shape) and tuple(op.arg(2, "stride")) == value.stride():
        return axes
    for axis in axes:
        op.freeze(axis, "viewed with explicit strides")
    return [
        tuple(op.frozen(n, "viewed with explicit strides") for n in t.shape)
        for t in tensors(op.out)
    ]


@rule("view_as_complex")
def as_complex(op: Op) -> Outputs:
    """The last dimension holds real and imaginary part."""
    axes = op.axes(op.args[0])
    op.freeze(axes[-1], "real and imaginary part")
    return axes[:-1]


@rule("view_as_real")
def as_real(op: Op) -> Outputs:
    """Real and imaginary part become a last dimension."""
    return (*op.axes(op.args[0]), op.frozen(2, "real and imaginary part"))
