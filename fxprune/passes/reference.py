"""The masked original: the dense model with all that was removed from it held at zero."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from fxprune.axes import Axes, Axis
from fxprune.passes.blocks import Block
from fxprune.passes.constants import argument, operation
from fxprune.passes.infer import Analysis
from fxprune.passes.modules import contracts, reduces, renormalises
from fxprune.passes.rules import tensors
from fxprune.passes.slimming import Kept

# Operators that contract positions inside, where no result shows them.
CONTRACTING_INSIDE = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu", "einsum"})


class MaskedInterpreter(fx.Interpreter):
    """Interprets a captured model, and zeroes removed positions of whatever follows its inputs.

    Parameters, and what is computed from parameters alone, stay as they are: a weight that is
    divided by its own norm would come out larger if part of it were zero. Only operators that
    carry removed positions along inside get them masked, as recurrent layers do, and contractions
    of parameters alone, as a learned query has them.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        analysis: Analysis,
        kept: Kept,
        dropped: Iterable[Block],
        inputs: Sequence[Any],
    ) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.args_iter = iter(inputs)
        self._analysis = analysis
        self._kept = kept
        self._zeroed = {block.addition: block.branch for block in dropped}
        self._flowing = following_inputs(module.graph)
        self._last_use = {u: n for n in module.graph.nodes for u in n.all_input_nodes}

    def step(self, node: fx.Node) -> Any:
        """Run one node, whose inputs have run, and mask what it yields."""
        if node.name in self._zeroed:
            (branch,) = (n for n in node.all_input_nodes if n.name == self._zeroed[node.name])
            self.env[branch] = torch.zeros_like(self.env[branch])
        result = self.run_node(node)
        if node in self._flowing:
            result = self._mask_all(node, result)
        self.env[node] = result
        for used in node.all_input_nodes:
            if self._last_use[used] is node:
                self.env.pop(used, None)
        return result

    def _mask_all(self, node: fx.Node, result: Any) -> Any:
        values = zip(tensors(result), self._analysis.values[node.name], strict=True)
        masked = {id(tensor): self.mask(tensor, axes) for tensor, axes in values}
        return tree_map_only(Tensor, lambda tensor: masked[id(tensor)], result)

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of `n`, with parameters masked for operators that contract inside."""
        if not self._sums_unmasked(n):
            return super().fetch_args_kwargs_from_env(n)
        before = {used: self.env[used] for used in n.all_input_nodes}
        for used, value in before.items():
            copied = tree_map_only(Tensor, torch.clone, value)
            self.env[used] = self._mask_all(used, copied)
        found = super().fetch_args_kwargs_from_env(n)
        self.env.update(before)
        return found

    def _sums_unmasked(self, node: fx.Node) -> bool:
        """Whether `node` would sum over removed positions that nothing has masked."""
        if node in self._flowing and operation(node) in CONTRACTING_INSIDE:
            return True
        masked = any(
            n in self._flowing and self._analysis.values.get(n.name) for n in node.all_input_nodes
        )
        return not masked and contracts(self.submodules, node)

    def run_node(self, n: fx.Node) -> Any:
        """As the node runs in the original; a norm over removed positions leaves them out."""
        source = n.args[0] if n.args else None
        if isinstance(source, fx.Node) and renormalises(self.submodules, n):
            axes = self._analysis.values[source.name][0]
            if any(map(self._kept.touches, axes)):
                if reduces(n):
                    return self._reduce(n, source, axes)
                return self._normalise(n, self.env[source], axes)
        return super().run_node(n)

    def _reduce(self, node: fx.Node, source: fx.Node, axes: Axes) -> Any:
        """Run `node` on the positions that stay; its results are zero wherever they have none."""
        whole = self.env[source]
        self.env[source] = self._kept.restrict(whole, axes)
        found = super().run_node(node)
        self.env[source] = whole
        spread = {
            id(tensor): self._spread(tensor, of)
            for tensor, of in zip(tensors(found), self._analysis.values[node.name], strict=True)
        }
        return tree_map_only(Tensor, lambda t: spread[id(t)], found)

    def _spread(self, part: Tensor, axes: Axes) -> Tensor:
        """The inverse of restricting a tensor: zero at removed positions."""
        for dim, axis in enumerate(axes):
            if self._kept.touches(axis):
                shape = (*part.shape[:dim], axis.size, *part.shape[dim + 1 :])
                index = torch.from_numpy(self._kept.indices(axis)).to(part.device)
                part = part.new_zeros(shape).index_copy(dim, index, part)
        return part

    def mask(self, tensor: Tensor, axes: Axes) -> Tensor:
        """Zero the removed positions: in place, so that views and in-place operators see it too."""
        for dim, axis in enumerate(axes):
            if not self._kept.touches(axis):
                continue
            removed = torch.ones(axis.size, dtype=torch.bool)
            removed[torch.from_numpy(self._kept.indices(axis))] = False
            index = removed.nonzero().flatten().to(tensor.device)
            if 0 in tensor.stride() or not tensor.is_floating_point():
                tensor = tensor.index_fill(dim, index, 0)
            else:
                tensor.index_fill_(dim, index, 0)
        return tensor

    def _normalise(self, node: fx.Node, value: Tensor, axes: Axes) -> Tensor:
        if node.op == "call_module":
            module = self.submodules[str(node.target)]
            weight, bias = module.weight, getattr(module, "bias", None)
            eps = module.eps
            groups = getattr(module, "num_groups", None)
            shape = getattr(module, "normalized_shape", ())
            centred = not isinstance(module, nn.RMSNorm)
        else:
            name = operation(node) or ""
            places = {"layer_norm": (2, 3, 4), "rms_norm": (2, None, 3), "group_norm": (2, 3, 4)}
            at_weight, at_bias, at_eps = places[name]
            weight = self._value(argument(node, at_weight, "weight"))
            bias = None if at_bias is None else self._value(argument(node, at_bias, "bias"))
            eps = argument(node, at_eps, "eps", None if name == "rms_norm" else 1e-5)
            second = argument(node, 1, "num_groups" if name == "group_norm" else "normalized_shape")
            groups = self._number(second) if name == "group_norm" else None
            shape = () if groups else self._number(second)
            centred = name != "rms_norm"
        if eps is None:
            eps = torch.finfo(value.dtype).eps
        present = self._present(value, axes)
        if groups is not None:
            result = _grouped(value, present, int(groups), eps)
            extra = (1,) * (value.dim() - 2)
            weight = None if weight is None else weight.reshape(-1, *extra)
            bias = None if bias is None else bias.reshape(-1, *extra)
        else:
            dims = list(range(value.dim() - len(shape), value.dim()))
            result = _standardised(value, present, dims, eps, centred)
        result = result if weight is None else result * weight
        return result if bias is None else result + bias

    def _value(self, arg: Any) -> Any:
        return self.env[arg] if isinstance(arg, fx.Node) else arg

    def _number(self, arg: Any) -> Any:
        return self._analysis.scalars[arg.name] if isinstance(arg, fx.Node) else arg

    def _present(self, value: Tensor, axes: Sequence[Axis]) -> Tensor:
        """1 where a position stays, 0 where it was removed, in the shape of `value`."""
        present = torch.ones_like(value)
        for dim, axis in enumerate(axes):
            line = torch.zeros(axis.size, dtype=value.dtype, device=value.device)
            line[torch.from_numpy(self._kept.indices(axis))] = 1
            present = present * line.reshape(-1, *(1,) * (value.dim() - dim - 1))
        return present


def following_inputs(graph: fx.Graph) -> frozenset[fx.Node]:
    """Nodes that depend on an input of the model."""
    following: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or not following.isdisjoint(node.all_input_nodes):
            following.add(node)
    return frozenset(following)


def _standardised(
    value: Tensor, present: Tensor, dims: list[int], eps: float, centred: bool
) -> Tensor:
    """(x - mean) / sqrt(var + eps) with both statistics over the present positions of `dims`."""
    count = present.sum(dims, keepdim=True).clamp_min(1)
    if centred:
        value = (value - (value * present).sum(dims, keepdim=True) / count) * present
    variance = (value * value * present).sum(dims, keepdim=True) / count
    return value / torch.sqrt(variance + eps)


def _grouped(value: Tensor, present: Tensor, groups: int, eps: float) -> Tensor:
    """Group norm: the channels (dimension 1) of each group and all places share statistics."""
    batch, channels = value.shape[:2]
    folded = (batch, groups, channels // groups, -1)
    result = _standardised(
        value.reshape(folded), present.reshape(folded), [2, 3], eps, centred=True
    )
    return result.reshape(value.shape)
