"""Faults in the modules and the graph of the slim model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import fx, nn

from fxprune.passes.constants import operation
from tests.faults.base import Kind, Subject, kind


def _edited(
    subject: Subject, edit: Callable[[fx.GraphModule, fx.Node], bool | None]
) -> Iterator[tuple[str, Subject]]:
    """One slim model for each node that `edit` changes; it returns False where it does not."""
    for number, node in enumerate(subject.slim.graph.nodes):
        damaged = subject.damaged()
        twin = list(damaged.graph.nodes)[number]
        if edit(damaged, twin) is False:
            continue
        damaged.graph.lint()
        damaged.recompile()
        yield node.name, replace(subject, slim=damaged)


def _with_module(types: type | tuple[type, ...], change: Callable[[Any], bool | None]) -> Kind:
    def edit(module: fx.GraphModule, node: fx.Node) -> bool | None:
        if node.op != "call_module":
            return False
        owner = module.get_submodule(str(node.target))
        return change(owner) if isinstance(owner, types) else False

    return lambda subject: _edited(subject, edit)


def _with_call(names: set[str], change: Callable[[fx.Node], bool | None]) -> Kind:
    def edit(module: fx.GraphModule, node: fx.Node) -> bool | None:
        return change(node) if operation(node) in names else False

    return lambda subject: _edited(subject, edit)


@kind
def wrong_group_count(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def change(conv: nn.Conv2d) -> bool | None:
        if conv.groups == 1:
            return False
        conv.groups = 1
        return None

    yield from _with_module(nn.Conv2d, change)(subject)


@kind
def norm_groups_merged(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def change(norm: nn.GroupNorm) -> None:
        norm.num_groups = 1

    yield from _with_module(nn.GroupNorm, change)(subject)


@kind
def norm_epsilon_changed(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def change(norm: Any) -> None:
        norm.eps = 1e-3

    yield from _with_module((nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm), change)(
        subject
    )


@kind
def stride_or_padding_changed(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def change(conv: nn.Conv2d) -> bool | None:
        if conv.kernel_size == (1, 1):
            return False
        conv.padding_mode = "circular"
        conv._reversed_padding_repeated_twice = [1, 1, 1, 1]
        return None

    yield from _with_module(nn.Conv2d, change)(subject)


@kind
def activation_dropped(subject: Subject) -> Iterator[tuple[str, Subject]]:
    names = {"relu", "sigmoid", "tanh", "silu", "softmax"}

    def edit(module: fx.GraphModule, node: fx.Node) -> bool | None:
        is_module = node.op == "call_module" and isinstance(
            module.get_submodule(str(node.target)), (nn.ReLU, nn.SiLU)
        )
        if not is_module and operation(node) not in names:
            return False
        node.replace_all_uses_with(node.args[0])
        module.graph.erase_node(node)
        return None

    yield from _edited(subject, edit)


@kind
def concatenation_turned_around(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def change(node: fx.Node) -> None:
        node.args = (list(reversed(node.args[0])), *node.args[1:])

    yield from _with_call({"cat"}, change)(subject)


@kind
def halves_swapped(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def change(node: fx.Node) -> bool | None:
        source, index = node.args
        if operation(source) not in {"split", "chunk", "unbind"}:
            return False
        node.args = (source, (index + 1) % 2)
        return None

    yield from _with_call({"getitem"}, change)(subject)


@kind
def wrong_branch(subject: Subject) -> Iterator[tuple[str, Subject]]:
    """One operand of a sum or a product is the other one."""

    def change(node: fx.Node) -> bool | None:
        left, right = node.args[:2]
        shapes = [subject.analysis.values[n.name][0] for n in (left, right) if _is_tensor(n)]
        if len(shapes) < 2 or len(shapes[0]) != len(shapes[1]):
            return False
        node.args = (left, left)
        return None

    def _is_tensor(value: Any) -> bool:
        return isinstance(value, fx.Node) and bool(subject.analysis.values[value.name])

    yield from _with_call({"add", "mul"}, change)(subject)


@kind
def sizes_exchanged(subject: Subject) -> Iterator[tuple[str, Subject]]:
    """Two neighbouring numbers of a shape change places, as with heads and their width."""

    def change(node: fx.Node) -> bool | None:
        shape = list(node.args[1:])
        pairs = [
            i
            for i, (a, b) in enumerate(pairwise(shape))
            if isinstance(a, int) and isinstance(b, int) and a != b and min(a, b) > 0
        ]
        if not pairs:
            return False
        i = pairs[-1]
        shape[i], shape[i + 1] = shape[i + 1], shape[i]
        node.args = (node.args[0], *shape)
        return None

    yield from _with_call({"view", "reshape"}, change)(subject)


@kind
def size_off_by_one(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def change(node: fx.Node) -> bool | None:
        place = next((i for i, a in enumerate(node.args) if isinstance(a, int) and a > 1), None)
        if place is None:
            return False
        node.args = tuple(a + 1 if i == place else a for i, a in enumerate(node.args))
        return None

    yield from _with_call({"view", "reshape", "expand"}, change)(subject)


@kind
def split_moved(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def change(node: fx.Node) -> None:
        first, second, *rest = node.args[1]
        node.args = (node.args[0], [first + 1, second - 1, *rest], *node.args[2:])

    yield from _with_call({"split"}, change)(subject)


@kind
def slice_moved(subject: Subject) -> Iterator[tuple[str, Subject]]:
    """Every other position, but starting at the wrong one; or another token."""

    def change(node: fx.Node) -> bool | None:
        source, index = node.args
        if not isinstance(index, tuple):
            return False
        moved = tuple(_moved(entry) for entry in index)
        node.args = (source, moved)
        return moved != index

    def _moved(entry: Any) -> Any:
        if isinstance(entry, slice) and entry.step == 2:
            return slice(1 - (entry.start or 0), None, 2)
        return entry + 1 if isinstance(entry, int) else entry

    yield from _with_call({"getitem"}, change)(subject)


@kind
def index_turned_around(subject: Subject) -> Iterator[tuple[str, Subject]]:
    """Channels are picked in the reverse of their order."""

    def edit(module: fx.GraphModule, node: fx.Node) -> bool | None:
        if node.op != "get_attr" or "_of_slim" not in str(node.target):
            return False
        index = module.get_buffer(str(node.target))
        index.copy_(index.flip(0))
        return None

    yield from _edited(subject, edit)


@kind
def attention_scale_dropped(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def change(node: fx.Node) -> None:
        node.kwargs = {k: v for k, v in node.kwargs.items() if k != "scale"}

    yield from _with_call({"scaled_dot_product_attention"}, change)(subject)


@kind
def number_follows_the_width(subject: Subject) -> Iterator[tuple[str, Subject]]:
    """A number that came from a dense width is taken from the slim one."""

    def change(node: fx.Node) -> bool | None:
        if not isinstance(node.args[1], (int, float)):
            return False
        node.args = (node.args[0], node.args[1] * (3 / 4) ** 0.5)
        return None

    yield from _with_call({"mul", "truediv"}, change)(subject)


@kind
def order_of_dimensions(subject: Subject) -> Iterator[tuple[str, Subject]]:
    """A permutation of dimensions is left out."""

    def edit(module: fx.GraphModule, node: fx.Node) -> bool | None:
        if operation(node) not in {"transpose", "permute"}:
            return False
        node.replace_all_uses_with(node.args[0])
        module.graph.erase_node(node)
        return None

    yield from _edited(subject, edit)


@kind
def reduced_the_wrong_dimension(subject: Subject) -> Iterator[tuple[str, Subject]]:
    def change(node: fx.Node) -> None:
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        wrong = (1, 2) if isinstance(dim, tuple) else -2 if dim == -1 else 0
        node.args, node.kwargs = (node.args[0], wrong), {}

    yield from _with_call({"mean", "softmax"}, change)(subject)


@kind
def layers_exchanged(subject: Subject) -> Iterator[tuple[str, Subject]]:
    """A layer is run with the weights of another of the same shape."""

    def shape(module: nn.Module) -> Any:
        return type(module), [tuple(p.shape) for p in module.parameters()]

    def edit(module: fx.GraphModule, node: fx.Node) -> bool | None:
        if node.op != "call_module" or not isinstance(
            module.get_submodule(str(node.target)), (nn.Linear, nn.Conv2d)
        ):
            return False
        mine = module.get_submodule(str(node.target))
        for other in module.graph.nodes:
            if other.op != "call_module" or other.target == node.target:
                continue
            if shape(module.get_submodule(str(other.target))) == shape(mine):
                node.target = other.target
                return None
        return False

    yield from _edited(subject, edit)
