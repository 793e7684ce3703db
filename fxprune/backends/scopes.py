"""A module in the form that `torch.export` takes for every backend, and the way back to its nodes.

Exporters number operators afresh, but they record the stack of module calls that each came from.
So every node of a captured graph is run inside the call of an empty module that carries its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.backends.signature import Signature

_PREFIX = "node_"


def positional(module: nn.Module) -> nn.Module:
    """A module that computes the same and takes `*inputs`, whatever its forward calls them."""
    if isinstance(module, fx.GraphModule):
        return _ScopedGraph(module)
    return _Positional(module)


def input_names(module: nn.Module, count: int) -> list[str]:
    """Names for the inputs of an exported model: those of a captured graph, or numbers."""
    if isinstance(module, fx.GraphModule):
        return [node.name for node in module.graph.nodes if node.op == "placeholder"][:count]
    return [f"input_{index}" for index in range(count)]


def node_of(scopes: Sequence[str]) -> str | None:
    """The fx node that a stack of module names leads through, else the innermost module path."""
    for scope in scopes:
        if scope.startswith(_PREFIX):
            return scope.removeprefix(_PREFIX)
    paths = [scope for scope in scopes[:-1] if scope.startswith("module.")]
    return paths[-1].removeprefix("module.") if paths else None


def batch_shapes(
    inputs: tuple[Tensor, ...], signature: Signature
) -> tuple[tuple[Tensor, ...], tuple[Any, ...] | None]:
    """Inputs to export with and their `dynamic_shapes`: the batch varies if that is asked for."""
    if signature.batch_range is None:
        return inputs, None
    # A batch of 1 would be taken for a constant, so a second sample is put beside it.
    pairs = tuple(
        torch.cat([tensor, tensor]) if batched and tensor.shape[0] == 1 else tensor
        for tensor, batched in zip(inputs, signature.batched, strict=True)
    )
    low, high = signature.batch_range
    free = {0: torch.export.Dim.AUTO(min=low, max=high)}
    return pairs, (tuple(free if batched else None for batched in signature.batched),)


class _Positional(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.train(module.training)

    def forward(self, *inputs: Tensor) -> Any:
        return self.module(*inputs)


class _ScopedGraph(_Positional):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        for node in module.graph.nodes:
            if node.op.startswith("call_"):
                self.add_module(_PREFIX + node.name, _Scope())
        self.train(module.training)

    def forward(self, *inputs: Tensor) -> Any:
        return _ScopedInterpreter(self).run(*inputs)


class _Scope(nn.Module):
    def forward(self, call: Callable[[], Any]) -> Any:
        return call()


class _ScopedInterpreter(fx.Interpreter):
    def __init__(self, scoped: _ScopedGraph) -> None:
        super().__init__(scoped.module)
        self.scopes = dict(scoped.named_children())

    def run_node(self, n: fx.Node) -> Any:
        run = super().run_node
        scope = self.scopes.get(_PREFIX + n.name)
        return run(n) if scope is None else scope(lambda: run(n))
