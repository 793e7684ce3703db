"""Capture by `torch.export`, raised back to the canonical form.

An exported graph holds ATen operators with parameters as plain tensors, and bakes in the mode it
was exported in. Raising puts the user's `nn` modules back in place of the operators they stand for,
so that names, `.train()` and `.eval()` work as they do on the original model.
"""

from __future__ import annotations

import copy
import inspect
import io
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_unflatten

from fxprune.errors import CaptureError
from fxprune.passes.order import put_in_order_of
from fxprune.passes.regions import inline_autocast
from fxprune.passes.trace import unfused_attention

aten = torch.ops.aten

# The one operator that each of these modules runs, and how many arguments are activations.
RAISED: tuple[tuple[type[nn.Module], tuple[Any, ...]], ...] = (
    (nn.Conv1d, (aten.conv1d,)),
    (nn.Conv2d, (aten.conv2d,)),
    (nn.Conv3d, (aten.conv3d,)),
    (nn.ConvTranspose1d, (aten.conv_transpose1d,)),
    (nn.ConvTranspose2d, (aten.conv_transpose2d,)),
    (nn.ConvTranspose3d, (aten.conv_transpose3d,)),
    (nn.Linear, (aten.linear,)),
    (nn.modules.batchnorm._BatchNorm, (aten.batch_norm,)),
    (nn.modules.instancenorm._InstanceNorm, (aten.instance_norm,)),
    (nn.LayerNorm, (aten.layer_norm,)),
    (nn.GroupNorm, (aten.group_norm,)),
    (nn.RMSNorm, (aten.rms_norm,)),
    (nn.PReLU, (aten.prelu,)),
    (nn.modules.dropout._DropoutNd, (aten.dropout, aten.feature_dropout, aten.alpha_dropout)),
)

ASSERTIONS = frozenset(
    {
        aten._assert_async.msg,
        aten._assert_scalar.default,
        aten._assert_tensor_metadata.default,
        aten.sym_constrain_range_for_size.default,
        aten.sym_constrain_range.default,
    }
)


def capture_by_export(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[fx.GraphModule, tuple[Any, ...]]:
    """Export `model` (in evaluation mode): the graph module, and one value per placeholder."""
    inputs = {**dict(zip(_positional(model), args, strict=False)), **kwargs}
    nested = [k for k, v in inputs.items() if isinstance(v, (tuple, list, dict)) and v]
    if nested:
        raise CaptureError(
            f"argument {nested[0]!r} is a {type(inputs[nested[0]]).__name__}",
            fix="torch.export capture takes tensors as arguments; pass its entries one by one",
        )
    single = all(value.shape[0] == 1 for value in inputs.values() if _has_batch(value))
    wide = {name: _two_samples(value) if single else value for name, value in inputs.items()}
    shapes = {n: _free_batch(v) for n, v in wide.items()}
    try:
        program = _export(model, wide, shapes)
    except Exception:  # any failure of an export may come from the second sample
        if not single:
            raise
        program = _export(model, inputs, None)
    _warn_of_fixed_batch(program, shapes)
    exported = program.module(check_guards=False)
    graph = copy.deepcopy(exported.graph)
    root = copy.deepcopy(model)
    _forget_hooks(root)
    _adopt_constants(root, exported, graph)
    graph.set_codegen(fx.graph.CodeGen())
    inline_autocast(root, graph)
    _raise_outputs(graph, program)
    for node in reversed(list(graph.nodes)):
        is_assertion = node.op == "call_function" and node.target in ASSERTIONS
        if is_assertion or (node.op == "placeholder" and not node.users):
            graph.erase_node(node)
    raise_modules(root, graph)
    _raise_views(graph)
    module = fx.GraphModule(root, graph, type(model).__name__)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    _drop_unused_tensors(module)
    put_in_order_of(module, model)
    module.graph.lint()
    module.recompile()
    names = [node.target for node in module.graph.nodes if node.op == "placeholder"]
    return module.eval(), tuple(inputs[name] for name in names)


def _export(
    model: nn.Module, inputs: Mapping[str, Any], shapes: Mapping[str, Any] | None
) -> torch.export.ExportedProgram:
    # One tensor given for two arguments would make them one argument of the program.
    given = {n: v.clone() if isinstance(v, Tensor) else v for n, v in inputs.items()}
    # A failed export prints all that it had traced, and a failure here is no news to the user.
    with unfused_attention(), warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        # nn.LSTM and nn.GRU list their weights anew in forward, which export takes for a mistake.
        warnings.filterwarnings("ignore", "The tensor attributes .*_flat_weights")
        return torch.export.export(model, (), given, dynamic_shapes=shapes, strict=False)


def _positional(model: nn.Module) -> list[str]:
    return list(inspect.signature(model.forward).parameters)


def _two_samples(value: Any) -> Any:
    """Batches of one are exported as batches of two: a size of one would be baked in."""
    if _has_batch(value) and value.shape[0] == 1:
        return torch.cat([value, value])
    return value


def _has_batch(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _free_batch(value: Any) -> Any:
    if _has_batch(value) and value.shape[0] > 1:
        return {0: torch.export.Dim.AUTO}
    return None


def _warn_of_fixed_batch(program: torch.export.ExportedProgram, shapes: Mapping[str, Any]) -> None:
    """Say so where the model's own code tied the graph to the batch size of the example."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and shapes.get(node.name) and isinstance(value, Tensor):
            size = value.shape[0]
            if str(size).isdigit():  # a symbol that was specialised prints as a number
                warnings.warn(
                    f"forward fixes the batch size of {node.name!r} at {size}, as with len(x), "
                    "a branch on it or a tensor of that many samples; the slim model takes no "
                    "other",
                    stacklevel=2,
                )


def _adopt_constants(root: nn.Module, exported: nn.Module, graph: fx.Graph) -> None:
    """Tensors that export lifted out of the code become buffers of `root`."""
    for node in graph.nodes:
        if node.op != "get_attr":
            continue
        path, _, leaf = str(node.target).rpartition(".")
        try:
            holder = root.get_submodule(path)
        except AttributeError:
            holder = None
        if holder is not None and hasattr(holder, leaf):
            continue
        value: Any = exported
        for part in str(node.target).split("."):
            value = getattr(value, part)
        if path:
            node.target = str(node.target).replace(".", "_")
        if isinstance(value, Tensor):
            root.register_buffer(str(node.target), value.detach().clone(), persistent=False)
        else:
            setattr(root, str(node.target), value)


def _forget_hooks(root: nn.Module) -> None:
    """What forward hooks do has become part of the graph: modules put back must not do it again."""
    for module in root.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            hooks.clear()


def _drop_unused_tensors(module: fx.GraphModule) -> None:
    """Tensors of the model itself that nothing reads, as tracing never takes them along."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for held in (module._parameters, module._buffers):
        for name in set(held) - used:
            del held[name]


def _raise_outputs(graph: fx.Graph, program: torch.export.ExportedProgram) -> None:
    """Give the flat outputs of an exported graph the structure that the model returned."""
    output = graph.output_node()
    flat = output.args[0]
    spec = program.call_spec.out_spec
    if spec is None or not isinstance(flat, (tuple, list)):
        return
    structured = tree_unflatten(list(flat), spec)
    output.args = (_plain(structured),)


def _plain(value: Any) -> Any:
    """`value` in types that an fx output may hold."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if value is None or isinstance(value, (fx.Node, int, float, bool, str)):
        return value
    raise CaptureError(
        f"the model returns a {type(value).__name__}",
        fix="Wrap it so that forward returns tensors, tuples, lists or dicts",
    )


def _raise_views(graph: fx.Graph) -> None:
    """Views that a `reshape` became go back: at other widths a kernel may lay its result out anew.

    Where a view is possible, `reshape` gives one.
    """
    for node in graph.nodes:
        if node.target is aten.view.default:
            node.target = aten.reshape.default


def raise_modules(root: nn.Module, graph: fx.Graph) -> None:
    """Put the modules of `root` back in place of the single operators that they run."""
    for node in list(graph.nodes):
        path = module_path(node)
        if path is None or node.op != "call_function":
            continue
        try:
            owner = root.get_submodule(path)
        except AttributeError:
            continue
        foreign = any(_tensor_path(arg) not in (None, path) for arg in node.args[1:])
        if foreign or not _stands_for(owner, node):
            continue
        with graph.inserting_before(node):
            raised = graph.call_module(path, (node.args[0],))
        raised.meta.update(node.meta)
        node.replace_all_uses_with(raised)
        graph.erase_node(node)


def module_path(node: fx.Node) -> str | None:
    """Qualified name of the innermost module that an exported node comes from."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return None
    path, _ = list(stack.values())[-1]
    return str(path).split("@")[0] or None


def _stands_for(owner: nn.Module, node: fx.Node) -> bool:
    for kind, packets in RAISED:
        if isinstance(owner, kind) and type(owner).__module__.startswith("torch.nn"):
            packet = getattr(node.target, "overloadpacket", None)
            return packet in packets and getattr(owner, "padding_mode", "zeros") == "zeros"
    return False


def _tensor_path(arg: Any) -> str | None:
    """The module that a parameter argument belongs to."""
    if isinstance(arg, fx.Node) and arg.op == "get_attr":
        return str(arg.target).rpartition(".")[0]
    return None
