"""How linear maps stand in a graph: as modules or functions, and what makes them fit to be changed.

Whoever changes a weight changes it for everybody who reads it, so a convolution counts only if its
tensors are read once in the whole graph, by a plain module or function without hooks or
parametrisations.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune.passes.constants import argument, operation
from fxprune.passes.linear import geometry, kernels
from fxprune.passes.linear.geometry import Geometry
from fxprune.passes.linear.kernels import Kernel
from fxprune.passes.linear.observed import NOTHING, Observed

CONVOLUTIONS: Mapping[type[nn.Module], int] = MappingProxyType(
    {nn.Linear: 0, nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
)
TRANSPOSED: Mapping[type[nn.Module], int] = MappingProxyType(
    {nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 2, nn.ConvTranspose3d: 3}
)
# Rank of the value that each takes; None where it takes several.
NORMS: Mapping[type[nn.Module], int | None] = MappingProxyType(
    {nn.BatchNorm1d: None, nn.BatchNorm2d: 4, nn.BatchNorm3d: 5, nn.SyncBatchNorm: None}
)
FUNCTIONS: Mapping[str, tuple[int, bool]] = MappingProxyType(
    {
        "linear": (0, False),
        "conv1d": (1, False),
        "conv2d": (2, False),
        "conv3d": (3, False),
        "conv_transpose1d": (1, True),
        "conv_transpose2d": (2, True),
        "conv_transpose3d": (3, True),
    }
)
ADDITIONS = frozenset({"add", "add_", "iadd"})


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a node cannot be used, in words that fit behind its name."""

    node: str
    why: str

    def __str__(self) -> str:
        return f"{self.node} {self.why}"


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution or linear layer (`geometry.dims` is 0).

    weight, bias: names of its tensors; bias may be none.  transposed: a transposed convolution,
    whose weight is [C_in, C_out / groups, *kernel].  oddity: what makes `geometry` tell less than
    all, so that it cannot be merged with others.
    """

    node: fx.Node
    source: fx.Node
    weight: str
    bias: str | None
    geometry: Geometry
    transposed: bool
    oddity: str | None


@dataclass(frozen=True, slots=True)
class Norm:
    """A batch norm that uses running statistics.

    names: of mean, variance, scale and shift; the last two may be none.  rank: of the value that it
    normalises; None if that is not known.
    """

    node: fx.Node
    source: fx.Node
    names: tuple[str, str, str | None, str | None]
    eps: float
    width: int
    rank: int | None


@dataclass(frozen=True, slots=True)
class Addition:
    """The sum of two values of the graph; `mutates` is the one that holds the result afterwards."""

    operands: tuple[fx.Node, fx.Node]
    mutates: fx.Node | None


class Nodes:
    """Reads the nodes of one graph, which must not change meanwhile."""

    def __init__(self, module: fx.GraphModule, observed: Observed = NOTHING) -> None:
        self.module = module
        self.observed = observed
        self._reads: Counter[int] = Counter()
        for node in module.graph.nodes:
            if node.op == "call_module":
                owner = module.get_submodule(str(node.target))
                self._reads.update(map(id, [*owner.parameters(), *owner.buffers()]))
            elif node.op == "get_attr":
                self._reads[id(tensor_at(module, str(node.target)))] += len(node.users)

    def convolution(self, node: fx.Node) -> Convolution | Refusal | None:
        """`node` as a convolution or linear layer; None if it is something else."""
        if node.op == "call_module":
            found = self._convolution_module(node)
        elif (operation(node) or "") in FUNCTIONS:
            found = self._convolution_function(node)
        else:
            return None
        if isinstance(found, Convolution):
            for name in (found.weight, found.bias):
                if name is not None and self._reads[id(tensor_at(self.module, name))] != 1:
                    return Refusal(node.name, f"shares {name} with another place")
        return found

    def norm(self, node: fx.Node) -> Norm | Refusal | None:
        """`node` as a batch norm; None if it is something else."""
        if node.op == "call_module":
            return self._norm_module(node)
        if operation(node) == "batch_norm":
            return self._norm_function(node)
        return None

    def addition(self, node: fx.Node) -> Addition | None:
        """`node` as the sum of two different values of the graph; None if it is something else."""
        name = operation(node)
        if name not in ADDITIONS or argument(node, 2, "alpha", 1) != 1:
            return None
        operands = (argument(node, 0, "input"), argument(node, 1, "other"))
        first, second = operands
        if not (isinstance(first, fx.Node) and isinstance(second, fx.Node)) or first is second:
            return None
        in_place = name == "add_" or node.target is operator.iadd
        return Addition((first, second), first if in_place else None)

    def kernel(self, node: fx.Node) -> Kernel:
        """The numbers of a convolution or norm that `convolution` or `norm` has accepted."""
        layer = self.convolution(node)
        if isinstance(layer, Convolution):
            bias = None if layer.bias is None else self.numbers(layer.bias)
            return Kernel(layer.geometry, self.numbers(layer.weight), bias)
        norm = self.norm(node)
        assert isinstance(norm, Norm)
        assert norm.rank is not None
        return kernels.scaling(*self.scale_and_shift(norm), norm.rank - 2)

    def scale_and_shift(self, norm: Norm) -> tuple[Tensor, Tensor]:
        """What a batch norm does to each channel, y = scale x + shift, in float64."""
        mean, variance, weight, bias = (
            None if name is None else self.numbers(name) for name in norm.names
        )
        assert mean is not None
        assert variance is not None
        scale = torch.rsqrt(variance + norm.eps)
        scale = scale if weight is None else scale * weight
        shift = -mean * scale
        return scale, shift if bias is None else shift + bias

    def numbers(self, name: str) -> Tensor:
        """A parameter or buffer in float64 on the CPU."""
        tensor: Tensor = tensor_at(self.module, name)
        return tensor.detach().to("cpu", torch.float64)

    def _convolution_module(self, node: fx.Node) -> Convolution | Refusal | None:
        path = str(node.target)
        owner: Any = self.module.get_submodule(path)
        kind = type(owner)
        if kind not in CONVOLUTIONS and kind not in TRANSPOSED:
            derived = isinstance(owner, (*CONVOLUTIONS, *TRANSPOSED))
            return Refusal(node.name, f"is a {kind.__name__}, no plain layer") if derived else None
        source = node.args[0] if node.args else None
        if _has_hooks(owner) or not isinstance(source, fx.Node) or len(node.all_input_nodes) != 1:
            return Refusal(node.name, "has hooks, or arguments of its own")
        names = (f"{path}.weight", None if owner.bias is None else f"{path}.bias")
        if isinstance(owner, nn.Linear):
            return _layer(node, source, names, owner.weight, 0, False, {})
        dims, transposed = CONVOLUTIONS.get(kind, 0) or TRANSPOSED[kind], kind in TRANSPOSED
        settings = {k: getattr(owner, k) for k in ("stride", "padding", "dilation", "groups")}
        found = _layer(node, source, names, owner.weight, dims, transposed, settings)
        pads = any(owner._reversed_padding_repeated_twice) and owner.padding_mode != "zeros"
        if pads and isinstance(found, Convolution):
            return replace(found, oddity=f"pads with {owner.padding_mode}, not with zeros")
        return found

    def _convolution_function(self, node: fx.Node) -> Convolution | Refusal:
        dims, transposed = FUNCTIONS[operation(node) or ""]
        source = argument(node, 0, "input")
        weight, bias = argument(node, 1, "weight"), argument(node, 2, "bias")
        names = (self._name(weight), self._name(bias))
        if names[0] is None or (bias is not None and names[1] is None):
            return Refusal(node.name, "computes its weights")
        places = {"stride": 3, "padding": 4, "dilation": 5, "groups": 6}
        if transposed:
            places = {"stride": 3, "padding": 4, "groups": 6, "dilation": 7}
        defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
        settings = {k: argument(node, i, k, defaults[k]) for k, i in places.items()} if dims else {}
        computed: list[fx.Node] = []
        fx.node.map_arg(settings, computed.append)
        if computed:
            return Refusal(node.name, "computes its settings")
        value = tensor_at(self.module, names[0])
        return _layer(node, source, (names[0], names[1]), value, dims, transposed, settings)

    def _norm_module(self, node: fx.Node) -> Norm | Refusal | None:
        path = str(node.target)
        owner: Any = self.module.get_submodule(path)
        if type(owner) not in NORMS:
            return None
        source = node.args[0] if node.args else None
        if _has_hooks(owner) or not isinstance(source, fx.Node) or len(node.all_input_nodes) != 1:
            return Refusal(node.name, "has hooks, or arguments of its own")
        if owner.running_mean is None or owner.running_var is None:
            return Refusal(node.name, "has no running statistics")
        weight = None if owner.weight is None else f"{path}.weight"
        bias = None if owner.bias is None else f"{path}.bias"
        names = (f"{path}.running_mean", f"{path}.running_var", weight, bias)
        rank = NORMS[type(owner)] or self.observed.ranks.get(source.name)
        return Norm(node, source, names, owner.eps, owner.running_mean.numel(), rank)

    def _norm_function(self, node: fx.Node) -> Norm | Refusal:
        order = {"weight": 1, "bias": 2, "running_mean": 3, "running_var": 4}
        if node.target is F.batch_norm:
            order = {"running_mean": 1, "running_var": 2, "weight": 3, "bias": 4}
        source = argument(node, 0, "input")
        given = {name: argument(node, place, name) for name, place in order.items()}
        found = {name: self._name(value) for name, value in given.items()}
        if any(given[name] is not None and found[name] is None for name in given):
            return Refusal(node.name, "computes its tensors")
        mean, variance = found["running_mean"], found["running_var"]
        if mean is None or variance is None or argument(node, 5, "training", False) is not False:
            return Refusal(node.name, "uses the statistics of the batch")
        eps = argument(node, 7, "eps", 1e-5)
        width = tensor_at(self.module, mean).numel()
        names = (mean, variance, found["weight"], found["bias"])
        return Norm(node, source, names, eps, width, self.observed.ranks.get(source.name))

    def _name(self, value: Any) -> str | None:
        """Qualified name of a tensor that the graph reads from the module."""
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return None
        name = str(value.target)
        return name if isinstance(tensor_at(self.module, name), Tensor) else None


def tensor_at(module: nn.Module, name: str) -> Any:
    """The parameter, buffer or other attribute called `name`."""
    path, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(path), leaf)


def _has_hooks(module: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind, None) for kind in kinds)


def _layer(
    node: fx.Node,
    source: Any,
    names: tuple[str, str | None],
    weight: Tensor,
    dims: int,
    transposed: bool,
    settings: Mapping[str, Any],
) -> Convolution | Refusal:
    if weight.dim() != dims + 2 or not weight.is_floating_point():
        return Refusal(node.name, f"has a weight of {weight.dtype} and shape {list(weight.shape)}")
    groups = settings.get("groups", 1)
    kernel = tuple(weight.shape[2:])
    dilation = _tuple(settings.get("dilation", 1), dims)
    padding = _padding(settings.get("padding", 0), kernel, dilation)
    oddity = "is a transposed convolution" if transposed else None
    if padding is None:
        padding, oddity = (0,) * dims, "pads one side more than the other"
    rows, columns = weight.shape[:2]
    shape = Geometry(
        in_width=rows if transposed else columns * groups,
        out_width=columns * groups if transposed else rows,
        kernel=kernel,
        stride=_tuple(settings.get("stride", 1), dims),
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=names[1] is not None,
    )
    return Convolution(node, source, *names, shape, transposed, oddity)


def _padding(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> Any:
    if padding == "valid":
        return (0,) * len(kernel)
    if padding == "same":
        reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return None if any(r % 2 for r in reach) else tuple(r // 2 for r in reach)
    return _tuple(padding, len(kernel))


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    """One value per dimension; functions take a list of one for all of them too."""
    if not isinstance(value, (tuple, list)):
        return (value,) * dims
    return tuple(value) * dims if len(value) == 1 else tuple(value)


def scaling_of(norm: Norm, dims: int) -> Geometry:
    """The geometry of a batch norm over `dims` spatial dimensions."""
    return geometry.scaling(norm.width, dims)
