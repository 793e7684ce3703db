"""What fxprune knows about `torch.nn` modules: which attributes follow the shapes of their tensors.

Every module type listed here can be resized: after its parameters and buffers have been sliced,
`resize` sets the attributes that repeat their shapes. Any other module with parameters keeps its
widths.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fxprune.passes.hooks import has_hooks

NORMALISING_MODULES = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
NORMALISING_FUNCTIONS = frozenset(
    {
        F.layer_norm,
        F.group_norm,
        F.rms_norm,
        torch.layer_norm,
        torch.group_norm,
        torch.rms_norm,
        torch.ops.aten.layer_norm.default,
        torch.ops.aten.group_norm.default,
        torch.ops.aten.rms_norm.default,
    }
)
# Sums of products of what they are given: zero in one factor is zero in every product.
CONTRACTIONS = frozenset(
    {"linear", "matmul", "bmm", "mm", "mv", "addmm", "baddbmm", "einsum", "conv1d", "conv2d"}
    | {"conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
)
# Reductions that have a meaning over any number of positions, as norms written by hand use them.
REDUCTIONS = frozenset({"mean", "var", "std", "var_mean", "std_mean", "amax", "amin"})
# These also tell where they found it, which is another place after slimming.
EXTREMES = frozenset({"max", "min"})
VALUES_OF_EXTREMES = frozenset({(operator.getitem, 0), (getattr, "values")})
# Operators with numbers of positions in their arguments, each of which has a rewriter.
CHOOSING = frozenset({"getitem", "slice", "slice_copy", "index", "index_select", "gather"})


@dataclass(frozen=True)
class Widths:
    """What a module meets after slimming: the shape it reads, its channels, its group axis."""

    shape: tuple[int, ...]
    channels: int
    groups: int


Resize = Callable[[Any, Widths], Mapping[str, Any]]


def _conv(module: _ConvNd, widths: Widths) -> Mapping[str, Any]:
    first, second = module.weight.shape[:2]
    if isinstance(module, _ConvTransposeNd):
        return {
            "in_channels": first,
            "out_channels": second * widths.groups,
            "groups": widths.groups,
        }
    return {"in_channels": second * widths.groups, "out_channels": first, "groups": widths.groups}


def _linear(module: nn.Linear, widths: Widths) -> Mapping[str, Any]:
    return {"in_features": module.weight.shape[1], "out_features": module.weight.shape[0]}


def _bilinear(module: nn.Bilinear, widths: Widths) -> Mapping[str, Any]:
    names = ("out_features", "in1_features", "in2_features")
    return dict(zip(names, module.weight.shape, strict=True))


def _norm(module: _NormBase, widths: Widths) -> Mapping[str, Any]:
    return {"num_features": widths.channels}


def _layer_norm(module: nn.LayerNorm, widths: Widths) -> Mapping[str, Any]:
    return {"normalized_shape": widths.shape[-len(module.normalized_shape) :]}


def _group_norm(module: nn.GroupNorm, widths: Widths) -> Mapping[str, Any]:
    return {"num_channels": widths.channels, "num_groups": widths.groups}


def _embedding(module: nn.Embedding | nn.EmbeddingBag, widths: Widths) -> Mapping[str, Any]:
    return {
        "num_embeddings": module.weight.shape[0],
        "embedding_dim": module.weight.shape[1],
    }


def _prelu(module: nn.PReLU, widths: Widths) -> Mapping[str, Any]:
    return {"num_parameters": module.weight.shape[0]}


_RESIZE: tuple[tuple[type[nn.Module], Resize], ...] = (
    (_ConvNd, _conv),
    (nn.Linear, _linear),
    (nn.Bilinear, _bilinear),
    (_NormBase, _norm),
    (nn.LayerNorm, _layer_norm),
    (nn.RMSNorm, _layer_norm),
    (nn.GroupNorm, _group_norm),
    (nn.Embedding, _embedding),
    (nn.EmbeddingBag, _embedding),
    (nn.PReLU, _prelu),
)


def is_resizable(module: nn.Module) -> bool:
    """Whether a module in the graph can live with other widths."""
    if any(isinstance(module, kind) for kind, _ in _RESIZE):
        return True
    return not any(True for _ in module.parameters()) and not any(True for _ in module.buffers())


def resize(module: nn.Module, widths: Widths) -> None:
    """Set the attributes of `module` that repeat the shapes of its (already sliced) tensors."""
    for kind, attributes in _RESIZE:
        if isinstance(module, kind):
            for name, value in attributes(module, widths).items():
                setattr(module, name, value)
            return


def renormalises(modules: Mapping[str, nn.Module], node: fx.Node) -> bool:
    """Whether `node` is a norm or a reduction, which the verifier computes over kept positions."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], NORMALISING_MODULES)
    return reduces(node) or (node.op == "call_function" and node.target in NORMALISING_FUNCTIONS)


def reduces(node: fx.Node) -> bool:
    """Whether `node` is nothing but a reduction over positions."""
    name = _name(node)
    return name in REDUCTIONS or (name in EXTREMES and _reads_values_only(node))


def _reads_values_only(node: fx.Node) -> bool:
    """Whether nobody reads at which place `max` or `min` along a dimension found its result."""
    if not (node.args[1:] or node.kwargs):  # of all places: there is only the value
        return True
    if any(isinstance(argument, fx.Node) for argument in (*node.args[1:], *node.kwargs.values())):
        return False  # of two tensors, or along a dimension that is computed
    return all(
        user.op == "call_function" and (user.target, *user.args[1:]) in VALUES_OF_EXTREMES
        for user in node.users
    )


def chooses(node: fx.Node) -> bool:
    """Whether `node` names positions in arguments that the slim graph can name anew."""
    return _name(node) in CHOOSING


def contracts(modules: Mapping[str, nn.Module], node: fx.Node) -> bool:
    """Whether `node` is nothing but a contraction of what it is given.

    A layer whose weight is made while it is called, by a hook or a parametrization, is more.
    """
    if node.op == "call_module":
        module = modules[str(node.target)]
        plain = type(module).__module__.startswith("torch.nn.modules") and not has_hooks(module)
        return plain and isinstance(module, (nn.Linear, _ConvNd))
    return _name(node) in CONTRACTIONS


def _name(node: fx.Node) -> str:
    if node.op == "call_function":
        packet = getattr(node.target, "overloadpacket", node.target)
        return str(getattr(packet, "__name__", ""))
    return str(node.target) if node.op == "call_method" else ""
