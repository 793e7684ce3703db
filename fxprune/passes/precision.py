"""A captured model in float64, casts inside the graph included."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx

LOW = frozenset({torch.float32, torch.float16, torch.bfloat16})
# Its arguments are device, type, whether it is on, and more; float64 is no type it takes.
AUTOCAST = torch.ops.higher_order.wrap_with_autocast
CASTS = frozenset({"float", "half", "bfloat16"})


def in_double(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of `module` with float64 parameters, in which no node casts to fewer bits."""
    double = copy.deepcopy(module).double().eval()
    graphs = [m.graph for m in double.modules() if isinstance(m, fx.GraphModule)]
    for node in [node for graph in graphs for node in graph.nodes]:
        if node.op == "call_method" and node.target in CASTS:
            node.target = "double"
        if node.target is AUTOCAST:
            device, dtype, _, *rest = node.args
            node.args = (device, dtype, False, *rest)
        elif node.op in ("call_function", "call_method"):
            node.args = fx.node.map_aggregate(node.args, _widened)
            node.kwargs = fx.node.map_aggregate(node.kwargs, _widened)
    for inner in double.modules():
        if isinstance(inner, fx.GraphModule):
            inner.recompile()
    return double


def _widened(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in LOW else value
