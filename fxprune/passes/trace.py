"""Capture by `torch.fx` symbolic tracing, the way that keeps the user's modules."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx._symbolic_trace import PH
from torch.nn.modules import transformer
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from fxprune.errors import InputError
from fxprune.passes.modules import is_resizable
from fxprune.passes.order import put_in_order_of

# Modules of torch.nn whose forward is a view with constants, which only a node of its own shows.
TRANSPARENT = (nn.Unflatten, nn.Flatten, nn.ChannelShuffle)

# Where a function comes from whose calls are seen through: its ATen calls have typing rules, and
# its arguments rewriters, or, for our own, because they only mark a place. Anything else is opaque.
TRANSPARENT_FUNCTIONS = ("torch", "_operator", "math", "builtins", "fxprune")

# The only node of a graph for a module that is never taken apart.
LEAF = "leaf"

DROPOUTS: Mapping[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Keep `nn.MultiheadAttention` and the transformer layers off their fused inference kernels.

    Nor do the layers look whether a mask that they are given happens to be causal, which would make
    the graph depend on its values: they would only hint so to the kernel, and pass the mask anyway.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    detect = transformer._detect_is_causal_mask
    torch.backends.mha.set_fastpath_enabled(False)
    transformer._detect_is_causal_mask = _as_hinted
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        transformer._detect_is_causal_mask = detect


def _as_hinted(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    return bool(is_causal)


class ModuleTracer(fx.Tracer):
    """Keeps `torch.nn` modules whole, and parameter-free ones that look at `self.training`.

    The latter (stochastic depth, drop path) would lose the difference if they were taken apart.
    """

    # A buffer that is only looked at as a constant would lose its name, and what is written to it.
    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.record_stack_traces = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether `m` stays one node."""
        if isinstance(m, TRANSPARENT):
            return False
        return super().is_leaf_module(m, module_qualified_name) or _only_differs_in_training(m)


def _only_differs_in_training(module: nn.Module) -> bool:
    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        return False
    if any(True for _ in module.children()):
        return False
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and "training" in code.co_names


def capture_by_tracing(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[fx.GraphModule, tuple[Any, ...]]:
    """Trace `model` (in evaluation mode): the graph module, and one value per placeholder."""
    bound = _bind(model, args, kwargs)
    absent = {name: value for name, value in bound.items() if not _is_traced(value)}
    tracer = ModuleTracer()
    graph = tracer.trace(model, concrete_args=absent or None)
    module = fx.GraphModule(tracer.root, graph, type(model).__name__)
    _same_names(module, model)
    put_in_order_of(module, model)
    _first_by_position(module)
    inputs = _place_inputs(module.graph, bound)
    dropout_follows_training(module)
    module.graph.lint()
    module.recompile()
    return module, inputs


def trace_child(module: nn.Module, arguments: Mapping[str, Any]) -> fx.GraphModule:
    """Trace one submodule, called with `arguments`: `PH` stands in them for every tensor.

    The graph has one placeholder for each tensor, in order. A module that is never taken apart is
    its only node, called `LEAF`.
    """
    tracer = ModuleTracer()
    if tracer.is_leaf_module(module, LEAF):
        return _leaf(module, arguments)
    graph = tracer.trace(module, concrete_args=dict(arguments))
    graph.set_codegen(fx.graph.CodeGen())
    _drop_constants(graph, arguments)
    traced = fx.GraphModule(module, graph, type(module).__name__)
    _same_names(traced, module)
    _first_by_position(traced)
    dropout_follows_training(traced)
    traced.graph.lint()
    traced.recompile()
    return traced


def _leaf(module: nn.Module, arguments: Mapping[str, Any]) -> fx.GraphModule:
    root, graph = nn.Module(), fx.Graph()
    root.add_module(LEAF, module)
    leaves, spec = tree_flatten(list(arguments.values()))
    given = [graph.placeholder("input") if leaf is PH else leaf for leaf in leaves]
    graph.output(graph.call_module(LEAF, tuple(tree_unflatten(given, spec))))
    return fx.GraphModule(root, graph, type(module).__name__)


def _drop_constants(graph: fx.Graph, arguments: Mapping[str, Any]) -> None:
    """Erase placeholders of constant arguments, and the checks of them."""
    leaves = tree_leaves(list(arguments.values()))
    places = [node for node in graph.nodes if node.op == "placeholder"]
    extra = [node for node in places if str(node.target).startswith("*")]
    places = [node for node in places if node not in extra]
    for node, leaf in zip(places, leaves, strict=True):
        node.args = ()
        if leaf is not PH:
            extra.append(node)
    for node in extra:
        for user in list(node.users):
            _drop_assertion(graph, user)
        graph.erase_node(node)


def _same_names(module: fx.GraphModule, model: nn.Module) -> None:
    """Tensors that were no buffers of `model` become buffers; they stay out of its state dict."""
    known = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    for name, _ in list(module.named_buffers(remove_duplicate=False)):
        path, _, leaf = name.rpartition(".")
        if name not in known:
            module.get_submodule(path)._non_persistent_buffers_set.add(leaf)


def _first_by_position(module: fx.GraphModule) -> None:
    """Calls of modules and torch functions take their first argument by position from here on."""
    submodules = dict(module.named_modules())
    for node in module.graph.nodes:
        if node.args or not node.kwargs:
            continue
        names = ["input", "tensor", "tensors"]
        if node.op == "call_module":
            names = list(inspect.signature(submodules[str(node.target)].forward).parameters)[:1]
        first = next((name for name in names if name in node.kwargs), None)
        if first is not None:
            rest = {name: value for name, value in node.kwargs.items() if name != first}
            node.args, node.kwargs = (node.kwargs[first],), rest


def _bind(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `forward` by name, defaults included."""
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"example_inputs do not fit {type(model).__name__}.forward{signature}", str(error)
        ) from error
    bound.apply_defaults()
    return dict(bound.arguments)


def _is_traced(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value))


def _place_inputs(graph: fx.Graph, bound: Mapping[str, Any]) -> tuple[Any, ...]:
    """Drop placeholders of constant arguments; the values of the others, in order."""
    inputs = []
    for node in list(graph.nodes):
        if node.op != "placeholder":
            continue
        name = str(node.target).lstrip("*")
        if name in bound and _is_traced(bound[name]):
            inputs.append(bound[name])
            node.args = ()
            continue
        for user in list(node.users):
            _drop_assertion(graph, user)
        graph.erase_node(node)
    return tuple(inputs)


def _drop_assertion(graph: fx.Graph, node: fx.Node) -> None:
    """Erase the check of a constant argument that `fx` writes into the graph."""
    for user in list(node.users):
        _drop_assertion(graph, user)
    graph.erase_node(node)


def dropout_follows_training(module: fx.GraphModule) -> None:
    """Functional dropout has its mode baked in; as a module it follows `.train()` and `.eval()`."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target not in DROPOUTS:
            continue
        kind = DROPOUTS[node.target]
        signature = inspect.signature(node.target).bind(*node.args, **node.kwargs)
        signature.apply_defaults()
        if isinstance(signature.arguments["p"], fx.Node):
            continue
        name = _fresh_name(module, node.name)
        module.add_submodule(name, kind(p=signature.arguments["p"]).train(module.training))
        with module.graph.inserting_before(node):
            replacement = module.graph.call_module(name, (signature.arguments["input"],))
        replacement.meta.update(node.meta)
        node.replace_all_uses_with(replacement)
        module.graph.erase_node(node)


def is_opaque(submodules: Mapping[str, nn.Module], node: fx.Node) -> bool:
    """Whether `node` hides code that no later pass can look into or adapt."""
    if node.op == "call_module":
        return not is_resizable(submodules[str(node.target)])
    if node.op != "call_function" or isinstance(node.target, torch._ops.OpOverload):
        return False
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return any(_hides(submodules.get(str(n.target))) for n in node.all_input_nodes)
    origin = getattr(node.target, "__module__", None) or "torch"
    return origin.split(".")[0] not in TRANSPARENT_FUNCTIONS


def _hides(region: nn.Module | None) -> bool:
    """Whether a graph within the graph does what only the graph around it could show.

    That is lists of numbers, as views have them, which nobody adapts; and operators that mix places
    of what was made inside, where the masked original could not be masked.
    """
    if not isinstance(region, fx.GraphModule):
        return False
    calls = [node for node in region.graph.nodes if node.op not in ("placeholder", "output")]
    return any(_has_sizes(node) or (_mixes(node) and _reads_any(node, calls)) for node in calls)


def _has_sizes(node: fx.Node) -> bool:
    lists = [argument for argument in node.args if isinstance(argument, (list, tuple))]
    return any(type(item) is int for argument in lists for item in argument)


def _mixes(node: fx.Node) -> bool:
    known = isinstance(node.target, torch._ops.OpOverload) or node.target is operator.getitem
    return not known or (
        isinstance(node.target, torch._ops.OpOverload)
        and torch.Tag.pointwise not in node.target.tags
    )


def _reads_any(node: fx.Node, calls: Sequence[fx.Node]) -> bool:
    return any(given in calls for given in node.all_input_nodes)


def _fresh_name(module: nn.Module, base: str) -> str:
    name, count = base, 0
    while hasattr(module, name):
        count += 1
        name = f"{base}_{count}"
    return name
