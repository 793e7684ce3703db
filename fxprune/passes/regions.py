"""Regions under `torch.autocast`, made part of the graph around them.

`torch.export` hides what runs under a context manager in a graph of its own, called by one node.
Taken out of it, its nodes stand in the graph like any other, between a node that switches autocast
on and one that switches it back: every pass sees them, and the arithmetic is what it was.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.amp.autocast_mode import _enter_autocast, _exit_autocast

AUTOCAST = torch.ops.higher_order.wrap_with_autocast
SWITCHES = (_enter_autocast, _exit_autocast)


def inline_autocast(root: nn.Module, graph: fx.Graph) -> None:
    """Put the nodes of every region in the place of the node that calls it, nested ones too."""
    waiting = _calls(graph)
    while waiting:
        for call in waiting:
            _inline(root, graph, call)
        waiting = _calls(graph)


def without_autocast(module: fx.GraphModule) -> None:
    """Erase every switch of autocast from `module`, whose formats are then those of its tensors."""
    for node in reversed(list(module.graph.nodes)):
        if node.target in SWITCHES:
            module.graph.erase_node(node)
    module.recompile()


class OpenRegions:
    """Closes, last first, the regions of an interpreted graph that an error left open."""

    def __init__(self) -> None:
        self._open: list[Any] = []

    def see(self, node: fx.Node, result: Any) -> None:
        """A node has run."""
        if node.target is _enter_autocast:
            self._open.append(result)
        elif node.target is _exit_autocast:
            self._open.pop()

    def __enter__(self) -> OpenRegions:
        return self

    def __exit__(self, *error: object) -> None:
        while self._open:
            _exit_autocast(self._open.pop())  # type: ignore[no-untyped-call]


def _calls(graph: fx.Graph) -> list[fx.Node]:
    return [
        node
        for node in graph.nodes
        if node.target is AUTOCAST and all(u.target is operator.getitem for u in node.users)
    ]


def _inline(root: nn.Module, graph: fx.Graph, call: fx.Node) -> None:
    settings, region, given = call.args[:4], call.args[4], call.args[5:]
    assert isinstance(region, fx.Node)
    body = root.get_submodule(str(region.target))
    assert isinstance(body, fx.GraphModule)
    with graph.inserting_before(call):
        entered = graph.call_function(_enter_autocast, settings)
        results = _copied(root, graph, body, str(region.target), given)
        graph.call_function(_exit_autocast, (entered,))
    for user in list(call.users):
        user.replace_all_uses_with(results[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(call)
    if not region.users:
        graph.erase_node(region)


def _copied(
    root: nn.Module, graph: fx.Graph, body: fx.GraphModule, path: str, given: tuple[Any, ...]
) -> Mapping[Any, Any]:
    """Copy the nodes of `body` to where `graph` inserts now; what it returns, by number."""
    copies: dict[fx.Node, Any] = {}
    arguments = iter(given)
    for node in body.graph.nodes:
        if node.op == "placeholder":
            copies[node] = next(arguments)
        elif node.op == "get_attr":
            name = f"{path}_{node.target}".replace(".", "_")
            held = operator.attrgetter(str(node.target))(body)
            if isinstance(held, Tensor):
                root.register_buffer(name, held.detach().clone(), persistent=False)
            else:
                setattr(root, name, held)
            copies[node] = graph.get_attr(name)
        elif node.op == "output":
            returned = fx.node.map_arg(node.args[0], lambda n: copies[n])
            return dict(enumerate(returned))
        else:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    raise AssertionError("a graph without an output")
