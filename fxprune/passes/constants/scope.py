"""What a rewriter may ask: axes of results, numbers computed from sizes, and shapes that fit."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from fxprune.axes import Atom, Axes, Axis
from fxprune.passes.constants.arguments import operation
from fxprune.passes.indices import Numbers
from fxprune.passes.infer import Analysis
from fxprune.passes.slimming import Kept

# Queries of a tensor whose answer does not depend on its sizes.
SIZELESS = frozenset({"getattr", "dim", "ndimension", "is_floating_point", "is_complex"})


@dataclass(frozen=True)
class Scope:
    """A graph on its way from dense to slim; nodes are named as in `analysis`."""

    graph: fx.Graph
    analysis: Analysis
    kept: Kept

    def result(self, node: fx.Node, index: int = 0) -> Axes:
        """Axes of tensor number `index` of what `node` yields."""
        return self.analysis.values[node.name][index]

    def results(self, node: fx.Node) -> tuple[Axes, ...]:
        """Axes of every tensor that `node` yields."""
        return self.analysis.values[node.name]

    def source(self, node: fx.Node) -> Axes:
        """Axes of the tensor that `node` works on: its first argument."""
        first = node.args[0]
        assert isinstance(first, fx.Node)
        return self.result(first)

    def number(self, value: Any) -> Any:
        """The dense value of a constant or of a node without tensors."""
        return self.analysis.scalars[value.name] if isinstance(value, fx.Node) else value

    @cached_property
    def width_dependent(self) -> frozenset[fx.Node]:
        """Nodes that hold no tensor and whose value depends on a size that changes."""
        return frozenset(_width_dependent(self))

    @cached_property
    def _input_atoms(self) -> frozenset[Atom]:
        places = [node for node in self.graph.nodes if node.op == "placeholder"]
        return frozenset(
            atom
            for node in places
            for axes in self.analysis.values.get(node.name, ())
            for axis in axes
            for atom in axis.atoms
        )

    @cached_property
    def _one_sample(self) -> bool:
        places = [node for node in self.graph.nodes if node.op == "placeholder"]
        values = [axes for node in places for axes in self.analysis.values.get(node.name, ())]
        return any(axes[0].size == 1 for axes in values if axes)

    def follows_input(self, axis: Axis) -> bool:
        """Whether `axis` may hold a dimension of the model's input, whose size may vary.

        A batch of one leaves no trace in the axes it is folded into, so then any axis may.
        """
        return self._one_sample or any(atom in self._input_atoms for atom in axis.atoms)

    def sizes(self, node: fx.Node, shape: Sequence[Any], axes: Axes) -> tuple[Any, ...]:
        """`shape`, an argument of `node`, with the sizes that `axes` have in the slim model."""
        return tuple(self._size(node, size, axis) for size, axis in zip(shape, axes, strict=False))

    def shape(self, node: fx.Node, shape: Any, axes: Axes) -> Any:
        """As `sizes`, for a shape that may be a node of its own, such as `x.shape`."""
        if not isinstance(shape, fx.Node):
            return self.sizes(node, shape, axes)
        if not any(map(self.kept.touches, axes)) and shape not in self.width_dependent:
            return shape
        with self.graph.inserting_before(node):
            return tuple(
                self.kept.size(axis)
                if self.kept.touches(axis)
                else self.graph.call_function(operator.getitem, (shape, dim))
                for dim, axis in enumerate(axes)
            )

    def _size(self, node: fx.Node, size: Any, axis: Axis) -> Any:
        if not isinstance(size, fx.Node) and size == -1:
            return size
        if not self.kept.touches(axis):
            return self.number(size) if size in self.width_dependent else size
        wanted = self.kept.size(axis)
        if not isinstance(size, fx.Node) or not self.follows_input(axis):
            return wanted
        slim = self.slim_number(size)
        if not slim:  # rounded down, as `channels // 32` is where fewer are left: none to scale
            return wanted
        # Heads folded into the batch: written down, the size would tie the graph to one batch.
        with self.graph.inserting_before(node):
            scaled = self.graph.call_function(operator.mul, (size, wanted))
            return self.graph.call_function(operator.floordiv, (scaled, slim))

    def chosen(self, numbers: Numbers, axis: Axis) -> list[int]:
        """`numbers` of positions of `axis` that stay, counted among those that do."""
        stays = self.kept.indices(axis)
        dense = numbers % axis.size
        return [int(place) for place in np.searchsorted(stays, dense[np.isin(dense, stays)])]

    def index(self, node: fx.Node, index: fx.Node, numbers: Numbers, axis: Axis) -> fx.Node:
        """A constant for `node` to read in place of `index`, which stays as it is for others."""
        root = self.graph.owning_module
        assert root is not None
        names = (f"{index.name}_of_slim_{i}" for i in count())
        name = next(name for name in names if not hasattr(root, name))
        device = next((t.device for t in (*root.buffers(), *root.parameters())), None)
        slim = torch.tensor(self.chosen(numbers, axis), dtype=torch.int64, device=device)
        root.register_buffer(name, slim, persistent=False)
        with self.graph.inserting_before(node):
            return self.graph.get_attr(name)

    def slim_number(self, value: Any) -> Any:
        """What a node without tensors yields in the slim model, for the example inputs."""
        if not isinstance(value, fx.Node):
            return value
        if value not in self.width_dependent:
            return self.number(value)
        source = value.args[0]
        axes = self.analysis.values.get(source.name) if isinstance(source, fx.Node) else None
        if axes:
            shape = tuple(map(self.kept.size, axes[0]))
            dim = value.args[1] if len(value.args) > 1 else value.kwargs.get("dim")
            match operation(value):
                case "size" | "sym_size" if dim is not None:
                    return shape[self.slim_number(dim)]
                case "len":
                    return shape[0]
                case _:
                    return shape
        args = fx.node.map_aggregate(value.args, self.slim_number)
        assert callable(value.target)
        return value.target(*args)

    def dense_number(self, value: Any) -> Any:
        """`value` as the dense model computes it, written where the graph inserts now.

        Sizes that change are constants in it; those that vary with the input are still computed.
        """
        if not isinstance(value, fx.Node) or value not in self.width_dependent:
            return value
        source = value.args[0] if value.args else None
        axes = self.analysis.values.get(source.name) if isinstance(source, fx.Node) else None
        if axes:
            return self._dense_query(value, axes[0])
        args = fx.node.map_aggregate(value.args, self.dense_number)
        if value.op == "call_function" and callable(value.target) and not _nodes(args):
            return value.target(*args)
        if value.target is operator.getitem and isinstance(args[0], tuple):
            return operator.getitem(args[0], cast(Any, args[1]))
        return self.graph.create_node(value.op, value.target, args, dict(value.kwargs))

    def _dense_query(self, query: fx.Node, axes: Axes) -> Any:
        """What the dense model answers to `x.size(1)`, `x.shape`, `x.numel()`, `len(x)`."""
        dim = query.args[1] if len(query.args) > 1 else query.kwargs.get("dim")
        match operation(query):
            case "size" | "sym_size" if isinstance(dim, int):
                return self._dense_size(query.args[0], dim, axes[dim])
            case "len":
                return self._dense_size(query.args[0], 0, axes[0])
            case "size" | "getattr":
                return tuple(self._dense_size(query.args[0], d, a) for d, a in enumerate(axes))
            case "numel" | "nelement":
                count: Any = 1
                for d, axis in enumerate(axes):
                    size = self._dense_size(query.args[0], d, axis)
                    both = isinstance(count, int) and isinstance(size, int)
                    factors = (count, size)
                    count = (
                        count * size if both else self.graph.call_function(operator.mul, factors)
                    )
                return count
            case _:
                return self.number(query)

    def _dense_size(self, tensor: Any, dim: int, axis: Axis) -> Any:
        if self.kept.touches(axis) and not self.follows_input(axis):
            return axis.size
        size = self.graph.call_method("size", (tensor, dim))
        if not self.kept.touches(axis):
            return size
        scaled = self.graph.call_function(operator.mul, (size, axis.size))
        return self.graph.call_function(operator.floordiv, (scaled, self.kept.size(axis)))


def _nodes(values: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(values, found.append)
    return found


def _width_dependent(scope: Scope) -> set[fx.Node]:
    depends: dict[fx.Node, Any] = {}
    for node in scope.graph.nodes:
        if node.name not in scope.analysis.scalars or node.op == "output":
            continue
        source = node.args[0] if node.args else None
        axes = scope.analysis.values.get(source.name) if isinstance(source, fx.Node) else None
        if axes:
            depends[node] = _size_query(node, axes[0], scope.kept)
        elif isinstance(source, fx.Node) and isinstance(depends.get(source), tuple):
            parts, index = depends[source], node.args[-1]
            known = node.target is operator.getitem and isinstance(index, (int, slice))
            depends[node] = parts[index] if known else any(parts)
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
    return name not in SIZELESS and any(touched)


def _any(value: Any) -> bool:
    return any(value) if isinstance(value, tuple) else bool(value)
