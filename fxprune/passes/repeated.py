"""Activations that change nothing, since what they are given is the result of one like them.

Dropping a residual block leaves them: the activation after its addition follows right after the
one before the block.
"""

from __future__ import annotations

from types import MappingProxyType

from torch import fx

from fxprune.passes.layers import activation_of

WITHIN = MappingProxyType(
    {"relu": frozenset({"relu", "relu6"}), "relu6": frozenset({"relu6"})},
)
"""Activations, and those whose results they leave as they are."""


def drop_repeated_activations(module: fx.GraphModule) -> None:
    """Take activations that change nothing out of `module`, in place."""
    modules = dict(module.named_modules())
    for node in list(module.graph.nodes):
        name = activation_of(node, modules)
        source = node.args[0] if node.args else None
        if name not in WITHIN or not isinstance(source, fx.Node):
            continue
        if activation_of(source, modules) in WITHIN[name]:
            node.replace_all_uses_with(source)
            module.graph.erase_node(node)
    module.recompile()
