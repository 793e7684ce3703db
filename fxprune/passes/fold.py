"""Fold batch norm into the convolution or linear layer before it, for deployment.

In evaluation mode a batch norm is a scale and a shift per channel, a = gamma / sqrt(var + eps) and
c = beta - mean a, so the layer W, b followed by it is the layer a W, a b + c (Jacob et al., CVPR
2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", section 3.2). That holds for any rank, groups and stride, and for transposed
convolutions, whose output channels are the weight's second dimension, group by group.

The layer keeps its place and its parameter names; one that had no bias gets one. A batch norm stays
where folding would change anything else: see `Refusal.why`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.passes.constants import set_argument
from fxprune.passes.linear.editing import erase, free_name, set_tensor
from fxprune.passes.linear.nodes import Convolution, Nodes, Norm, Refusal, tensor_at
from fxprune.passes.linear.observed import NOTHING, Observed, observe


@dataclass(frozen=True, slots=True)
class Fold:
    """A batch norm and the layer that it can be folded into."""

    layer: Convolution
    norm: Norm


def fold(module: fx.GraphModule, example_inputs: tuple[Any, ...] | None = None) -> fx.GraphModule:
    """A copy of `module`, in evaluation mode, with its batch norms folded where that is exact.

    Args:
        module: not modified.
        example_inputs: one value per placeholder. Without them, batch norms that take values of
            several ranks (`BatchNorm1d` after a linear layer) are left alone, because it cannot be
            told which dimension they normalise.
    """
    folded = copy.deepcopy(module).eval()
    fold_in_place(folded, _observed(module, example_inputs))
    return folded


class FoldPass(PassBase):
    """`fold` as an fx pass; `refusals` says which batch norms stayed, and why."""

    def __init__(self, example_inputs: tuple[Any, ...] | None = None) -> None:
        super().__init__()
        self.example_inputs = example_inputs
        self.refusals: tuple[Refusal, ...] = ()

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """A new module; the given one is not changed."""
        folded = copy.deepcopy(graph_module).eval()
        self.refusals = fold_in_place(folded, _observed(folded, self.example_inputs))
        return PassResult(folded, len(folded.graph.nodes) < len(graph_module.graph.nodes))


def fold_in_place(module: fx.GraphModule, observed: Observed) -> tuple[Refusal, ...]:
    """`fold` on a module that is the caller's own; returns why batch norms stayed."""
    while True:  # again, because a second batch norm may follow the first
        nodes = Nodes(module, observed)
        found = list(find_folds(nodes))
        folds = [pair for pair in found if isinstance(pair, Fold)]
        for pair in folds:
            _apply(module, pair, *nodes.scale_and_shift(pair.norm))
        if not folds:
            break
    module.graph.lint()
    module.recompile()
    return tuple(pair for pair in found if isinstance(pair, Refusal))


def _observed(module: fx.GraphModule, example_inputs: tuple[Any, ...] | None) -> Observed:
    return NOTHING if example_inputs is None else observe(module, example_inputs)


def find_folds(nodes: Nodes) -> Iterator[Fold | Refusal]:
    """Every batch norm of the graph: how it can be folded, or why not."""
    for node in nodes.module.graph.nodes:
        norm = nodes.norm(node)
        if norm is not None:
            yield norm if isinstance(norm, Refusal) else _find(norm, nodes)


def _find(norm: Norm, nodes: Nodes) -> Fold | Refusal:
    name = norm.node.name
    layer = nodes.convolution(norm.source)
    if layer is None:
        return Refusal(name, "does not follow a convolution or linear layer")
    if isinstance(layer, Refusal):
        return Refusal(name, f"follows a layer that cannot be changed: {layer}")
    if len(norm.source.users) != 1:
        return Refusal(name, f"is not the only one to read {norm.source.name}")
    if norm.rank is None:
        return Refusal(name, "takes values of several ranks, and example inputs are not given")
    if norm.rank != layer.geometry.dims + 2 or norm.width != layer.geometry.out_width:
        return Refusal(name, f"does not normalise the channels that {norm.source.name} writes")
    return Fold(layer, norm)


def _apply(module: fx.GraphModule, found: Fold, scale: Tensor, shift: Tensor) -> None:
    layer, graph = found.layer, module.graph
    weight = tensor_at(module, layer.weight)
    double = weight.detach().to("cpu", torch.float64)
    set_tensor(module, layer.weight, double * _along_outputs(scale, layer, double.dim()), weight)
    if layer.bias is not None:
        before = tensor_at(module, layer.bias).detach().to("cpu", torch.float64)
        set_tensor(module, layer.bias, before * scale + shift, weight)
    elif layer.node.op == "call_module":
        set_tensor(module, f"{layer.node.target}.bias", shift, weight)
    else:
        name = free_name(module, _bias_beside(layer.weight))
        set_tensor(module, name, shift, weight)
        with graph.inserting_before(layer.node):
            set_argument(layer.node, 2, "bias", graph.get_attr(name))
    found.norm.node.replace_all_uses_with(layer.node)
    erase(module, found.norm.node)


def _along_outputs(scale: Tensor, layer: Convolution, rank: int) -> Tensor:
    """`scale` in a shape that multiplies the output channels of the weight."""
    if not layer.transposed:
        return scale.reshape(-1, *(1,) * (rank - 1))
    groups, inputs = layer.geometry.groups, layer.geometry.in_width // layer.geometry.groups
    rows = scale.reshape(groups, 1, -1).expand(-1, inputs, -1).flatten(0, 1)
    return rows.reshape(*rows.shape, *(1,) * (rank - 2))


def _bias_beside(weight: str) -> str:
    return f"{weight[:-6]}bias" if weight.endswith("weight") else f"{weight}_bias"
