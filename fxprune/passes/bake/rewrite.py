"""Computed weights put into a captured model as parameters."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, fx, nn

from fxprune.passes.bake import hooked
from fxprune.passes.bake.computed import Computed, Hooked, Made, Parametrized
from fxprune.passes.capture import Baked, Captured
from fxprune.passes.export import module_path
from fxprune.passes.infer import named_tensors
from fxprune.passes.linear.editing import erase
from fxprune.passes.linear.nodes import tensor_at
from fxprune.passes.order import put_in_order_of

# What a parametrization calls the tensors that `weight` is computed from.
ORIGINAL = re.compile(r"(^|\.)parametrizations\.(\w+)\.original\d*$")


def with_parameters(
    captured: Captured, values: Mapping[Computed, Tensor]
) -> tuple[Captured, Mapping[Computed, Baked]]:
    """A captured model in which these weights are parameters of the given values.

    It shares all other tensors with `captured`, which stays as it is. Weights that are computed
    alike from the same tensors become one parameter.
    """
    module = copy.deepcopy(captured.module, {id(t): t for _, t in named_tensors(captured.module)})
    baked: dict[Computed, Baked] = {}
    for each, value in values.items():
        if not isinstance(each, Made):
            baked[each] = _within_layer(module, each, value)
    made = [weight for weight in values if isinstance(weight, Made)]
    readers = _cut(module, captured.module, made)
    numbers = _numbers(captured.module)
    alike: dict[int, Baked] = {}
    for weight in made:
        number = numbers[weight.node]
        if number not in alike:
            owner = module_path(next(iter(readers[weight].users)))
            alike[number] = _parameter(module, captured.module, weight, values[weight], owner)
        baked[weight] = alike[number]
        readers[weight].target = baked[weight].name
    module.delete_all_unused_submodules()
    put_in_order_of(module, captured.module)
    known = {name for name, _ in captured.module.named_parameters(remove_duplicate=False)}
    for name in dict.fromkeys(parameter.name for parameter in baked.values()):
        if name not in known:
            path, _, leaf = name.rpartition(".")
            _put_first(module.get_submodule(path), leaf)
    module.graph.lint()
    module.recompile()
    return replace(captured, module=module), baked


def _within_layer(module: nn.Module, weight: Parametrized | Hooked, value: Tensor) -> Baked:
    """Give a layer its weight as a parameter, in place of what computes it."""
    layer = module.get_submodule(weight.path)
    if isinstance(weight, Hooked):
        held = hooked.sources_of(layer, weight.leaf)
        inside = weight.path
        hooked.remove(layer, weight.leaf)
    else:
        held = dict(named_tensors(_without_parametrization(layer, weight.leaf)))
        inside = f"{weight.path}.parametrizations.{weight.leaf}"
    trained = any(tensor.requires_grad for tensor in held.values())
    setattr(layer, weight.leaf, nn.Parameter(value, requires_grad=trained))
    return Baked(weight.name, tuple(f"{inside}.{name}".lstrip(".") for name in held))


def _without_parametrization(layer: nn.Module, leaf: str) -> nn.Module:
    """Take one parametrization off `layer`, and return it.

    `remove_parametrizations` would take it off the user's layer too: copies share their class.
    """
    found = layer.parametrizations
    assert isinstance(found, nn.ModuleDict)
    taken = found.pop(leaf)
    kind = type(layer)
    if found:
        rest = {k: v for k, v in vars(kind).items() if k not in (leaf, "__dict__", "__weakref__")}
        layer.__class__ = type(kind.__name__, kind.__bases__, rest)
    else:
        del layer._modules["parametrizations"]
        layer.__class__ = kind.__bases__[0]
    return taken


def _put_first(layer: nn.Module, leaf: str) -> None:
    """Have `leaf` where a layer that was never parametrized has its weight."""
    layer._parameters[leaf], rest = layer._parameters.pop(leaf), dict(layer._parameters)
    for name in rest:
        if name != leaf:
            layer._parameters[name] = layer._parameters.pop(name)


def _cut(
    module: fx.GraphModule, original: nn.Module, weights: Sequence[Made]
) -> Mapping[Made, fx.Node]:
    """For each weight a node that reads a parameter in its place, whose name is still to come.

    What nobody reads any more is erased, so that names of weights become free.
    """
    nodes = {node.name: node for node in module.graph.nodes}
    readers = {}
    for weight in weights:
        node = nodes[weight.node.name]
        with module.graph.inserting_before(node):
            readers[weight] = module.graph.create_node("get_attr", "")
        readers[weight].meta.update(node.meta)
        node.replace_all_uses_with(readers[weight])
    interior = {node.name for weight in weights for node in weight.interior}
    sources = {id(tensor_at(original, n)) for w in weights for n in _names(w)}
    for node in reversed(module.graph.nodes):
        if node.name in interior and node.op != "get_attr" and not node.users:
            erase(module, node)
    _drop_aliases(module, sources)
    return readers


def _drop_aliases(module: fx.GraphModule, numbers: set[int]) -> None:
    """Delete tied names of these tensors where nobody reads the tensor by any name."""
    targets = {str(n.target) for n in module.graph.nodes if n.op in ("get_attr", "call_module")}
    for path, part in module.named_modules(remove_duplicate=False):
        for leaf, tensor in part._parameters.items():
            if not targets.isdisjoint((path, f"{path}.{leaf}".lstrip("."))):
                numbers = numbers - {id(tensor)}
    for part in module.modules():
        for leaf, tensor in list(part._parameters.items()):
            if id(tensor) in numbers:
                del part._parameters[leaf]


def _names(weight: Made) -> list[str]:
    return [str(node.target) for node in weight.interior if node.op == "get_attr"]


def _parameter(
    module: fx.GraphModule, original: nn.Module, weight: Made, value: Tensor, owner: str | None
) -> Baked:
    """Give `module` a parameter, named after what it is computed from, or after who reads it."""
    names = _names(weight)
    held = {name: tensor_at(original, name) for name in names}
    alike = [_plain(name) for name, tensor in held.items() if tensor.shape == value.shape]
    # A tensor of several layers has the name that it has in one of them: each goes by its own.
    elsewhere = [name for name in alike if owner and not name.startswith(f"{owner}.")]
    wanted = [f"{owner}.{name.rpartition('.')[2]}" for name in elsewhere] + alike
    wanted += [f"{owner}.weight"] if owner else []
    wanted += [_plain(names[0])]
    free = (name for name in wanted if _is_free(module, name))
    name = next(free, None) or _numbered(module, wanted[0])
    trained = any(tensor.requires_grad for tensor in held.values())
    _set(module, name, nn.Parameter(value, requires_grad=trained))
    return Baked(name, tuple(held))


def _plain(name: str) -> str:
    """The name of a weight, from that of a tensor that a parametrization computes it from."""
    return ORIGINAL.sub(r"\1\2", name)


def _is_free(module: nn.Module, name: str) -> bool:
    holder = module
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(holder, part):
            return True
        holder = getattr(holder, part)
    return isinstance(holder, nn.Module) and not hasattr(holder, leaf)


def _numbered(module: nn.Module, name: str) -> str:
    count = 1
    while not _is_free(module, f"{name}_{count}"):
        count += 1
    return f"{name}_{count}"


def _set(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    module.register_parameter(leaf, parameter)


def _numbers(module: fx.GraphModule) -> Mapping[fx.Node, int]:
    """A number for each node, the same for two that compute the same of the same tensors."""
    known: dict[tuple[object, ...], int] = {}
    found: dict[fx.Node, int] = {}
    for node in module.graph.nodes:
        target: object = node.target
        if node.op == "get_attr":
            target = id(tensor_at(module, str(node.target)))
        given = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: f"%{found[n]}")
        # An input is like no other.
        key = (node.op, node.name if node.op == "placeholder" else target, repr(given))
        found[node] = known.setdefault(key, len(known))
    return found
