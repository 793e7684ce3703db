"""Forms: which blocks go and which spans are merged, as choices for the solver.

Blocks and spans are both *parts* of the graph that can be taken out of it: a dropped block leaves
its skip, a merged span its kernel. Two parts that share a node exclude one another. So the nodes
that parts cover fall into cells, each covered by the same parts; at most one of these can be taken.

A cluster is a run of cells, and one choice: its options, the forms, are all sets of parts that
touch the cluster and exclude none of each other. Where a chain of parts is too long for one choice,
it is cut where the fewest parts cross, and the clusters on either side are tied: they have to agree
about the parts that they share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from torch import fx

from fxprune.passes.blocks import Block
from fxprune.passes.merges import Merge
from fxprune.solver import SparseFactor

Part = Block | Merge
Form = frozenset[str]

MOST_FORMS = 24


@dataclass(frozen=True)
class Gate:
    """A factor of 0 or 1 for each option of a choice."""

    choice: str
    open: NDArray[np.float64]


@dataclass(frozen=True)
class Cluster:
    """One choice among forms.

    Attributes:
        name: of the choice.
        nodes: the nodes of its cells.
        forms: names of the parts that are taken; none in the last one.
    """

    name: str
    nodes: frozenset[str]
    forms: tuple[Form, ...]

    def gate(self, *parts: str, taken: bool) -> Gate:
        """Open in the forms that take one of `parts`, or in those that take none."""
        hit = [not form.isdisjoint(parts) for form in self.forms]
        return Gate(self.name, np.array(hit if taken else np.logical_not(hit), dtype=np.float64))


@dataclass(frozen=True)
class Forms:
    """All parts that may be taken, and the choices that say which are.

    Attributes:
        parts: by name.
        clusters: the choices.
        homes: for every part, a cluster that tells whether it is taken.
        ties: between clusters that share parts.
    """

    parts: Mapping[str, Part]
    clusters: tuple[Cluster, ...]
    homes: Mapping[str, Cluster]
    ties: tuple[SparseFactor, ...]

    @staticmethod
    def of(parts: Iterable[Part], graph: fx.Graph) -> Forms:
        """The forms of `graph`, `parts` of which may be taken, those that overlap not together."""
        found = {part.name: part for part in parts}
        exclusive = _Exclusive({name: part.gone for name, part in found.items()}, graph)
        runs = [run for component in exclusive.components() for run in exclusive.cut(component)]
        clusters = tuple(exclusive.cluster(run) for run in runs)
        homes: dict[str, Cluster] = {}
        neighbours: dict[tuple[int, int], None] = {}
        for name in found:
            touched = [i for i, c in enumerate(clusters) if any(name in form for form in c.forms)]
            homes[name] = clusters[touched[0]]
            neighbours |= dict.fromkeys(pairwise(touched))
        ties = tuple(_tie(clusters[i], clusters[j]) for i, j in neighbours)
        return Forms(found, clusters, homes, ties)

    def blocks(self) -> tuple[Block, ...]:
        """The blocks that may go."""
        return tuple(part for part in self.parts.values() if isinstance(part, Block))

    def merges(self) -> tuple[Merge, ...]:
        """The spans that may be merged."""
        return tuple(part for part in self.parts.values() if isinstance(part, Merge))

    def runs(self) -> dict[str, Gate]:
        """For every node and tensor in a part, whether it runs as itself."""
        gates = self._open(self._covering(self.parts.values()))
        for block in self.blocks():
            gates |= dict.fromkeys(block.tensors, self.left(block.name))
        for merge in self.merges():
            gates |= {tensor: gates[node] for tensor, node in merge.tensors.items()}
        return gates

    def stays(self) -> dict[str, Gate]:
        """For every node and tensor in a block, whether the block is kept."""
        gates = self._open(self._covering(self.blocks()))
        for block in self.blocks():
            gates |= dict.fromkeys(block.tensors, self.left(block.name))
        return gates

    def barest(self) -> dict[str, int]:
        """For every cluster, the form without any block, in which nothing is merged."""
        blocks = frozenset(block.name for block in self.blocks())
        return {c.name: c.forms.index(blocks & frozenset().union(*c.forms)) for c in self.clusters}

    def between(
        self, least: Mapping[str, int] | None, most: Mapping[str, int] | None
    ) -> dict[str, list[int]]:
        """For every cluster, the forms with all blocks of one network and none that another lacks.

        Spans are merged as in these, since that is neither more nor less.

        Args:
            least, most: the option of every cluster in either network, None for no such network.
        """
        blocks = frozenset(block.name for block in self.blocks())
        allowed: dict[str, list[int]] = {}
        for cluster in self.clusters:
            forms = cluster.forms
            at_least, at_most = (forms[o[cluster.name]] if o else None for o in (least, most))
            allowed[cluster.name] = [
                i
                for i, form in enumerate(forms)
                if (at_least is None or _leaves_no_less(form, at_least, blocks))
                and (at_most is None or _leaves_no_less(at_most, form, blocks))
            ]
        return allowed

    def of_options(self, options: Mapping[str, int]) -> tuple[Part, ...]:
        """The parts that are taken when every cluster takes the given option."""
        forms = (cluster.forms[options[cluster.name]] for cluster in self.clusters)
        taken = frozenset().union(*forms)
        return tuple(part for name, part in self.parts.items() if name in taken)

    def taken(self, part: str) -> Gate:
        """Whether `part` is taken."""
        return self.homes[part].gate(part, taken=True)

    def left(self, part: str) -> Gate:
        """Whether `part` is not taken."""
        return self.homes[part].gate(part, taken=False)

    def _open(self, covering: Mapping[str, Sequence[str]]) -> dict[str, Gate]:
        return {
            node: cluster.gate(*covering[node], taken=False)
            for cluster in self.clusters
            for node in cluster.nodes
            if node in covering
        }

    @staticmethod
    def _covering(parts: Iterable[Part]) -> dict[str, list[str]]:
        covering: dict[str, list[str]] = {}
        for part in parts:
            for node in part.gone:
                covering.setdefault(node, []).append(part.name)
        return covering


NO_FORMS = Forms({}, (), {}, ())


@dataclass(frozen=True)
class _Cell:
    """Nodes that the same parts cover."""

    nodes: frozenset[str]
    parts: Form


class _Exclusive:
    """Parts that exclude one another where they overlap."""

    def __init__(self, nodes: Mapping[str, frozenset[str]], graph: fx.Graph) -> None:
        place = {node.name: i for i, node in enumerate(graph.nodes)}
        covering: dict[str, set[str]] = {}
        for part, own in nodes.items():
            for node in own:
                covering.setdefault(node, set()).add(part)
        cells: dict[Form, list[str]] = {}
        for node in sorted(covering, key=place.__getitem__):
            cells.setdefault(frozenset(covering[node]), []).append(node)
        self.cells = [_Cell(frozenset(own), parts) for parts, own in cells.items()]
        self.conflicts: dict[str, set[str]] = {part: set() for part in nodes}
        for cell in self.cells:
            for part in cell.parts:
                self.conflicts[part] |= cell.parts - {part}

    def components(self) -> list[list[_Cell]]:
        """The cells, apart where no part connects them."""
        graph = nx.Graph()
        for i, cell in enumerate(self.cells):
            graph.add_edges_from((i, part) for part in cell.parts)
        found = (sorted(n for n in c if isinstance(n, int)) for c in nx.connected_components(graph))
        return [[self.cells[i] for i in component] for component in sorted(found)]

    def cut(self, run: Sequence[_Cell]) -> list[Sequence[_Cell]]:
        """`run` in pieces that have few enough forms; a single cell is never cut."""
        if len(run) == 1 or self._count(run) <= MOST_FORMS:
            return [run]

        def crossing(place: int) -> tuple[int, float]:
            left = frozenset().union(*(cell.parts for cell in run[:place]))
            right = frozenset().union(*(cell.parts for cell in run[place:]))
            return len(left & right), abs(place - len(run) / 2)

        place = min(range(1, len(run)), key=crossing)
        return [*self.cut(run[:place]), *self.cut(run[place:])]

    def cluster(self, run: Sequence[_Cell]) -> Cluster:
        """The choice among the forms of `run`; the last one is that without parts."""
        nodes = frozenset().union(*(cell.nodes for cell in run))
        parts = sorted(frozenset().union(*(cell.parts for cell in run)))
        forms = sorted(self._forms(parts), key=lambda form: (-len(form), sorted(form)))
        return Cluster(f"form of {', '.join(parts)}", nodes, tuple(forms))

    def _count(self, run: Sequence[_Cell]) -> int:
        parts = sorted(frozenset().union(*(cell.parts for cell in run)))
        return sum(1 for _ in islice(self._forms(parts), MOST_FORMS + 1))

    def _forms(self, parts: Sequence[str]) -> Iterator[Form]:
        """All sets of `parts` that exclude none of each other."""
        if not parts:
            yield frozenset()
            return
        first, *rest = parts
        yield from self._forms(rest)
        for form in self._forms([part for part in rest if part not in self.conflicts[first]]):
            yield form | {first}


def _leaves_no_less(form: Form, other: Form, blocks: Form) -> bool:
    """Whether a form drops no block that another one keeps, and merges the same."""
    return form & blocks <= other and form - blocks == other - blocks


def _tie(left: Cluster, right: Cluster) -> SparseFactor:
    """Lets the forms of two clusters go together if they agree about the parts that they share."""
    shared = _parts(left) & _parts(right)
    rows = np.array(
        [
            (i, j)
            for i, here in enumerate(left.forms)
            for j, there in enumerate(right.forms)
            if here & shared == there & shared
        ],
        dtype=np.int64,
    )
    nothing = np.zeros((0, len(rows)), dtype=np.int64)
    scope = (left.name, right.name)
    return SparseFactor(f"{left.name} | {right.name}", scope, rows, nothing, np.zeros(len(rows)))


def _parts(cluster: Cluster) -> Form:
    return frozenset().union(*cluster.forms)
