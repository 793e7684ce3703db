"""`torch.export`, as every ahead-of-time backend starts, and the way back to the nodes exported.

Exporters number operators afresh, but they record the stack of module calls that each came from.
So every node of a captured graph is run inside the call of an empty module that carries its name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.exc import UserError, UserErrorType

from fxprune.backends.modules import Adapter
from fxprune.backends.signature import Signature
from fxprune.errors import InputError

_PREFIX = "node_"


def export(
    module: nn.Module, inputs: tuple[Tensor, ...], signature: Signature
) -> torch.export.ExportedProgram:
    """Export a module in evaluation mode; the program takes `*inputs`.

    Raises `InputError` if a range of batches is asked for and the module fixes its batch.
    """
    if isinstance(module, Adapter) and isinstance(module.module, fx.GraphModule):
        module.module = _ScopedGraph(module.module)
    scoped = _ScopedGraph(module) if isinstance(module, fx.GraphModule) else _Positional(module)
    # One tensor given for two inputs would make them one input of the program.
    inputs = tuple(tensor.clone() for tensor in inputs)
    inputs = two_samples(inputs, signature)
    free = free_batch(signature)
    shapes = None if free is None else (free,)
    with warnings.catch_warnings(), torch.no_grad():
        # Export warns about its own internals, which no caller of ours can act upon.
        warnings.simplefilter("ignore")
        try:
            return torch.export.export(scoped, inputs, dynamic_shapes=shapes, strict=False)
        except UserError as error:
            if error.error_type != UserErrorType.CONSTRAINT_VIOLATION:
                raise
            raise InputError(
                "the model fixes its batch size, so a range of batches cannot be compiled",
                f"batch_range {signature.batch_range}",
                "leave batch_range unset",
            ) from error


def two_samples(inputs: tuple[Tensor, ...], signature: Signature) -> tuple[Tensor, ...]:
    """The inputs, with two samples at least where the batch may vary: one passes for a constant."""
    return tuple(
        torch.cat([tensor, tensor]) if batched and tensor.shape[0] == 1 else tensor
        for tensor, batched in zip(inputs, signature.batched, strict=True)
    )


def free_batch(signature: Signature) -> tuple[Any, ...] | None:
    """What dimensions vary, by input, as `torch.export` takes it; None if none do."""
    if signature.batch_range is None:
        return None
    low, high = signature.batch_range
    batch = {0: torch.export.Dim("batch", min=low, max=high)}
    return tuple(batch if batched else None for batched in signature.batched)


def input_names(module: nn.Module, count: int) -> list[str]:
    """Names for the inputs of an exported model: those of a captured graph, or numbers."""
    if isinstance(module, fx.GraphModule):
        return [node.name for node in module.graph.nodes if node.op == "placeholder"][:count]
    return [f"input_{index}" for index in range(count)]


def node_of(scopes: Sequence[str]) -> str | None:
    """The fx node that a stack of module names leads through, else the innermost module path."""
    for scope in scopes:
        _, _, name = scope.rpartition(".")
        if name.startswith(_PREFIX):
            return name.removeprefix(_PREFIX)
    paths = [scope for scope in scopes[:-1] if scope.startswith("module.")]
    return paths[-1].removeprefix("module.") if paths else None


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
