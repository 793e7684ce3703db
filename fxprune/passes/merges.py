"""Spans that may become one layer each, and the kernel that each one then runs in.

A merged layer is a function of the widths around its span only: what is inside no longer shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from fxprune.axes import ONE, Axis
from fxprune.backends.region import Operator, Region
from fxprune.errors import PlanMismatch
from fxprune.passes.capture import Captured
from fxprune.passes.chains import Span, find_chains, spans_within
from fxprune.passes.infer import Analysis, named_tensors
from fxprune.passes.layers import Layer, epilogue, spatial_sizes
from fxprune.passes.linear.observed import observe
from fxprune.passes.merge import drop_activations


@dataclass(frozen=True)
class Merge:
    """One span that may be merged.

    Attributes:
        span: in the captured model.
        layer: the merged kernel as a layer over the axes around the span; it takes the place of
            the span's first convolution, and its weight that weight's name.
        tensors: parameters and buffers that belong to the span alone, by qualified name, with the
            node that uses each.
        loss: what is lost by dropping its activations, in points of the value of the network.
    """

    span: Span
    layer: Layer
    tensors: Mapping[str, str]
    loss: float = 0.0

    @property
    def name(self) -> str:
        """Tells merges apart."""
        return f"{self.span.nodes[0]} .. {self.span.target}"

    @property
    def gone(self) -> frozenset[str]:
        """The nodes that become one."""
        return frozenset(self.span.nodes)

    def __str__(self) -> str:
        return ", ".join(self.span.convolutions)


def find_merges(
    captured: Captured, analysis: Analysis, layers: Sequence[Layer]
) -> tuple[Merge, ...]:
    """Every span of a captured model whose merged kernel is known at all widths.

    Left out are those whose merged layer would be grouped, other than depthwise: how many groups
    remain after slimming is not a function of the widths.

    Args:
        layers: those of the model, which run in a kernel with what follows them.
    """
    module = captured.module
    observed = observe(module, captured.example_inputs)
    nodes = {node.name: node for node in module.graph.nodes}
    owners = _owners(module)
    found: dict[tuple[str, ...], Merge] = {}
    for chain in find_chains(module, observed):
        for span in spans_within(chain):
            layer = _kernel(span, nodes, module, analysis, layers)
            if layer is not None:
                tensors = {t: n for t, n in owners.items() if n in span.nodes}
                found.setdefault(span.nodes, Merge(span, layer, tensors))
    return tuple(found.values())


def spans_named(captured: Captured, names: Iterable[Sequence[str]]) -> tuple[Span, ...]:
    """The spans of a captured model that consist of the given nodes each.

    Raises:
        PlanMismatch: the model has no such span.
    """
    wanted = [tuple(nodes) for nodes in names]
    if not wanted:
        return ()
    chains = find_chains(captured.module, observe(captured.module, captured.example_inputs))
    spans = {span.nodes: span for chain in chains for span in spans_within(chain)}
    for nodes in wanted:
        if nodes not in spans:
            raise PlanMismatch(
                f"The plan merges {' .. '.join((nodes[0], nodes[-1]))}, which are no chain here",
                fix="Apply a plan to the architecture that it was made for, built the same.",
            )
    return tuple(spans[nodes] for nodes in wanted)


def without_activations(slim: fx.GraphModule, spans: Iterable[Span]) -> fx.GraphModule:
    """`drop_activations` for spans of the captured model that `slim` was made of."""
    first = {span.nodes[0]: span for span in spans}
    # Where the block before a span is gone, the span reads what that block read.
    here = [
        replace(first[node.name], source=node.all_input_nodes[0].name)
        for node in slim.graph.nodes
        if node.name in first
    ]
    return drop_activations(slim, here) if here else slim


def _kernel(
    span: Span,
    nodes: Mapping[str, fx.Node],
    module: fx.GraphModule,
    analysis: Analysis,
    layers: Sequence[Layer],
) -> Layer | None:
    """The merged kernel, with what the backend fuses into it."""
    shape = span.geometry
    first = next((layer for layer in layers if layer.node == span.convolutions[0]), None)
    value, result = (analysis.values[name][0] for name in (span.source, span.target))
    channel = -shape.dims - 1
    inputs, outputs = value[channel], result[channel]
    depthwise = shape.groups == shape.in_width == shape.out_width
    if first is None or (shape.groups > 1 and not depthwise):
        return None
    claimed = {n for layer in layers for n in layer.fused if layer.node not in span.nodes}
    activation, residual, fused = epilogue(
        nodes[span.target], dict(module.named_modules()), analysis, claimed
    )
    operator: Operator = "conv" if shape.dims else "linear"
    spatial = spatial_sizes(value, operator, shape.dims)
    region = Region(
        operator=operator,
        batch=value[0].size,
        in_width=inputs.size,
        out_width=outputs.size,
        groups=shape.groups,
        spatial=spatial,
        kernel=shape.kernel,
        stride=shape.stride,
        padding=shape.padding,
        dilation=shape.dilation,
        bias=True,
        activation=activation,
        residual=residual,
    )
    inner: Axis = ONE if shape.groups > 1 else inputs
    kind = f"merged conv{shape.dims}d" if shape.dims else "merged linear"
    nodes_inside = (*span.nodes, *fused[1:])
    return Layer(span.target, first.weight, kind, inputs, outputs, inner, region, nodes_inside)


def _owners(module: fx.GraphModule) -> dict[str, str]:
    """The one node that uses each tensor; none for those that several use."""
    names = {id(tensor): name for name, tensor in named_tensors(module)}
    users: dict[str, list[str]] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            for _, tensor in named_tensors(module.get_submodule(str(node.target))):
                users.setdefault(names[id(tensor)], []).append(node.name)
        elif node.op == "get_attr":
            users.setdefault(str(node.target), []).extend(user.name for user in node.users)
    return {name: nodes[0] for name, nodes in users.items() if len(nodes) == 1}
