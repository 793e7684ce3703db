"""Series and parallel: a stretch of a graph between two values, as a tree.

A path is a sequence of links (one node each) and forks (branches that start at one value and end in
one addition; an empty branch is a skip connection).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fxprune.passes.linear import geometry, kernels
from fxprune.passes.linear.geometry import Geometry
from fxprune.passes.linear.kernels import Kernel

LinkKind = Literal["convolution", "norm", "pad", "activation", "transparent"]
SkipKind = Literal["identity", "projection", "parallel"]


@dataclass(frozen=True, slots=True)
class Link:
    """One node with one input and one output.

    Attributes:
        node: its name in the graph.
        kind: "convolution" is a linear layer too; "transparent" is the identity in evaluation mode.
        dims: spatial dimensions that it needs behind the channels; None if it takes any.
        geometry: of convolutions and norms.
        pad: zeros on either side per dimension, of pads; negative where it crops.
    """

    node: str
    kind: LinkKind
    dims: int | None = None
    geometry: Geometry | None = None
    pad: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Fork:
    """Two branches from one value whose results are added.

    Attributes:
        node: name of the addition.
        branches: in the order in which they leave the value.
        geometry: what they make together, their activations left out.
        exact: whether that is so at the border too, with each padding where it stands.
    """

    node: str
    branches: tuple[Path, ...]
    geometry: Geometry
    exact: bool


Path: TypeAlias = tuple[Link | Fork, ...]


def dims_of(path: Path) -> int | None:
    """Spatial dimensions that the path works on, if anything in it says so."""
    found = (item.geometry.dims if isinstance(item, Fork) else item.dims for item in path)
    return next((dims for dims in found if dims is not None), None)


def in_width(path: Path) -> int | None:
    """Channels that the path reads, if anything in it says so."""
    found = (item.geometry for item in path if item.geometry is not None)
    return next((geometry.in_width for geometry in found), None)


def acting(path: Path, width: int, dims: int) -> Iterator[tuple[Link | Fork, Geometry]]:
    """The items that change values, activations left out, with the geometry of each."""
    for item in path:
        if item.geometry is not None:
            width = item.geometry.out_width
            yield item, item.geometry
        elif isinstance(item, Link) and item.pad is not None:
            yield item, geometry.identity(width, dims, item.pad)


def geometry_of(path: Path, width: int, dims: int) -> Geometry:
    """What the path amounts to, activations left out and padding moved to the front."""
    steps = (step for _, step in acting(path, width, dims))
    return functools.reduce(Geometry.then, steps, geometry.identity(width, dims))


def is_exact(path: Path, width: int, dims: int) -> bool:
    """Whether `geometry_of` holds at the border too, with each padding where it stands."""
    before = geometry.identity(width, dims)
    for item, step in acting(path, width, dims):
        if isinstance(item, Fork) and not item.exact:
            return False
        if not before.is_exact_before(step):
            return False
        before = before.then(step)
    return True


def kernel_of(path: Path, width: int, dims: int, leaf: Callable[[Link], Kernel]) -> Kernel:
    """What the path amounts to, as numbers; `leaf` reads those of a convolution or norm."""
    merged: Kernel | None = None
    for item, step in acting(path, width, dims):
        if isinstance(item, Fork):
            branches = (kernel_of(b, step.in_width, dims, leaf) for b in item.branches)
            kernel = functools.reduce(kernels.plus, branches)
        elif item.kind == "pad":
            kernel = kernels.identity(step.in_width, dims, step.padding)
        else:
            kernel = leaf(item)
        merged = kernel if merged is None else kernels.then(merged, kernel)
    return kernels.identity(width, dims) if merged is None else merged


def links(path: Path) -> Iterator[Link]:
    """Every link, those inside of forks included."""
    for item in path:
        if isinstance(item, Link):
            yield item
        else:
            for branch in item.branches:
                yield from links(branch)


def forks(path: Path) -> Iterator[Fork]:
    """Every fork, inner ones after those that hold them."""
    for item in path:
        if isinstance(item, Fork):
            yield item
            for branch in item.branches:
                yield from forks(branch)


def names(path: Path) -> Iterator[str]:
    """Names of all nodes of the path, inputs before those that read them."""
    for item in path:
        if isinstance(item, Fork):
            for branch in item.branches:
                yield from names(branch)
        yield item.node


def skip_kinds(path: Path) -> tuple[SkipKind, ...]:
    """How the shorter branch of each fork looks."""
    return tuple(_skip_kind(fork) for fork in forks(path))


def _skip_kind(fork: Fork) -> SkipKind:
    counts = []
    for branch in fork.branches:
        convolutions = [link for link in links(branch) if link.kind == "convolution"]
        counts.append((len(convolutions), convolutions))
    number, shorter = min(counts, key=lambda count: count[0])
    if number == 0:
        return "identity"
    kernel = shorter[0].geometry.kernel if shorter[0].geometry is not None else ()
    return "projection" if number == 1 and set(kernel) <= {1} else "parallel"
