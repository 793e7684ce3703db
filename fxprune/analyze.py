"""`fxprune.analyze`: what could be slimmed, what goes together, and what stays dense and why."""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import combinations

import networkx as nx
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from torch import nn

from fxprune.passes.bake import bake
from fxprune.passes.capture import Baked, ExampleInputs, capture
from fxprune.passes.frozen import Frozen, frozen_places, prunable_share
from fxprune.passes.infer import Analysis
from fxprune.passes.infer import Group as ChannelGroup
from fxprune.report import baked_fact

MOST_MEMBERS = 6


@dataclass(frozen=True)
class ModelAnalysis:
    """What `analyze` found out; printing it shows a table.

    Attributes:
        capture: how the model was captured: "symbolic_trace" or "torch.export".
        groups: positions that go together, with every dimension of every parameter they are in.
        frozen: what keeps its width, and why.
        prunable: share of all parameters that lie in some group, in [0, 1].
        graph: groups as nodes (`size`), joined where they meet in a tensor (`tensors`).
        baked: parameters that hold what the model computes from others in each call.
    """

    capture: str
    groups: tuple[ChannelGroup, ...]
    frozen: tuple[Frozen, ...]
    prunable: float
    graph: nx.Graph
    baked: tuple[Baked, ...] = ()

    def __rich__(self) -> Group:
        groups = Table(title=f"{len(self.groups)} groups in {self.prunable:.1%} of the parameters")
        groups.add_column("group", overflow="fold")
        groups.add_column("size", justify="right")
        groups.add_column("shrinks with it", overflow="fold")
        for group in self.groups:
            members = _listed([str(member) for member in group.members])
            groups.add_row(Text(group.name), str(group.size), Text(members))
        frozen = Table(title="What stays dense")
        frozen.add_column("reason", overflow="fold")
        frozen.add_column("where", overflow="fold")
        for place in self.frozen:
            frozen.add_row(Text(place.reason), Text(_listed(list(place.members))))
        notes = [Text(baked_fact([each.name for each in self.baked]))] if self.baked else []
        return Group(groups, frozen, *notes)

    def __str__(self) -> str:
        buffer = io.StringIO()
        Console(file=buffer, width=110, color_system=None).print(self)
        return buffer.getvalue().rstrip()


def analyze(model: nn.Module, example_inputs: ExampleInputs) -> ModelAnalysis:
    """Capture `model` and find out what could be slimmed. `print` the result for a table.

    Args:
        model: any `nn.Module`; not modified.
        example_inputs: what it is called with: a tensor, a tuple of arguments, or a dict.

    Raises:
        InputError, CaptureError: see `fxprune.optimize`.
    """
    captured, analysis = bake(capture(model, example_inputs))
    return ModelAnalysis(
        capture=captured.capture,
        groups=analysis.groups,
        frozen=frozen_places(analysis),
        prunable=prunable_share(analysis),
        graph=group_graph(analysis),
        baked=captured.baked,
    )


def group_graph(analysis: Analysis) -> nx.Graph:
    """Groups, and the tensors in which two of them meet."""
    graph = nx.Graph()
    for group in analysis.groups:
        graph.add_node(group.name, size=group.size)
    for name, axes in analysis.tensors.items():
        met = {g.name: None for axis in axes for g in analysis.groups_in(axis)}
        for one, other in combinations(met, 2):
            known = graph.get_edge_data(one, other, {"tensors": ()})["tensors"]
            graph.add_edge(one, other, tensors=(*known, name))
    return graph


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:MOST_MEMBERS])
    return shown if len(names) <= MOST_MEMBERS else f"{shown}, and {len(names) - MOST_MEMBERS} more"
