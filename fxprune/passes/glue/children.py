"""Which children of a model with glue become graphs: the largest that can be traced."""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx._symbolic_trace import PH
from torch.utils import _pytree as pytree

from fxprune.passes.glue.module import (
    REST,
    bound_arguments,
    captured_graph,
)
from fxprune.passes.trace import LEAF, trace_child

# What every module has, besides what its class stores on it.
OWN = frozenset({*vars(nn.Module()), "forward"})
# Arguments that tell a child what to do, rather than how large something is.
PLAIN = (type(None), bool, str)


@dataclass(frozen=True)
class Call:
    """How a module was called: `leaves` hold `PH` in place of tensors."""

    names: tuple[str, ...]
    spec: pytree.TreeSpec
    leaves: tuple[Any, ...]

    @property
    def plain(self) -> bool:
        """Whether nothing but tensors and plain settings is given."""
        return all(leaf is PH or isinstance(leaf, PLAIN) for leaf in self.leaves)

    def arguments(self) -> dict[str, Any]:
        """By name, with `PH` in place of tensors."""
        values = pytree.tree_unflatten(list(self.leaves), self.spec)
        return dict(zip(self.names, values, strict=True))


# What is stored on a module and those in it, apart from tensors and modules that it owns: as the
# identity of every value, and of what lists and dicts hold.
State = Mapping[tuple[nn.Module, str], tuple[int, ...]]


@dataclass(frozen=True)
class Child:
    """A child to be captured.

    Attributes:
        module: itself.
        call: how it is called, each time.
        traced: its graph, with names relative to it.
        forward: what it runs of its own.
        state: what is stored on it, which must not change.
    """

    module: nn.Module
    call: Call
    traced: fx.GraphModule
    forward: Callable[..., Any]
    state: State

    @property
    def leaf(self) -> bool:
        """Whether its graph is nothing but a call of the module."""
        return any(node.target == LEAF for node in self.traced.graph.nodes)


def calls_in(
    owner: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[nn.Module, list[Call | None]]:
    """How every module is called in one run of `owner`; None for what cannot be told."""
    found: dict[nn.Module, list[Call | None]] = defaultdict(list)

    def note(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        found[module].append(_call(module, given, named))

    hooks = [m.register_forward_pre_hook(note, with_kwargs=True) for m in owner.modules()]
    try:
        with torch.no_grad():
            owner(*cloned_tensors(args), **cloned_tensors(dict(kwargs)))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _call(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    try:
        arguments = bound_arguments(module, args, kwargs)
    except (TypeError, ValueError):
        return None
    if any(
        parameter.kind in REST and parameter.name in arguments
        for parameter in inspect.signature(type(module).forward).parameters.values()
    ):
        return None
    leaves, spec = pytree.tree_flatten(list(arguments.values()))
    marked = tuple(PH if isinstance(leaf, Tensor) else leaf for leaf in leaves)
    return Call(tuple(arguments), spec, marked)


def captured_children(
    owner: nn.Module, calls: Mapping[nn.Module, Sequence[Call | None]]
) -> dict[str, Child]:
    found: dict[str, Child] = {}
    for name, child in owner.named_children():
        _descend(name, child, calls, found)
    return found


def _descend(
    path: str,
    module: nn.Module,
    calls: Mapping[nn.Module, Sequence[Call | None]],
    found: dict[str, Child],
) -> None:
    """Capture `module`, or else its children."""
    if any(child.module is module for child in found.values()):
        return
    traced = _traced(module, calls.get(module, ()))
    if traced is not None:
        found[path] = traced
        return
    for name, child in module.named_children():
        _descend(f"{path}.{name}", child, calls, found)


def _traced(module: nn.Module, calls: Sequence[Call | None]) -> Child | None:
    call = calls[0] if calls else None
    if call is None or not call.plain or any(other != call for other in calls):
        return None
    if "forward" in vars(module) or PH not in call.leaves:
        return None
    graph = captured_graph(module)
    try:
        traced = (
            trace_child(module, call.arguments())
            if graph is None
            else fx.GraphModule(module, copy.deepcopy(graph))
        )
        forward = MethodType(type(module).forward, module)
        return Child(module, call, traced, forward, state_of(module))
    except Exception:  # whatever stops the tracer, the children may fare better
        return None


def unseen_part(
    owner: nn.Module, calls: Mapping[nn.Module, Sequence[Any]], children: Mapping[str, Child]
) -> str | None:
    """A module with parameters that did not run: so there are ways through the glue not seen."""
    captured = {part for child in children.values() for part in child.module.modules()}
    for name, module in owner.named_modules():
        has_parameters = any(True for _ in module.parameters(recurse=False))
        if name and has_parameters and module not in captured and not calls.get(module):
            return str(name)
    return None


def state_of(module: nn.Module) -> State:
    return {
        (part, name): (id(value), *map(id, _entries(value)))
        for part in module.modules()
        for name, value in vars(part).items()
        if name not in OWN
    }


def _entries(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [*value, *value.values()]
    return list(value) if isinstance(value, (list, tuple, set)) else []


def without(
    owner: nn.Module,
    children: Mapping[str, Child],
    calls: Mapping[nn.Module, Sequence[Call | None]],
    path: str,
) -> dict[str, Child]:
    """`children` with those of `path` in its place."""
    found = {name: child for name, child in children.items() if name != path}
    for name, child in owner.get_submodule(path).named_children():
        _descend(f"{path}.{name}", child, calls, found)
    return found


def cloned_tensors(values: Any) -> Any:
    return pytree.tree_map_only(Tensor, torch.clone, values)
