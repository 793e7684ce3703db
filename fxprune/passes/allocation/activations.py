"""Activation memory: which intermediate results are alive at once.

The graph runs node by node, in the order of the captured model. A result lives from the node that
makes it to the last one that reads it or a view of it; weights and the model's own inputs do not
count. A backend that fuses nodes or shares memory needs less, its workspaces come on top.

Memory is kept within a limit if it is at every moment, and each moment is a sum: so one budget on
the peak is several budgets on sums, one for each moment that could exceed it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from torch import fx

from fxprune.axes import Atom, Axes, kept_size
from fxprune.passes.allocation.widths import Choices, Tables
from fxprune.passes.blocks import Block
from fxprune.passes.infer import Analysis


@dataclass(frozen=True)
class Buffer:
    """Memory that one node makes: its axes, and bytes per element.

    Once a block is dropped, the skip stands where its sum stood, in memory of the same size. So
    from its addition on the buffer of a sum has no `node` that could go.
    """

    node: str | None
    index: int
    axes: Axes
    itemsize: int

    def bytes(self, sizes: Mapping[Atom, int]) -> int:
        """Its size when atoms have the given sizes."""
        return self.itemsize * math.prod(kept_size(axis, sizes) for axis in self.axes)


@dataclass(frozen=True)
class Moment:
    """What is alive while `node` runs."""

    node: str
    alive: tuple[Buffer, ...]

    def bytes(self, sizes: Mapping[Atom, int], gone: Set[str] = frozenset()) -> int:
        """How much memory that is when atoms have the given sizes and some nodes are gone."""
        return sum(buffer.bytes(sizes) for buffer in self.alive if buffer.node not in gone)

    def tables(self, choices: Choices) -> Tables:
        """The same as tables over the choices."""
        tables = Tables(choices.domains)
        for buffer in self.alive:
            widths = [choices.width(axis) for axis in buffer.axes]
            gate = choices.stays.get(buffer.node) if buffer.node else None
            tables.add_product(widths, buffer.itemsize, gate)
        return tables


def moments(
    module: fx.GraphModule,
    analysis: Analysis,
    blocks: Sequence[Block] = (),
    dropped: Sequence[Block] = (),
) -> tuple[Moment, ...]:
    """Every node of `module` with what is alive while it runs, in order.

    Args:
        blocks: those that may be dropped later: what `Moment` counts without them is never less
            than what the network needs without them.
        dropped: blocks that are not there.
    """
    gone = {name for block in dropped for name in block.gone}
    skips = {block.addition: block.skip for block in dropped}
    order = [node for node in module.graph.nodes if node.name not in gone]
    storages = _shared(analysis, skips)
    buffers = _buffers(order, analysis, storages)
    last: dict[int, int] = {}
    for time, node in enumerate(order):
        for used in (node, *node.all_input_nodes):
            last |= dict.fromkeys(storages.get(used.name, ()), time)
    sums = {block.addition for block in blocks}
    alive: dict[int, Buffer] = {}
    found = []
    for time, node in enumerate(order):
        made = storages.get(node.name, ())
        alive |= {s: buffers[s] for s in made if s in buffers and s not in alive}
        found.append(Moment(node.name, tuple(alive.values())))
        alive = {storage: buffer for storage, buffer in alive.items() if last[storage] > time}
        if node.name in sums:
            alive |= {s: replace(alive[s], node=None) for s in made if s in alive}
    return tuple(found)


def peak(found: Sequence[Moment], sizes: Mapping[Atom, int]) -> int:
    """The most bytes that are alive at any moment."""
    return max(moment.bytes(sizes) for moment in found)


def critical(found: Sequence[Moment], limit: float) -> tuple[Moment, ...]:
    """The moments that exceed `limit` bytes in the dense model, and lie in no other one."""
    over = {frozenset(m.alive): m for m in found if m.bytes({}) > limit}
    return tuple(m for alive, m in over.items() if not any(alive < other for other in over))


def _shared(analysis: Analysis, skips: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """The storages of every node; where a block is dropped, the sum is the skip."""
    storages = dict(analysis.storages)
    for addition in skips:
        source = addition
        while source in skips:
            source = skips[source]
        storages[addition] = analysis.storages[source]
    return storages


def _buffers(
    order: Sequence[fx.Node], analysis: Analysis, storages: Mapping[str, tuple[int, ...]]
) -> dict[int, Buffer]:
    """For each storage, what its first node makes; none for inputs and weights."""
    given = {
        storage
        for node in order
        if node.op in ("placeholder", "get_attr")
        for storage in storages.get(node.name, ())
    }
    buffers: dict[int, Buffer] = {}
    for node in order:
        for index, storage in enumerate(storages.get(node.name, ())):
            if storage not in given and storage not in buffers:
                axes = analysis.values[node.name][index]
                itemsize = analysis.dtypes[node.name][index].itemsize
                buffers[storage] = Buffer(node.name, index, axes, itemsize)
    return buffers
