"""A captured model in float64, casts inside the graph included."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.passes.regions import without_autocast

LOW = frozenset({torch.float32, torch.float16, torch.bfloat16})
LOW_COMPLEX = frozenset({torch.complex64, torch.complex32})
CASTS = frozenset({"float", "half", "bfloat16"})


def in_double(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of `module` with float64 parameters, in which no node casts to fewer bits.

    Autocast leaves float64 alone, so its switches are left out: two models that are interpreted in
    turns would otherwise switch it for each other.
    """
    double = copy.deepcopy(module).double().eval()
    double._apply(_widened_tensor)  # type: ignore[no-untyped-call]
    graphs = [m.graph for m in double.modules() if isinstance(m, fx.GraphModule)]
    for node in [node for graph in graphs for node in graph.nodes]:
        if node.op == "call_method" and node.target in CASTS:
            node.target = "double"
        if node.op in ("call_function", "call_method"):
            node.args = fx.node.map_aggregate(node.args, _widened)
            node.kwargs = fx.node.map_aggregate(node.kwargs, _widened)
    for inner in double.modules():
        if isinstance(inner, fx.GraphModule):
            without_autocast(inner)
    return double


def _widened_tensor(tensor: Tensor) -> Tensor:
    """Complex numbers too, which `Module.double` leaves as they are."""
    return tensor.to(torch.complex128) if tensor.dtype in LOW_COMPLEX else tensor


def _widened(value: Any) -> Any:
    if isinstance(value, torch.dtype) and value in LOW_COMPLEX:
        return torch.complex128
    return torch.float64 if isinstance(value, torch.dtype) and value in LOW else value
