"""The order of parameters: that of the model, however its graph was captured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


def put_in_order_of(module: nn.Module, model: nn.Module) -> None:
    """Register what `module` holds in the order of `model`; what `model` does not have comes last.

    A graph module holds its parts in the order in which the graph uses them. Groups are named after
    their first parameter, so this order is what makes a plan fit every capture of one model.
    """
    _sort(module._parameters, model._parameters)
    _sort(module._buffers, model._buffers)
    _sort(module._modules, model._modules)
    for name, child in module._modules.items():
        other = model._modules.get(name)
        if child is not None and other is not None and child is not other:
            put_in_order_of(child, other)


def _sort(held: dict[str, Any], names: Iterable[str]) -> None:
    wanted = [name for name in names if name in held]
    for name in [*wanted, *(name for name in list(held) if name not in set(wanted))]:
        held[name] = held.pop(name)
