"""One rewriter for each family of operations that takes sizes, counts or positions."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.axes import ONE, Axes, Axis, product
from fxprune.passes.constants.arguments import argument, operation, set_argument
from fxprune.passes.constants.scope import Scope
from fxprune.passes.indices import line
from fxprune.passes.infer import Analysis
from fxprune.passes.rules.pieces import stride_block
from fxprune.passes.slimming import Kept

aten = torch.ops.aten

Rewriter = Callable[[Scope, fx.Node], None]
REWRITERS: dict[str, Rewriter] = {}


def rewriter(*names: str) -> Callable[[Rewriter], Rewriter]:
    """Decorator: how the constants of operations called `names` are rewritten."""

    def add(rewrite: Rewriter) -> Rewriter:
        for name in names:
            if name in REWRITERS:
                raise LookupError(f"two rewriters for {name!r}")
            REWRITERS[name] = rewrite
        return rewrite

    return add


def rewrite_constants(graph: fx.Graph, analysis: Analysis, kept: Kept) -> None:
    """Rewrite every shape constant of `graph` in place; nodes are named as in `analysis`."""
    scope = Scope(graph, analysis, kept)
    for node in list(graph.nodes):
        if operation(node) == "_assert" and _depends_on_widths(scope, node):
            graph.erase_node(node)  # it holds for the dense widths, which it was written for
            continue
        if node.op not in ("call_function", "call_method") or not analysis.values.get(node.name):
            continue
        rewrite = REWRITERS.get(operation(node) or "")
        if rewrite is not None:
            rewrite(scope, node)
        _dense_numbers(scope, node)


def _depends_on_widths(scope: Scope, node: fx.Node) -> bool:
    return any(used in scope.width_dependent for used in node.all_input_nodes)


def _dense_numbers(scope: Scope, node: fx.Node) -> None:
    """Numbers that a tensor operation takes from a changed size keep their dense value."""
    for used in node.all_input_nodes:
        if used in scope.width_dependent:
            with scope.graph.inserting_before(node):
                dense = scope.dense_number(used)
            replace = lambda n, used=used, dense=dense: dense if n is used else n  # noqa: E731
            node.args = fx.node.map_aggregate(node.args, replace)
            node.kwargs = fx.node.map_aggregate(node.kwargs, replace)


def shape_argument(
    scope: Scope, node: fx.Node, index: int, axes: Axes, names: Sequence[str] = ("size", "shape")
) -> None:
    """Rewrite a shape given as `f(x, 2, 3)`, `f(x, (2, 3))`, `f(x, x.shape)` or by keyword."""
    if index >= len(node.args):
        name = next((n for n in names if n in node.kwargs), None)
        if name is not None:
            node.kwargs = {**node.kwargs, name: scope.shape(node, node.kwargs[name], axes)}
        return
    first = node.args[index]
    if isinstance(first, (tuple, list)) or isinstance(scope.number(first), (tuple, list)):
        set_argument(node, index, names[0], scope.shape(node, first, axes))
        return
    count = len(axes)
    shape = scope.sizes(node, node.args[index : index + count], axes)
    node.args = (*node.args[:index], *shape, *node.args[index + count :])


@rewriter("view", "reshape", "_unsafe_view", "view_copy", "expand", "broadcast_to")
@rewriter("new_zeros", "new_ones", "new_empty", "new_full")
def shaped(scope: Scope, node: fx.Node) -> None:
    """The shape is the second argument, the result's axes say what it must be."""
    shape_argument(scope, node, 1, scope.result(node))


@rewriter("zeros", "ones", "empty", "full")
def create(scope: Scope, node: fx.Node) -> None:
    """The shape is the first argument."""
    shape_argument(scope, node, 0, scope.result(node))


@rewriter("unflatten")
def unflatten(scope: Scope, node: fx.Node) -> None:
    """`unflatten(x, dim, sizes)`: the sizes of the new dimensions alone."""
    axes = scope.result(node)
    source = scope.source(node)
    first = argument(node, 1, "dim") % len(source)
    new = axes[first : first + len(axes) - len(source) + 1]
    shape_argument(scope, node, 2, new, ("sizes",))


@rewriter("repeat", "tile")
def repeat(scope: Scope, node: fx.Node) -> None:
    """Copies of one position are an axis, of which fewer may stay; all other counts stay."""
    axes = scope.result(node)
    source = (ONE,) * (len(axes) - len(scope.source(node))) + scope.source(node)
    counts = tuple(a if one.size == 1 else ONE for a, one in zip(axes, source, strict=True))
    given = scope.number(argument(node, 1, "repeats", node.kwargs.get("dims")))
    fewer = len(given) if isinstance(given, (tuple, list)) else len(node.args) - 1
    shape_argument(scope, node, 1, counts[-fewer:], ("repeats", "dims"))


@rewriter("repeat_interleave")
def repeat_interleave(scope: Scope, node: fx.Node) -> None:
    """`repeat_interleave(x, repeats, dim)`: the copies are an axis too, and may be fewer now."""
    repeats, dim = argument(node, 1, "repeats"), argument(node, 2, "dim")
    source = scope.source(node)
    before = scope.kept.size(product(source) if dim is None else source[dim])
    after = scope.kept.size(scope.result(node)[dim or 0])
    if isinstance(scope.number(repeats), int) and scope.kept.touches(scope.result(node)[dim or 0]):
        set_argument(node, 1, "repeats", after // before)
        node.kwargs = {name: v for name, v in node.kwargs.items() if name != "output_size"}


@rewriter("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_chunk", "unsafe_split")
def split(scope: Scope, node: fx.Node) -> None:
    """Pieces that were equal may no longer be: all become `split` with explicit sizes."""
    _split_by_sizes(scope, node, argument(node, 2, "dim", 0))


@rewriter("hsplit", "vsplit", "dsplit")
def split_by_name(scope: Scope, node: fx.Node) -> None:
    """As `split`; the dimension is part of the name."""
    dim = {"hsplit": 1, "vsplit": 0, "dsplit": 2}[operation(node) or ""]
    rank = len(scope.source(node))
    _split_by_sizes(scope, node, min(dim, rank - 1))


def _split_by_sizes(scope: Scope, node: fx.Node, dim: int) -> None:
    source = scope.source(node)
    if not scope.kept.touches(source[dim]):
        return
    sizes = [scope.kept.size(axes[dim]) for axes in scope.results(node)]
    is_aten = hasattr(node.target, "overloadpacket")
    node.target = (
        aten.split_with_sizes.default
        if is_aten
        else ("split" if node.op == "call_method" else torch.split)
    )
    node.args, node.kwargs = (node.args[0], sizes, dim), {}


@rewriter("squeeze")
def squeeze(scope: Scope, node: fx.Node) -> None:
    """A dimension with one position left is not one that had only one: it is not dropped."""
    axes = scope.source(node)
    dims = argument(node, 1, "dim")
    named = range(len(axes)) if dims is None else [dims] if isinstance(dims, int) else dims
    if any(axes[d].size != 1 and scope.kept.size(axes[d]) == 1 for d in named):
        dropped = tuple(sorted({d % len(axes) for d in named if axes[d].size == 1}))
        if hasattr(node.target, "overloadpacket"):
            node.target = aten.squeeze.dims
        node.args, node.kwargs = (node.args[0], dropped), {}


@rewriter("pad", "constant_pad_nd")
def pad(scope: Scope, node: fx.Node) -> None:
    """Negative padding cuts positions off, of which fewer may be left."""
    axes = scope.source(node)
    amounts = list(argument(node, 1, "pad"))
    for place in range(0, len(amounts), 2):
        axis = axes[len(axes) - 1 - place // 2]
        before, after = (scope.number(amount) for amount in amounts[place : place + 2])
        if before < 0:
            amounts[place] = -scope.kept.before(axis, -before)
        if after < 0:
            left = scope.kept.before(axis, axis.size + after)
            amounts[place + 1] = left - scope.kept.size(axis)
    if any(map(scope.kept.touches, axes)):
        set_argument(node, 1, "pad", amounts)


@rewriter("narrow")
def narrow(scope: Scope, node: fx.Node) -> None:
    """`narrow(x, dim, start, length)`."""
    dim = argument(node, 1, "dim")
    axis = scope.source(node)[dim]
    if scope.kept.touches(axis):
        start = scope.number(argument(node, 2, "start"))
        start = start + axis.size if start < 0 else start
        set_argument(node, 2, "start", scope.kept.before(axis, start))
        set_argument(node, 3, "length", scope.kept.size(scope.result(node)[dim]))


@rewriter("select")
def select(scope: Scope, node: fx.Node) -> None:
    """`select(x, dim, index)`: the chosen position stays, its number may change."""
    dim = argument(node, 1, "dim")
    axis = scope.source(node)[dim]
    set_argument(node, 2, "index", _index(scope, argument(node, 2, "index"), axis))


@rewriter("slice", "slice_copy")
def aten_slice(scope: Scope, node: fx.Node) -> None:
    """`aten.slice(x, dim, start, end, step)`."""
    dim = argument(node, 1, "dim", 0)
    axis = scope.source(node)[dim]
    if not scope.kept.touches(axis):
        return
    given = slice(argument(node, 2, "start"), argument(node, 3, "end"), argument(node, 4, "step"))
    found = _slice(scope, given, axis)
    if isinstance(found, list):
        node.target, node.kwargs = operator.getitem, {}
        node.args = (node.args[0], (*(slice(None),) * (dim % len(scope.source(node))), found))
        return
    for place, name, bound in ((2, "start", found.start), (3, "end", found.stop)):
        if bound is not None:
            set_argument(node, place, name, bound)


@rewriter("getitem")
def getitem(scope: Scope, node: fx.Node) -> None:
    """`x[...]` on a tensor: bounds of slices and single indices count the positions that stay."""
    source, index = node.args
    if not isinstance(source, fx.Node) or not _is_tensor(scope, source):
        return
    entries: tuple[Any, ...] = index if isinstance(index, tuple) else (index,)
    axes = scope.result(source)
    consumed = sum(1 for e in entries if e is not None and e is not Ellipsis)
    new: list[Any] = []
    dim = 0
    for entry in entries:
        if entry is None:
            new.append(entry)
            continue
        if entry is Ellipsis:
            new.append(entry)
            dim += len(axes) - consumed
            continue
        found = _entry(scope, node, entry, axes[dim])
        if isinstance(entry, slice) and isinstance(found, list):
            # Picked beforehand: beside other index tensors, a list would not stand for itself.
            with scope.graph.inserting_before(node):
                picking: Any = (source, (*(slice(None),) * dim, found))
                source = scope.graph.call_function(operator.getitem, picking)
            found = slice(None)
        new.append(found)
        dim += 1
    node.args = (source, tuple(new) if isinstance(index, tuple) else new[0])


def _is_tensor(scope: Scope, source: fx.Node) -> bool:
    """Whether `source` is one tensor, rather than a tuple of them."""
    several = ("split", "chunk", "unbind", "tensor_split", "split_with_sizes", "meshgrid")
    return len(scope.results(source)) == 1 and operation(source) not in several


def _entry(scope: Scope, node: fx.Node, entry: Any, axis: Axis) -> Any:
    if not scope.kept.touches(axis):
        return entry
    if isinstance(entry, slice):
        return _slice(scope, entry, axis)
    if isinstance(entry, list):
        return scope.chosen(np.asarray(list(map(scope.number, entry))), axis)
    if isinstance(entry, fx.Node) and entry.name in scope.analysis.indices:
        return scope.index(node, entry, scope.analysis.indices[entry.name], axis)
    return _index(scope, entry, axis)


@rewriter("index")
def aten_index(scope: Scope, node: fx.Node) -> None:
    """`aten.index(x, [None, index])`."""
    indices: Any = node.args[1]
    pairs = zip(indices, scope.source(node), strict=False)
    found = [None if i is None else _entry(scope, node, i, axis) for i, axis in pairs]
    node.args = (node.args[0], found)


@rewriter("index_select")
def index_select(scope: Scope, node: fx.Node) -> None:
    """`index_select(x, dim, index)`."""
    axis = scope.source(node)[argument(node, 1, "dim")]
    set_argument(node, 2, "index", _entry(scope, node, argument(node, 2, "index"), axis))


@rewriter("gather")
def gather(scope: Scope, node: fx.Node) -> None:
    """An index that is the same at every place of the other dimensions selects along one."""
    dim = argument(node, 1, "dim")
    axis = scope.source(node)[dim]
    if not scope.kept.touches(axis):
        return
    index = argument(node, 2, "index")
    numbers = line(scope.analysis.indices[index.name], dim)
    assert numbers is not None, "or the axis would have been kept whole"
    found = scope.index(node, index, numbers, axis)
    is_method = node.op == "call_method"
    is_aten = hasattr(node.target, "overloadpacket")
    select = aten.index_select.default if is_aten else torch.index_select
    node.target = "index_select" if is_method else select
    node.args, node.kwargs = (node.args[0], dim, found), {}


def _slice(scope: Scope, given: slice, axis: Axis) -> slice | list[int]:
    """`given` with bounds that count the positions that stay; a list where no slice is left."""
    dense = slice(*map(scope.number, (given.start, given.stop, given.step)))
    start, stop, step = dense.indices(axis.size)
    length = len(range(start, stop, step))
    if step == 1 or length <= 1:
        return slice(
            given.start if given.start is None else scope.kept.before(axis, start),
            given.stop if given.stop is None else scope.kept.before(axis, max(start, stop)),
            given.step,
        )
    # Strides that stay do so whole, so the first of them has the slice's first position too.
    block = stride_block(start, length, step, axis.size)
    if block is None:
        return scope.chosen(np.arange(start, stop, step), axis)
    first = scope.kept.before(axis, block) + start - block
    return slice(first, scope.kept.before(axis, block + step * length), given.step)


def _index(scope: Scope, index: Any, axis: Axis) -> Any:
    dense = scope.number(index)
    if not isinstance(dense, int) or not scope.kept.touches(axis):
        return index
    return scope.kept.before(axis, dense + axis.size if dense < 0 else dense)


@rewriter("layer_norm", "rms_norm")
def normalized_shape(scope: Scope, node: fx.Node) -> None:
    """The normalised shape is that of the last dimensions of the input."""
    shape = argument(node, 1, "normalized_shape")
    count = len(scope.number(shape))
    axes = scope.source(node)[-count:]
    set_argument(node, 1, "normalized_shape", scope.shape(node, shape, axes))


@rewriter("group_norm")
def group_norm(scope: Scope, node: fx.Node) -> None:
    """As many groups as keep any channel."""
    _set_groups(scope, node, 1, "num_groups", scope.source(node)[1])


@rewriter("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(scope: Scope, node: fx.Node) -> None:
    """As many groups as keep any channel."""
    _set_groups(scope, node, 1, "groups", scope.source(node)[1])


@rewriter("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolution(scope: Scope, node: fx.Node) -> None:
    """As many groups as keep any channel."""
    _set_groups(scope, node, 6, "groups", scope.source(node)[-_places(node) - 1])


@rewriter("convolution")
def aten_convolution(scope: Scope, node: fx.Node) -> None:
    """As many groups as keep any channel; `groups` is the last of nine arguments."""
    _set_groups(scope, node, 8, "groups", scope.source(node)[1])


def _places(node: fx.Node) -> int:
    return int((operation(node) or "")[-2])


def _set_groups(scope: Scope, node: fx.Node, index: int, name: str, channels: Axis) -> None:
    groups = argument(node, index, name, 1)
    dense = scope.number(groups)
    if dense > 1 and scope.kept.touches(channels):
        set_argument(node, index, name, scope.kept.runs(channels, channels.size // dense))


@rewriter("scaled_dot_product_attention")
def attention(scope: Scope, node: fx.Node) -> None:
    """The scale is `1/sqrt(head width)` of the dense model: written down, it stays so."""
    width = scope.source(node)[-1]
    if argument(node, 6, "scale") is None and scope.kept.touches(width):
        node.kwargs = {**node.kwargs, "scale": 1.0 / math.sqrt(width.size)}
