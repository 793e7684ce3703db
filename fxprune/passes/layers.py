"""The layers of a captured model: its parametric contractions, and the region each one runs in.

A region is what a backend fuses into one kernel: the convolution or linear layer, the batch norm
that is folded into it, the addition of a residual and the activation that follow while nobody else
needs the value between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fxprune.axes import Atom, Axes, Axis, kept_size
from fxprune.backends.region import Operator, Region
from fxprune.passes.constants import argument, operation
from fxprune.passes.infer import Analysis

ACTIVATION_MODULES: Mapping[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.GELU: "gelu",
    nn.LeakyReLU: "leaky_relu",
}
ACTIVATION_FUNCTIONS = frozenset(ACTIVATION_MODULES.values())
CONVOLUTIONS: Mapping[str, tuple[Operator, int]] = {
    "conv1d": ("conv", 1),
    "conv2d": ("conv", 2),
    "conv3d": ("conv", 3),
    "conv_transpose1d": ("conv_transpose", 1),
    "conv_transpose2d": ("conv_transpose", 2),
    "conv_transpose3d": ("conv_transpose", 3),
}


@dataclass(frozen=True)
class Layer:
    """One parametric contraction.

    Attributes:
        node: its node in the captured graph.
        weight: qualified name of its weight.
        kind: "conv2d", "linear", "depthwise conv2d", ...
        inputs: axis of the channels it reads.
        outputs: axis of the channels it writes.
        inner: axis of the weight's second dimension.
        region: the dense kernel it runs in.
        fused: names of the nodes that run in the same kernel, its own included.
    """

    node: str
    weight: str
    kind: str
    inputs: Axis
    outputs: Axis
    inner: Axis
    region: Region
    fused: tuple[str, ...]

    def widths(self, sizes: Mapping[Atom, int]) -> tuple[int, int, int]:
        """Inputs, outputs and `inner` when atoms have the given sizes."""
        width_in, width_out, inner = (
            kept_size(axis, sizes) for axis in (self.inputs, self.outputs, self.inner)
        )
        return width_in, width_out, inner

    def at(self, sizes: Mapping[Atom, int]) -> Region:
        """The kernel after slimming, when atoms have the given sizes."""
        width_in, width_out, inner = self.widths(sizes)
        if self.region.groups == 1:
            return self.region.with_widths(width_in, width_out)
        # The weight's second dimension is one group wide: of inputs, or of outputs if transposed.
        whole = width_out if self.region.operator == "conv_transpose" else width_in
        return self.region.with_widths(width_in, width_out, whole // inner)


def find_layers(module: fx.GraphModule, analysis: Analysis) -> tuple[Layer, ...]:
    """Every convolution and linear layer of `module`, in graph order."""
    modules = dict(module.named_modules())
    found: list[Layer] = []
    claimed: set[str] = set()
    # Backwards: where two layers meet in one addition, it runs in the kernel of the later one.
    for node in reversed(module.graph.nodes):
        layer = _layer(node, modules, analysis, claimed)
        if layer is not None:
            found.append(layer)
            claimed.update(layer.fused)
    return tuple(reversed(found))


def _layer(
    node: fx.Node, modules: Mapping[str, nn.Module], analysis: Analysis, claimed: Set[str]
) -> Layer | None:
    described = _described(node, modules, analysis)
    if described is None:
        return None
    operator, places, weight, settings = described
    source = node.args[0]
    if not isinstance(source, fx.Node) or weight not in analysis.tensors:
        return None
    value, result = analysis.values[source.name][0], analysis.values[node.name][0]
    channel = -1 if operator == "linear" else -places - 1
    activation, residual, fused = epilogue(node, modules, analysis, claimed)
    batch = value[0].size if len(value) > (1 if operator == "linear" else places + 1) else 1
    region = Region(
        operator=operator,
        batch=batch,
        in_width=value[channel].size,
        out_width=result[channel].size,
        spatial=spatial_sizes(value, operator, places),
        activation=activation,
        residual=residual,
        **settings,
    )
    kind = operator if operator == "linear" else f"{operator}{places}d"
    if region.groups == region.in_width and region.groups > 1:
        kind = f"depthwise {kind}"
    elif region.groups > 1:
        kind = f"grouped {kind}"
    inner = analysis.tensors[weight][1]
    return Layer(node.name, weight, kind, value[channel], result[channel], inner, region, fused)


def spatial_sizes(value: Axes, operator: Operator, places: int) -> tuple[int, ...]:
    """Input sizes after batch and channels, as a region has them."""
    if operator == "linear":
        rows = math.prod(axis.size for axis in value[1:-1])
        return (rows,) if len(value) > 2 else ()
    return tuple(axis.size for axis in value[-places:])


def _described(
    node: fx.Node, modules: Mapping[str, nn.Module], analysis: Analysis
) -> tuple[Operator, int, str, dict[str, Any]] | None:
    """Operator, spatial dimensions, weight name and settings of a layer; None for other nodes."""
    if node.op == "call_module":
        return _described_module(str(node.target), modules[str(node.target)])
    name = operation(node)
    weight = argument(node, 1, "weight")
    if not isinstance(weight, fx.Node) or str(weight.target) not in analysis.tensors:
        return None
    path = str(weight.target)
    if name == "linear":
        return "linear", 0, path, {}
    if name is None or name not in CONVOLUTIONS:
        return None
    operator, places = CONVOLUTIONS[name]
    transposed = operator == "conv_transpose"

    def setting(index: int, name: str, default: int) -> Any:
        # Some are computed from sizes: `groups=x.shape[1]`.
        return fx.map_arg(
            argument(node, index, name, default), lambda number: analysis.scalars[number.name]
        )

    kernel = tuple(axis.size for axis in analysis.tensors[path][2:])
    dilation = _tuple(setting(7 if transposed else 5, "dilation", 1), places)
    extra = setting(5, "output_padding", 0) if transposed else 0
    settings = {
        "kernel": kernel,
        "stride": _tuple(setting(3, "stride", 1), places),
        "padding": _padding(setting(4, "padding", 0), kernel, dilation),
        "dilation": dilation,
        "output_padding": _tuple(extra, places),
        "groups": setting(6, "groups", 1),
    }
    return operator, places, path, settings


def _described_module(
    path: str, module: nn.Module
) -> tuple[Operator, int, str, dict[str, Any]] | None:
    if isinstance(module, nn.Linear):
        return "linear", 0, f"{path}.weight", {}
    if not isinstance(module, _ConvNd):
        return None
    kernel, dilation = tuple(module.kernel_size), tuple(module.dilation)
    settings = {
        "kernel": kernel,
        "stride": tuple(module.stride),
        "padding": _padding(module.padding, kernel, dilation),
        "dilation": dilation,
        "output_padding": tuple(module.output_padding),
        "groups": module.groups,
    }
    transposed = isinstance(module, _ConvTransposeNd)
    operator: Operator = "conv_transpose" if transposed else "conv"
    return operator, len(kernel), f"{path}.weight", settings


def _padding(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """Zeros on either side; `"same"` and `"valid"` spelled out (an odd one falls to one side)."""
    if padding == "valid":
        return (0,) * len(kernel)
    if padding == "same":
        return tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    return _tuple(padding, len(kernel))


def _tuple(value: Any, places: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * places


def epilogue(
    node: fx.Node, modules: Mapping[str, nn.Module], analysis: Analysis, claimed: Set[str]
) -> tuple[str | None, bool, tuple[str, ...]]:
    """Activation, whether a residual is added, and the nodes that run with `node`."""
    fused = [node.name]
    residual = False
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.name in claimed:
            break
        if _is_batch_norm(node, modules):
            fused.append(node.name)
        elif operation(node) in ("add", "add_", "iadd") and not residual and _adds(node, analysis):
            residual = True
            fused.append(node.name)
        else:
            activation = _activation(node, modules)
            if activation is not None:
                fused.append(node.name)
            return activation, residual, tuple(fused)
    return None, residual, tuple(fused)


def _is_batch_norm(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], _BatchNorm)
    return operation(node) == "batch_norm"


def _adds(node: fx.Node, analysis: Analysis) -> bool:
    """Whether `node` adds two tensors of the same shape."""
    shapes = [
        tuple(axis.size for axis in analysis.values[n.name][0])
        for n in node.all_input_nodes
        if analysis.values.get(n.name)
    ]
    return len(shapes) == 2 and shapes[0] == shapes[1]


def _activation(node: fx.Node, modules: Mapping[str, nn.Module]) -> str | None:
    approximate = argument(node, 1, "approximate", "none")
    if node.op == "call_module":
        module = modules[str(node.target)]
        name = ACTIVATION_MODULES.get(type(module))
        approximate = getattr(module, "approximate", "none")
    else:
        called = (operation(node) or "").removesuffix("_")
        name = called if called in ACTIVATION_FUNCTIONS else None
    return "gelu_tanh" if name == "gelu" and approximate == "tanh" else name
