"""Which computed weights become parameters, and the proof that the model computes the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import fx, nn

from fxprune.axes import Atom
from fxprune.errors import VerificationError
from fxprune.passes.bake.computed import (
    Computed,
    Hooked,
    Made,
    Parametrized,
    computed_weights,
    value_of,
)
from fxprune.passes.bake.hooked import kept_by, norm_of
from fxprune.passes.bake.rewrite import with_parameters
from fxprune.passes.capture import Baked, Captured, buffers_restored, call_quietly
from fxprune.passes.differences import first_difference
from fxprune.passes.glue.module import GluedModule
from fxprune.passes.infer import Analysis, infer
from fxprune.passes.linear.nodes import tensor_at

Places = Mapping[Computed, frozenset[int]]


def bake(captured: Captured) -> tuple[Captured, Analysis]:
    """`captured` with computed weights made parameters where that lets channels go, and its axes.

    Where there is nothing to gain, it is `captured` itself.

    Raises:
        VerificationError: the model with parameters computes something else.
    """
    if isinstance(captured.module, GluedModule):  # its weights may be read by code that nobody sees
        return captured, infer(captured)
    weights = computed_weights(captured.module)
    kept = _kept_inside(captured.module, weights) if weights else {}
    values = {w: value_of(captured.module, w) for w in weights if kept[w]}
    chosen = {weight: value for weight, value in values.items() if value is not None}
    while chosen:
        trial, baked = with_parameters(captured, chosen)
        analysis = infer(trial)
        written = _written(trial.module, analysis)
        useful = [
            weight
            for weight, parameter in baked.items()
            if _frees(analysis, parameter, kept[weight])
            and written.isdisjoint(_memory(captured.module, trial.module, parameter))
        ]
        if len(useful) == len(chosen):
            trial = replace(trial, baked=tuple(dict.fromkeys(baked.values())))
            _require_same(captured, trial)
            return trial, analysis
        chosen = {weight: chosen[weight] for weight in useful}
    return captured, infer(captured)


def _kept_inside(module: fx.GraphModule, weights: Sequence[Computed]) -> Places:
    """For each weight, the dimensions that computing it keeps, whatever is done with it later.

    They are those that stay where nothing else is computed. What hooks do is known.
    """
    graph = fx.Graph()
    alone = fx.GraphModule(nn.Module(), fx.Graph())
    for name in ("_parameters", "_buffers", "_modules"):
        vars(alone)[name] = vars(module)[name]
    copies: dict[fx.Node, fx.Node] = {}
    interior = {node for weight in weights if isinstance(weight, Made) for node in weight.interior}
    for node in module.graph.nodes:
        if node in interior:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    results: dict[Computed, fx.Node] = {}
    for weight in weights:
        if isinstance(weight, Made):
            results[weight] = copies[weight.node]
        elif isinstance(weight, Parametrized):
            results[weight] = graph.create_node("get_attr", weight.name)
    graph.output(tuple(results.values()))
    alone.graph = graph
    analysis = infer(Captured(alone, (), "part of a captured model"))
    kept = {
        weight: frozenset(
            dim
            for dim, axis in enumerate(analysis.values[node.name][0])
            if any(_is_kept(analysis, atom) for atom in axis.atoms)
        )
        for weight, node in results.items()
    }
    for weight in weights:
        if isinstance(weight, Hooked):
            layer = module.get_submodule(weight.path)
            kept[weight] = kept_by(norm_of(layer, weight.leaf), getattr(layer, weight.leaf).dim())
    return kept


def _is_kept(analysis: Analysis, atom: Atom) -> bool:
    reason = analysis.reasons.get(atom)
    return reason is not None and reason.rule != "output"


def _frees(analysis: Analysis, parameter: Baked, kept: frozenset[int]) -> bool:
    """Whether channels can go from `parameter` that computing it would keep."""
    axes = analysis.tensors[parameter.name]
    return any(analysis.groups_in(axes[dim]) for dim in kept)


def _written(module: fx.GraphModule, analysis: Analysis) -> set[int]:
    """The tensors of `module` that some node writes into, by their number."""
    nodes = [node for node in module.graph.nodes if node.name in analysis.writes]
    memory = {
        place for n in nodes for u in n.all_input_nodes for place in analysis.storages[u.name]
    }
    return {
        id(tensor_at(module, str(node.target)))
        for node in module.graph.nodes
        if node.op == "get_attr" and not memory.isdisjoint(analysis.storages[node.name])
    }


def _memory(original: nn.Module, module: nn.Module, parameter: Baked) -> set[int]:
    """A computed weight and the tensors that it is computed from, by their number."""
    sources = {id(tensor_at(original, name)) for name in parameter.sources}
    return sources | {id(tensor_at(module, parameter.name))}


def _require_same(captured: Captured, trial: Captured) -> None:
    found: list[object] = []
    for each in (captured, trial):
        with buffers_restored(each.module):
            found.append(call_quietly(each.module, each.example_inputs))
    difference = first_difference(*found)
    if difference is not None:
        raise VerificationError(
            f"with its computed weights as parameters, the model is another one: {difference}",
            ", ".join(str(parameter) for parameter in trial.baked),
            "Please report this model",
            node="",
        )
