"""Chains: stretches of a graph that could become one convolution or linear layer each.

A chain is a maximal path along single values through convolutions (or linear layers), the batch
norms, activations and dropouts between them, and forks whose branches meet again in one addition:
identity skips, projections, parallel convolutions. Without its activations it is one linear map of
`Chain.span.geometry`. A span is any part of a chain that may be merged on its own.

Dropping activations changes what the network computes. Where a convolution inside of a span pads,
its padding has to move to the front as well (see `linear.geometry`), which changes values near the
border and no others. A span that needs neither is lossless.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from fxprune.passes.linear.geometry import Geometry
from fxprune.passes.linear.nodes import Nodes, Refusal
from fxprune.passes.linear.observed import NOTHING, Observed
from fxprune.passes.linear.tree import (
    Fork,
    Link,
    Path,
    SkipKind,
    dims_of,
    forks,
    geometry_of,
    in_width,
    is_exact,
    links,
    names,
    skip_kinds,
)
from fxprune.passes.linear.walk import Walked, Walker


@dataclass(frozen=True)
class Span:
    """A part of a graph that can become one layer, as plain data: nodes by their names.

    Attributes:
        source: the node whose value it reads.
        nodes: what it is made of, inputs before those that read them.
        convolutions: the convolutions and linear layers among them.
        activations: those that have to be dropped.
        transparent: those that are the identity in evaluation mode (dropout).
        skips: kind of each skip connection inside.
        geometry: of the merged layer.
        moves_padding: whether padding inside has to move to the front.
    """

    source: str
    nodes: tuple[str, ...]
    convolutions: tuple[str, ...]
    activations: tuple[str, ...]
    transparent: tuple[str, ...]
    skips: tuple[SkipKind, ...]
    geometry: Geometry
    moves_padding: bool

    @property
    def target(self) -> str:
        """The node whose value the merged layer yields."""
        return self.nodes[-1]

    @property
    def lossless(self) -> bool:
        """Whether merging it changes nothing."""
        return not self.activations and not self.moves_padding

    def __str__(self) -> str:
        return f"{self.nodes[0]} .. {self.target}"


@dataclass(frozen=True)
class Chain:
    """A maximal span.

    Attributes:
        source: the node whose value it reads.
        path: the chain as a tree.
        span: all of it as one span.
        begins: why it does not begin earlier.
        ends: why it goes no further.
    """

    source: str
    path: Path
    span: Span
    begins: str
    ends: str


def find_chains(module: fx.GraphModule, observed: Observed = NOTHING) -> tuple[Chain, ...]:
    """Every chain of `module`, in graph order; no two have a node in common.

    Args:
        module: a captured model, not modified.
        observed: what a run has shown (`observe`). Without it, batch norms that take values of
            several ranks end a chain, and of the modules that do nothing only PyTorch's are known.
    """
    walker = Walker(Nodes(module, observed))
    chains: list[Chain] = []
    claimed: set[str] = set()
    for value in module.graph.nodes:
        for walked in _starts(walker, value, claimed):
            claimed.update(names(walked.path))
            chain = _chain(walker, value, walked)
            if chain is not None:
                chains.append(chain)
    return tuple(chains)


def spans_within(chain: Chain, largest_kernel: int = 7) -> tuple[Span, ...]:
    """Every part of `chain` that can be merged on its own, inside of its forks too.

    Args:
        largest_kernel: the merged kernel may reach over this many input positions at most, in each
            dimension: kernels grow with every member, and the number of spans with their square.
    """
    found = []
    for source, path in _paths(chain.source, chain.path):
        parts = cuts(path)
        for place, (start, _) in enumerate(parts):
            for _, stop in parts[place:]:
                span = span_of(source_of(source, path, start), path[start:stop])
                if span is None:
                    continue
                if max(span.geometry.reach, default=0) >= largest_kernel:
                    break
                found.append(span)
    return tuple(found)


def lossless_spans(chain: Chain) -> tuple[Span, ...]:
    """The parts of `chain` that are lossless and lie in no larger such part; they may overlap."""
    found: list[Span] = []
    for source, path in _paths(chain.source, chain.path):
        parts = cuts(path)
        for place, (start, _) in enumerate(parts):
            before = source_of(source, path, start)
            spans = [span_of(before, path[start:stop]) for _, stop in parts[place:]]
            lossless = [span for span in spans if span is not None and span.lossless]
            covered = any(lossless and set(lossless[-1].nodes) <= set(s.nodes) for s in found)
            found.extend(() if covered else lossless[-1:])
    return tuple(found)


def span_of(source: str, path: Path) -> Span | None:
    """`path`, which reads the value of `source`, as a span; None if there is nothing to merge."""
    parts = list(links(path))
    convolutions = tuple(link.node for link in parts if link.kind == "convolution")
    if len(convolutions) < 1 or len(convolutions) + len(list(forks(path))) < 2:
        return None
    width, dims = in_width(path), dims_of(path)
    assert width is not None
    assert dims is not None
    geometry = geometry_of(path, width, dims)
    if min(geometry.padding, default=0) < 0:
        return None
    return Span(
        source=source,
        nodes=tuple(names(path)),
        convolutions=convolutions,
        activations=tuple(link.node for link in parts if link.kind == "activation"),
        transparent=tuple(link.node for link in parts if link.kind == "transparent"),
        skips=skip_kinds(path),
        geometry=geometry,
        moves_padding=not is_exact(path, width, dims),
    )


def _starts(walker: Walker, value: fx.Node, claimed: set[str]) -> Iterator[Walked]:
    """The paths that begin at `value`, other than those that only go on from an earlier one."""
    unclaimed = [reader for reader in value.users if reader.name not in claimed]
    if not unclaimed:
        return
    if len(value.users) == 1 or isinstance(walker.fork(value), Fork):
        yield walker.walk(value)
    else:
        for reader in unclaimed:
            yield walker.walk_edge(value, reader)


def _chain(walker: Walker, value: fx.Node, walked: Walked) -> Chain | None:
    """The chain in a path: from its first convolution or fork to its last."""
    parts = cuts(walked.path)
    for last in reversed(range(len(parts))):
        start, stop = parts[0][0], parts[last][1]
        source, path = source_of(value.name, walked.path, start), walked.path[start:stop]
        span = span_of(source, path)
        if span is not None:
            return Chain(source, path, span, _why_it_begins(walker, value), str(walked.stop))
    return None


def _why_it_begins(walker: Walker, value: fx.Node) -> str:
    if value.op == "placeholder":
        return f"{value.name} is an input"
    if len(value.users) > 1 and isinstance(refusal := walker.fork(value), Refusal):
        return f"{value.name} has several readers: {refusal}"
    if walker.nodes.addition(value) is not None:
        return f"{value.name} adds values that do not come from one fork"
    source = value.all_input_nodes[0] if value.all_input_nodes else value
    link = walker.link(value, source)
    return str(link) if isinstance(link, Refusal) else f"{source.name} has several readers"


def _paths(source: str, path: Path) -> Iterator[tuple[str, Path]]:
    """`path` and the branches of all its forks, with the value that each reads."""
    yield source, path
    for place, item in enumerate(path):
        if isinstance(item, Fork):
            for branch in item.branches:
                yield from _paths(source_of(source, path, place), branch)


def source_of(source: str, path: Path, place: int) -> str:
    """The node whose value item `place` of `path` reads, where the path itself reads `source`."""
    return path[place - 1].node if place else source


def cuts(path: Path) -> list[tuple[int, int]]:
    """Start and stop of each unit of `path`: a convolution or fork, and the norms behind it."""
    found = []
    for place, item in enumerate(path):
        if isinstance(item, Link) and item.kind != "convolution":
            continue
        stop = place + 1
        for after in range(stop, len(path)):
            behind = path[after]
            if isinstance(behind, Fork) or behind.kind not in ("norm", "transparent"):
                break
            stop = after + 1 if behind.kind == "norm" else stop
        found.append((place, stop))
    return found
