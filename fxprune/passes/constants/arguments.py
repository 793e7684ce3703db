"""What a node calls, and with which arguments, in whatever form it was captured."""

from __future__ import annotations

from typing import Any

from torch import fx


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


def argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    """Argument `name` of `node`, given by position or by keyword."""
    return node.args[index] if index < len(node.args) else node.kwargs.get(name, default)


def set_argument(node: fx.Node, index: int, name: str, value: Any) -> None:
    """Replace argument `name` of `node` where it stands; as a keyword if it was not given."""
    if index < len(node.args):
        node.args = (*node.args[:index], value, *node.args[index + 1 :])
    else:
        node.kwargs = {**node.kwargs, name: value}
