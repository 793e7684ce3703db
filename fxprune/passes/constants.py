"""Shape constants of a captured graph, re-evaluated from the axes of what each node yields.

`view(b, 12, 64)`, `split(256)`, `x[:, 64:]`, `groups=32`, `normalized_shape` are written for the dense
widths. Each rewriter below replaces the entries whose axis loses positions, and only those: `-1` and
sizes computed at run time stay, so a graph keeps taking the batch sizes it took.

Numbers that come from a width but are not a shape (the `1/sqrt(d)` of attention) are no business of
the slim network: they keep their dense value.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fxprune.axes import Axes, Axis, atoms
from fxprune.passes.infer import Analysis
from fxprune.passes.slimming import Kept

aten = torch.ops.aten


@dataclass
class Scope:
    """What a rewriter may ask about the graph."""

    graph: fx.Graph
    analysis: Analysis
    kept: Kept
    width_dependent: set[fx.Node] = field(default_factory=set)

    def result(self, node: fx.Node, index: int = 0) -> Axes:
        """Axes of tensor number `index` of what `node` yields."""
        return self.analysis.values[node.name][index]

    def results(self, node: fx.Node) -> tuple[Axes, ...]:
        """Axes of every tensor that `node` yields."""
        return self.analysis.values[node.name]

    def number(self, value: Any) -> Any:
        """The dense value of a constant or of a node without tensors."""
        return self.analysis.scalars[value.name] if isinstance(value, fx.Node) else value

    def follows_input(self, axis: Axis) -> bool:
        """Whether `axis` holds a dimension of the model's input, whose size may vary."""
        reasons = (self.analysis.reasons.get(atom) for atom in atoms(axis))
        return any(reason is not None and reason.rule == "input" for reason in reasons)

    def sizes(self, shape: Sequence[Any], axes: Axes) -> tuple[Any, ...]:
        """`shape`, constant where its axis loses positions."""
        return tuple(map(self._size, shape, axes))

    def _size(self, size: Any, axis: Axis) -> Any:
        if not isinstance(size, fx.Node) and size == -1:
            return size
        if self.kept.touches(axis):
            return self.kept.size(axis)
        return self.number(size) if size in self.width_dependent else size


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


def operation(node: fx.Node) -> str | None:
    """The name of the tensor operation that `node` calls, whatever its form; None for modules."""
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return None
    packet = getattr(node.target, "overloadpacket", None)
    if packet is not None:
        return str(packet.__name__)
    return getattr(node.target, "__name__", None)


def rewrite_constants(graph: fx.Graph, analysis: Analysis, kept: Kept) -> None:
    """Rewrite every shape constant of `graph` in place; nodes are named as in `analysis`."""
    scope = Scope(graph, analysis, kept)
    scope.width_dependent = width_dependent(graph, analysis, kept)
    for node in list(graph.nodes):
        if node.op not in ("call_function", "call_method") or not analysis.values.get(node.name):
            continue
        rewrite = REWRITERS.get(operation(node) or "")
        if rewrite is not None:
            rewrite(scope, node)
        _dense_numbers(scope, node)


# -- numbers computed from sizes ---------------------------------------------------------------------


def width_dependent(graph: fx.Graph, analysis: Analysis, kept: Kept) -> set[fx.Node]:
    """Nodes that hold no tensor and whose value depends on a size that changes."""
    depends: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.name not in analysis.scalars or node.op == "output":
            continue
        source = node.args[0] if node.args else None
        axes = analysis.values.get(source.name) if isinstance(source, fx.Node) else None
        if axes:
            depends[node] = _size_query(node, axes[0], kept)
        elif node.target is operator.getitem and isinstance(depends.get(source), tuple):
            index = node.args[1]
            known = isinstance(index, (int, slice))
            depends[node] = depends[source][index] if known else any(depends[source])
        else:
            depends[node] = any(_any(depends.get(n, False)) for n in node.all_input_nodes)
    return {node for node, changed in depends.items() if _any(changed)}


def _size_query(node: fx.Node, axes: Axes, kept: Kept) -> Any:
    """Which parts of the answer of `x.shape`, `x.size(1)`, `len(x)`, ... change."""
    touched = tuple(kept.touches(axis) for axis in axes)
    name = operation(node)
    if name == "getattr" and node.args[1] == "shape":
        return touched
    if name in ("size", "sym_size"):
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        if dim is None:
            return touched
        return touched[dim] if isinstance(dim, int) else any(touched)
    if name == "len":
        return touched[0]
    if name in ("getattr", "dim", "device", "is_floating_point", "ndimension"):
        return False
    return any(touched)


def _any(value: Any) -> bool:
    return any(value) if isinstance(value, tuple) else bool(value)


def _dense_numbers(scope: Scope, node: fx.Node) -> None:
    """Numbers that a tensor operation takes from a changed size keep their dense value."""
    for used in node.all_input_nodes:
        if used in scope.width_dependent:
            dense = scope.number(used)
            replace = lambda n, used=used, dense=dense: dense if n is used else n  # noqa: E731
            node.args = fx.map_arg(node.args, replace)
            node.kwargs = fx.map_arg(node.kwargs, replace)


# -- arguments by name or position -------------------------------------------------------------------


def argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    """Argument `name` of `node`, given by position or by keyword."""
    return node.args[index] if index < len(node.args) else node.kwargs.get(name, default)


def set_argument(node: fx.Node, index: int, name: str, value: Any) -> None:
    """Replace argument `name` of `node` where it stands; as a keyword if it was not given."""
    if index < len(node.args):
        node.args = (*node.args[:index], value, *node.args[index + 1 :])
    else:
        node.kwargs = {**node.kwargs, name: value}


def shape_argument(
    scope: Scope, node: fx.Node, index: int, axes: Axes, names: Sequence[str] = ("size", "shape")
) -> None:
    """Rewrite a shape given as `f(x, 2, 3)`, `f(x, (2, 3))`, `f(x, x.shape)` or by keyword."""
    if index >= len(node.args):
        name = next((n for n in names if n in node.kwargs), None)
        if name is not None:
            node.kwargs = {**node.kwargs, name: _shape(scope, node, node.kwargs[name], axes)}
        return
    first = node.args[index]
    if isinstance(first, (tuple, list)) or isinstance(scope.number(first), (tuple, list)):
        set_argument(node, index, names[0], _shape(scope, node, first, axes))
        return
    count = len(axes)
    shape = scope.sizes(node.args[index : index + count], axes)
    node.args = (*node.args[:index], *shape, *node.args[index + count :])


def _shape(scope: Scope, node: fx.Node, shape: Any, axes: Axes) -> Any:
    if not isinstance(shape, fx.Node):
        return scope.sizes(shape, axes)
    if not any(map(scope.kept.touches, axes)) and shape not in scope.width_dependent:
        return shape
    with scope.graph.inserting_before(node):
        entries = [
            scope.kept.size(axis)
            if scope.kept.touches(axis)
            else scope.graph.call_function(operator.getitem, (shape, dim))
            for dim, axis in enumerate(axes)
        ]
    return tuple(entries)


# -- one rewriter per family of operations -----------------------------------------------------------


@rewriter("view", "reshape", "_unsafe_view", "view_copy")
def reshape(scope: Scope, node: fx.Node) -> None:
    """The shape is the second argument, the result's axes say what it must be.

    A dimension that holds the batch beside slimmed channels (heads folded into the batch) is left
    for `view` to find out: written down, it would tie the graph to one batch size.
    """
    axes = scope.result(node)
    mixed = [scope.kept.touches(axis) and scope.follows_input(axis) for axis in axes]
    shape_argument(scope, node, 1, axes)
    if any(mixed):
        entries = list(node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:])
        if -1 not in [entry for entry in entries if isinstance(entry, int)]:
            entries[mixed.index(True)] = -1
            node.args = (node.args[0], entries)


@rewriter("expand", "broadcast_to", "new_zeros", "new_ones", "new_empty", "new_full")
def expand(scope: Scope, node: fx.Node) -> None:
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
    sizes = argument(node, 2, "sizes")
    dim = argument(node, 1, "dim")
    source = scope.result(node.args[0])
    first = dim % len(source)
    new = axes[first : first + len(axes) - len(source) + 1]
    if not isinstance(sizes, (tuple, list)):
        sizes = node.args[2:]
        node.args = node.args[:2]
    set_argument(node, 2, "sizes", scope.sizes(sizes, new))


@rewriter("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_chunk", "unsafe_split")
def split(scope: Scope, node: fx.Node) -> None:
    """Pieces that were equal may no longer be: all become `split` with explicit sizes."""
    dim = argument(node, 2, "dim", 0)
    source = scope.result(node.args[0])
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


@rewriter("narrow")
def narrow(scope: Scope, node: fx.Node) -> None:
    """`narrow(x, dim, start, length)`."""
    dim = argument(node, 1, "dim")
    axis = scope.result(node.args[0])[dim]
    if scope.kept.touches(axis):
        start = scope.number(argument(node, 2, "start"))
        start = start + axis.size if start < 0 else start
        set_argument(node, 2, "start", scope.kept.before(axis, start))
        set_argument(node, 3, "length", scope.kept.size(scope.result(node)[dim]))


@rewriter("select")
def select(scope: Scope, node: fx.Node) -> None:
    """`select(x, dim, index)`: the chosen position stays, its number may change."""
    dim = argument(node, 1, "dim")
    axis = scope.result(node.args[0])[dim]
    set_argument(node, 2, "index", _index(scope, argument(node, 2, "index"), axis))


@rewriter("slice", "slice_copy")
def aten_slice(scope: Scope, node: fx.Node) -> None:
    """`aten.slice(x, dim, start, end, step)`."""
    dim = argument(node, 1, "dim", 0)
    axis = scope.result(node.args[0])[dim]
    if not scope.kept.touches(axis):
        return
    for place, name in ((2, "start"), (3, "end")):
        bound = argument(node, place, name)
        if bound is not None:
            set_argument(node, place, name, _bound(scope, bound, axis))


@rewriter("getitem")
def getitem(scope: Scope, node: fx.Node) -> None:
    """`x[...]` on a tensor: bounds of slices and single indices count the positions that stay."""
    source, index = node.args
    if not isinstance(source, fx.Node) or not _is_tensor(scope, source):
        return
    entries = index if isinstance(index, tuple) else (index,)
    axes = scope.result(source)
    consumed = sum(1 for e in entries if e is not None and e is not Ellipsis)
    new, dim = [], 0
    for entry in entries:
        if entry is None:
            new.append(entry)
            continue
        if entry is Ellipsis:
            new.append(entry)
            dim += len(axes) - consumed
            continue
        new.append(_entry(scope, entry, axes[dim]))
        dim += 1
    node.args = (source, tuple(new) if isinstance(index, tuple) else new[0])


def _is_tensor(scope: Scope, source: fx.Node) -> bool:
    """Whether `source` is one tensor, rather than a tuple of them."""
    several = ("split", "chunk", "unbind", "tensor_split", "split_with_sizes", "meshgrid")
    return len(scope.results(source)) == 1 and operation(source) not in several


def _entry(scope: Scope, entry: Any, axis: Axis) -> Any:
    if not scope.kept.touches(axis):
        return entry
    if isinstance(entry, slice):
        start, stop = (
            bound if bound is None else _bound(scope, bound, axis)
            for bound in (entry.start, entry.stop)
        )
        return slice(start, stop, entry.step)
    return _index(scope, entry, axis)


def _bound(scope: Scope, bound: Any, axis: Axis) -> int:
    position = scope.number(bound)
    position = position + axis.size if position < 0 else position
    return scope.kept.before(axis, max(0, min(position, axis.size)))


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
    axes = scope.result(node.args[0])[-count:]
    set_argument(node, 1, "normalized_shape", _shape(scope, node, shape, axes))


@rewriter("group_norm")
def group_norm(scope: Scope, node: fx.Node) -> None:
    """As many groups as keep any channel."""
    _set_groups(scope, node, 1, "num_groups", scope.result(node.args[0])[1])


@rewriter("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(scope: Scope, node: fx.Node) -> None:
    """As many groups as keep any channel."""
    _set_groups(scope, node, 1, "groups", scope.result(node.args[0])[1])


@rewriter("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolution(scope: Scope, node: fx.Node) -> None:
    """As many groups as keep any channel."""
    _set_groups(scope, node, 6, "groups", scope.result(node.args[0])[-_places(node) - 1])


@rewriter("convolution")
def aten_convolution(scope: Scope, node: fx.Node) -> None:
    """As many groups as keep any channel; `groups` is the last of nine arguments."""
    _set_groups(scope, node, 8, "groups", scope.result(node.args[0])[1])


def _places(node: fx.Node) -> int:
    return int((operation(node) or "")[-2])


def _set_groups(scope: Scope, node: fx.Node, index: int, name: str, channels: Axis) -> None:
    groups = argument(node, index, name, 1)
    dense = scope.number(groups)
    if dense > 1 and scope.kept.touches(channels):
        set_argument(node, index, name, scope.kept.runs(channels, channels.size // dense))


@rewriter("scaled_dot_product_attention")
def attention(scope: Scope, node: fx.Node) -> None:
    """The scale is `1/sqrt(head width)` of the dense model; write it down before the width changes."""
    width = scope.result(node.args[0])[-1]
    if argument(node, 6, "scale") is None and scope.kept.touches(width):
        node.kwargs = {**node.kwargs, "scale": 1.0 / math.sqrt(width.size)}
