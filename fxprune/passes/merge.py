"""Merge spans, in two steps with fine-tuning between them.

`drop_activations` takes the activations of the chosen spans out and moves the padding inside of
them to their fronts: the network computes something else from here on, and is to be trained again.
It keeps its layers, batch norms and parameter names. `merge_spans` makes one layer of each span,
batch norms included: exactly, for deployment. The order of steps is that of Kim et al. (ICML 2023,
"Efficient Latency-Aware CNN Depth Compression via Two-Stage Dynamic Programming").
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune import plain
from fxprune.errors import InputError
from fxprune.passes.chains import Span, span_of
from fxprune.passes.linear.editing import erase, free_name
from fxprune.passes.linear.kernels import Kernel
from fxprune.passes.linear.nodes import Convolution, Nodes, tensor_at
from fxprune.passes.linear.observed import Observed
from fxprune.passes.linear.padding import move_padding
from fxprune.passes.linear.tree import Path, kernel_of, names
from fxprune.passes.linear.walk import Walker

_CONVOLUTIONS: Final[Mapping[int, Callable[..., nn.Module]]] = MappingProxyType(
    {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
)

SPANS: Final = "fxprune_spans"
"""Key in `GraphModule.meta` of the spans that wait to be merged, as plain data."""

MERGED: Final = "fxprune_merged"
"""Key in `GraphModule.meta` of the spans that have been merged, as plain data."""


def drop_activations(module: fx.GraphModule, spans: Iterable[Span]) -> fx.GraphModule:
    """A trainable copy of `module` in which every span is one linear map in evaluation mode.

    What changes, and nothing else:
    - the nodes `span.activations` are gone;
    - where `span.moves_padding`, the convolutions inside of the span no longer pad; those that read
      its input pad by all that was moved to them. Results inside grow by a halo, which skip
      connections crop off again; the span's own result keeps its size. Apart from its activations,
      a span computes what it did, except at positions whose window reaches into an old padding:
      there, a layer sees what the layers before make of the padded input in place of zeros.

    The spans, as they stand in the result, are recorded in `meta[SPANS]` of the result.

    Args:
        module: not modified.
        spans: of `find_chains` or `spans_within` on this graph, or on one with the same node names;
            no two may have a node in common.

    Raises:
        InputError: a span does not fit the graph, or two overlap; those that wait already count.
    """
    result = copy.deepcopy(module)
    waiting = spans_of(result)
    chosen = _disjoint([*waiting, *spans])[len(waiting) :]
    chosen = [_found(span, path) for span, path in zip(chosen, _read(result, chosen), strict=True)]
    nodes = {node.name: node for node in result.graph.nodes}
    changed = []
    for span in chosen:
        for name in span.activations:
            nodes[name].replace_all_uses_with(nodes[name].all_input_nodes[0])
            erase(result, nodes[name])
        changed.append(_settled(result, span))
    result.graph.lint()
    result.recompile()
    result.meta[SPANS] = plain.to_plain([*waiting, *changed])
    return result


def merge_spans(module: fx.GraphModule, spans: Iterable[Span]) -> fx.GraphModule:
    """A copy of `module`, in evaluation mode, in which every span is one layer.

    The layer takes the place and name of the span's first convolution. Numerically equal to
    `module` in evaluation mode, as far as the precision of its parameters goes.

    Args:
        module: not modified.
        spans: lossless as the graph stands, as `spans_of(drop_activations(...))` and
            `lossless_spans` give them; no two may have a node in common.

    Raises:
        InputError: a span does not fit the graph, two overlap, or one cannot be merged exactly.
    """
    result = copy.deepcopy(module).eval()
    merge_in_place(result, spans)
    return result


def merge_in_place(module: fx.GraphModule, spans: Iterable[Span]) -> tuple[Span, ...]:
    """`merge_spans` on a module that is the caller's own; returns the spans as they were merged."""
    chosen = _disjoint(spans)
    paths = _read(module, chosen)
    place = {node.name: i for i, node in enumerate(module.graph.nodes)}
    order = sorted(zip(chosen, paths, strict=True), key=lambda pair: -place[pair[0].target])
    # Backwards, because the source of a later span may be the target of an earlier one.
    merged = []
    for span, path in order:
        found = span_of(span.source, path)
        if found is None or not found.lossless:
            raise InputError(
                f"The span {span} cannot be merged exactly as it stands",
                fix="Merge what drop_activations recorded, or what lossless_spans offers",
            )
        _merge(module, found, path)
        merged.append(found)
    module.graph.lint()
    module.recompile()
    return tuple(reversed(merged))


def spans_of(module: fx.GraphModule) -> tuple[Span, ...]:
    """The spans that wait to be merged in `module`.

    Raises:
        InputError: the record in `module.meta` is not one.
    """
    recorded = module.meta.get(SPANS, [])
    try:
        return tuple(plain.from_plain(Span, item, SPANS) for item in recorded)
    except plain.Malformed as error:
        raise InputError(
            f"The spans recorded in the module's meta are malformed at {error}",
            fix="Do not edit meta by hand; drop_activations writes it",
        ) from error


def merged(module: fx.GraphModule) -> fx.GraphModule:
    """`module` with the spans that wait in it merged; itself if there are none."""
    waiting = spans_of(module)
    return merge_spans(module, waiting) if waiting else module


class DropActivationsPass(PassBase):
    """`drop_activations` as an fx pass."""

    def __init__(self, spans: Sequence[Span]) -> None:
        super().__init__()
        self.spans = tuple(spans)

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """A new module; the given one is not changed."""
        return PassResult(drop_activations(graph_module, self.spans), bool(self.spans))


class MergePass(PassBase):
    """`merge_spans` as an fx pass; of the spans recorded in the module, if none are given."""

    def __init__(self, spans: Sequence[Span] | None = None) -> None:
        super().__init__()
        self.spans = None if spans is None else tuple(spans)

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """A new module; the given one is not changed."""
        spans = spans_of(graph_module) if self.spans is None else self.spans
        return PassResult(merge_spans(graph_module, spans), bool(spans))


def _disjoint(spans: Iterable[Span]) -> list[Span]:
    chosen = list(spans)
    owner: dict[str, Span] = {}
    for span in chosen:
        for name in span.nodes:
            if name in owner:
                raise InputError(
                    f"The spans {owner[name]} and {span} overlap",
                    f"both hold {name}",
                    "Choose spans that have no node in common",
                )
            owner[name] = span
    return chosen


def _read(module: fx.GraphModule, spans: Sequence[Span]) -> list[Path]:
    """Each span as a tree of this graph."""
    known = _known(spans)
    reader = Nodes(module, known)
    nodes = {node.name: node for node in module.graph.nodes}
    paths = []
    for span in spans:
        missing = [name for name in (span.source, *span.nodes) if name not in nodes]
        if missing:
            raise _unfit(span, f"there is no node {missing[0]}")
        walked = Walker(reader, frozenset(span.nodes)).walk(nodes[span.source])
        if set(names(walked.path)) != set(span.nodes):
            raise _unfit(span, str(walked.stop))
        paths.append(walked.path)
    return paths


def _found(span: Span, path: Path) -> Span:
    """The span as this graph has it, whatever the one that was given says."""
    found = span_of(span.source, path)
    if found is None:
        raise _unfit(span, "there is nothing to merge")
    return found


def _known(spans: Sequence[Span]) -> Observed:
    """What the analysis knew when it offered the spans."""
    ranks = {name: span.geometry.dims + 2 for span in spans for name in (span.source, *span.nodes)}
    return Observed(ranks, {}, frozenset(name for span in spans for name in span.transparent))


def _unfit(span: Span, why: str) -> InputError:
    return InputError(
        f"The span {span} does not fit this graph",
        why,
        "Take spans from find_chains on this very module, or on one captured in the same way",
    )


def _settled(module: fx.GraphModule, span: Span) -> Span:
    """Move the padding of a span whose activations are gone, if need be; the span as it is then."""
    names_before = {node.name for node in module.graph.nodes}
    left = replace(span, nodes=tuple(name for name in span.nodes if name in names_before))
    (path,) = _read(module, [left])
    if span.moves_padding:
        move_padding(module, span.source, path, span.geometry.dims)
        names_after = {node.name for node in module.graph.nodes}
        own = (set(left.nodes) & names_after) | (names_after - names_before)
        (path,) = _read(module, [replace(span, nodes=tuple(own))])
    found = span_of(span.source, path)
    assert found is not None
    assert found.lossless
    return found


def _merge(module: fx.GraphModule, span: Span, path: Path) -> None:
    """Replace the nodes of `span` by one layer."""
    graph = module.graph
    old = [node for node in graph.nodes if node.name in set(span.nodes)]
    nodes = {node.name: node for node in graph.nodes}
    reader = Nodes(module, _known([span]))
    kernel = kernel_of(
        path,
        span.geometry.in_width,
        span.geometry.dims,
        lambda link: reader.kernel(nodes[link.node]),
    )
    first = nodes[span.convolutions[0]]
    original = reader.convolution(first)
    assert isinstance(original, Convolution)
    layer = _layer(kernel, like=tensor_at(module, original.weight))
    if first.op == "call_module":
        name = str(first.target)
    else:
        name = free_name(module, first.name)
        module.add_module(name, layer)
    with graph.inserting_before(old[0]):
        merged = graph.call_module(name, (nodes[span.source],))
    merged.meta.update(nodes[span.target].meta)
    nodes[span.target].replace_all_uses_with(merged)
    for node in reversed(old):
        erase(module, node)
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, layer)


def _layer(kernel: Kernel, like: Tensor) -> nn.Module:
    """`kernel` as a module, in the precision, layout and place of `like`."""
    shape = kernel.geometry
    bias = kernel.bias is not None
    with torch.device("meta"):  # the values come next: draw none from the caller's generator
        if shape.dims:
            layer = _CONVOLUTIONS[shape.dims](
                shape.in_width,
                shape.out_width,
                shape.kernel,
                stride=shape.stride,
                padding=shape.padding,
                dilation=shape.dilation,
                groups=shape.groups,
                bias=bias,
            )
        else:
            layer = nn.Linear(shape.in_width, shape.out_width, bias=bias)
    weight = kernel.weight.to(like.device, like.dtype)
    if like.dim() == 4 and not like.is_contiguous():
        weight = weight.contiguous(memory_format=torch.channels_last)
    layer.weight = nn.Parameter(weight, requires_grad=like.requires_grad)
    if kernel.bias is not None:
        value = kernel.bias.to(like.device, like.dtype)
        layer.bias = nn.Parameter(value, requires_grad=like.requires_grad)
    return layer.eval()
