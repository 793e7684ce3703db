"""Walk a graph along values that one node reads, and through forks that close again."""

from __future__ import annotations

import functools
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from fxprune.passes.constants import argument, operation
from fxprune.passes.linear.nodes import Convolution, Nodes, Norm, Refusal, scaling_of
from fxprune.passes.linear.tree import Fork, Link, Path, dims_of, geometry_of, in_width, is_exact

# Elementwise, and close to the identity for some inputs; gates such as the sigmoid are not.
ACTIVATION_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU,
    nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardtanh, nn.Softplus, nn.Tanh,
)  # fmt: skip
ACTIVATION_FUNCTIONS = frozenset(
    {"relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish",
     "hardswish", "hardtanh", "softplus", "tanh"}
)  # fmt: skip
TRANSPARENT = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)  # fmt: skip
ZERO_PADS = (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)


@dataclass(frozen=True, slots=True)
class Walked:
    """A path, the value that it ends in, and why it goes no further."""

    path: Path
    end: fx.Node
    stop: Refusal


@dataclass(frozen=True, slots=True)
class _Branch:
    path: Path
    end: fx.Node
    closes: fx.Node  # the addition that reads `end`


class Walker:
    """Finds paths in one graph, which must not change meanwhile.

    Args:
        nodes: reads the nodes of the graph.
        within: names of the nodes that may be used; all if not given. Of a value that lies outside,
            only the readers inside count.
    """

    def __init__(self, nodes: Nodes, within: Set[str] | None = None) -> None:
        self.nodes = nodes
        self._within = within
        self._order = {node: place for place, node in enumerate(nodes.module.graph.nodes)}
        self._by_name = {node.name: node for node in self._order}
        self._fork = functools.cache(self._find_fork)

    def fork(self, value: fx.Node) -> Fork | Refusal:
        """The fork that starts at `value` and takes in all of its readers."""
        return self._fork(value)

    def walk(self, value: fx.Node) -> Walked:
        """As far as one can get from `value`, with all of its readers."""
        return self._extend((), value)

    def walk_edge(self, value: fx.Node, reader: fx.Node) -> Walked:
        """As far as one can get from `value` through one of its readers."""
        link = self.link(reader, value)
        return (
            Walked((), value, link) if isinstance(link, Refusal) else self._extend((link,), reader)
        )

    def readers(self, value: fx.Node) -> list[fx.Node]:
        """The nodes that read `value`."""
        users = list(value.users)
        if self._within is None or value.name in self._within:
            return users
        return [user for user in users if user.name in self._within]

    def link(self, node: fx.Node, value: fx.Node) -> Link | Refusal:
        """`node` as one link behind `value`."""
        name = node.name
        if self._within is not None and name not in self._within:
            return Refusal(name, "lies outside of the span")
        for found in (self.nodes.convolution(node), self.nodes.norm(node)):
            if isinstance(found, Refusal):
                return found
            if found is not None and found.source is not value:
                return Refusal(name, "reads the value as something else than its input")
            if isinstance(found, Convolution):
                if found.oddity is not None:
                    return Refusal(name, found.oddity)
                return Link(name, "convolution", found.geometry.dims, found.geometry)
            if isinstance(found, Norm):
                if found.rank is None:
                    return Refusal(name, "takes values of several ranks; which, is not known")
                dims = found.rank - 2
                return Link(name, "norm", dims, scaling_of(found, dims))
        if name in self.nodes.observed.identities:
            return Link(name, "transparent")
        return self._plain_link(node, value)

    def _plain_link(self, node: fx.Node, value: fx.Node) -> Link | Refusal:
        name = node.name
        if node.op == "output":
            return Refusal(name, "returns it")
        if node.op == "call_module":
            owner: Any = self.nodes.module.get_submodule(str(node.target))
            if type(owner) in ACTIVATION_MODULES:
                return Link(name, "activation")
            if type(owner) in TRANSPARENT:
                return Link(name, "transparent")
            if type(owner) in ZERO_PADS:
                return _pad(name, owner.padding)
            return Refusal(name, f"is a {type(owner).__name__}, which is not linear")
        called = (operation(node) or "").removesuffix("_")
        if argument(node, 0, "input") is value and called in ACTIVATION_FUNCTIONS:
            return Link(name, "activation")
        if called == "pad" and argument(node, 0, "input") is value:
            return _pad_function(node)
        return Refusal(name, f"is {called or node.op}, which is not linear")

    def _extend(self, path: Path, value: fx.Node) -> Walked:
        while True:
            step = self._step(value, self.readers(value))
            if isinstance(step, Refusal):
                return Walked(path, value, step)
            item, after = step
            here, there = dims_of(path), dims_of((item,))
            if here is not None and there is not None and here != there:
                return Walked(path, value, Refusal(item.node, "works on other dimensions"))
            path, value = (*path, item), after

    def _step(
        self, value: fx.Node, readers: list[fx.Node]
    ) -> tuple[Link | Fork, fx.Node] | Refusal:
        if not readers:
            return Refusal(value.name, "is not read")
        if len(readers) > 1:
            fork = self.fork(value)
            if isinstance(fork, Refusal):
                return fork
            return fork, self._by_name[fork.node]
        (reader,) = readers
        if self.nodes.addition(reader) is not None:
            return Refusal(reader.name, "adds another value")
        link = self.link(reader, value)
        return link if isinstance(link, Refusal) else (link, reader)

    def _find_fork(self, value: fx.Node) -> Fork | Refusal:
        branches: list[_Branch] = []
        for reader in self.readers(value):
            walked = Walked((), value, Refusal(reader.name, ""))
            if self.nodes.addition(reader) is None:
                walked = self.walk_edge(value, reader)
            branch = self._closed(walked, value, reader)
            if isinstance(branch, Refusal):
                return branch
            branches.append(branch)
        while True:
            pair = _meeting(branches)
            if pair is None:
                return Refusal(value.name, "has readers that do not meet again in one addition")
            fork = self._joined(value, pair)
            if isinstance(fork, Refusal):
                return fork
            branches = [branch for branch in branches if branch not in pair]
            if not branches:
                return fork
            walked = self._extend((fork,), pair[0].closes)
            branch = self._closed(walked, value, pair[0].closes)
            if isinstance(branch, Refusal):
                return branch
            branches.append(branch)

    def _closed(self, walked: Walked, value: fx.Node, reader: fx.Node) -> _Branch | Refusal:
        """The branch that was walked, if an addition is what stopped it."""
        if not walked.path:
            closes = reader if self.nodes.addition(reader) is not None else None
        else:
            readers = self.readers(walked.end)
            closes = readers[0] if len(readers) == 1 else None
        addition = None if closes is None else self.nodes.addition(closes)
        if closes is None or addition is None:
            return walked.stop
        if self._within is not None and closes.name not in self._within:
            return Refusal(closes.name, "lies outside of the span")
        # An addition into the value itself must come after everybody else has read it.
        if addition.mutates is value and any(
            self._order[other] > self._order[closes] for other in value.users
        ):
            return Refusal(closes.name, f"overwrites {value.name} while it is still needed")
        return _Branch(walked.path, walked.end, closes)

    def _joined(self, value: fx.Node, pair: tuple[_Branch, _Branch]) -> Fork | Refusal:
        node = pair[0].closes.name
        paths = tuple(branch.path for branch in pair)
        dims = {found for path in paths if (found := dims_of(path)) is not None}
        widths = [found for path in paths if (found := in_width(path)) is not None]
        if len(dims) != 1 or not widths:
            return Refusal(
                node, "adds branches that say nothing, or different things, of dimensions"
            )
        (dim,) = dims
        first, second = (geometry_of(path, widths[0], dim) for path in paths)
        why_not = first.why_not_plus(second)
        if why_not is not None:
            return Refusal(node, f"cannot be merged: {why_not}")
        exact = all(is_exact(path, widths[0], dim) for path in paths)
        return Fork(node, paths, first.plus(second), exact)


def _meeting(branches: list[_Branch]) -> tuple[_Branch, _Branch] | None:
    """Two branches that end in the same addition."""
    for place, branch in enumerate(branches):
        for other in branches[place + 1 :]:
            if branch.closes is other.closes:
                return branch, other
    return None


def _pad_function(node: fx.Node) -> Link | Refusal:
    amounts = argument(node, 1, "pad", ())
    mode, value = argument(node, 2, "mode", "constant"), argument(node, 3, "value", None)
    if mode != "constant" or value not in (None, 0):
        return Refusal(node.name, "pads with something else than zeros")
    if not all(isinstance(amount, int) for amount in amounts):
        return Refusal(node.name, "computes its padding")
    return _pad(node.name, amounts)


def _pad(name: str, amounts: Sequence[int]) -> Link | Refusal:
    """Zero padding as `F.pad` takes it: before and after, the last dimension first."""
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))
    if any(before != after for before, after in pairs):
        return Refusal(name, "pads one side more than the other")
    return Link(name, "pad", len(pairs), pad=tuple(before for before, _ in reversed(pairs)))
