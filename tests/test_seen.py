"""What networks that were profiled tell about the tables."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from fxprune.axes import Atom
from fxprune.backends import Settings
from fxprune.backends.profiles import OVERHEAD
from fxprune.cache import Cache
from fxprune.passes import kernel_clock, kernels, latency
from fxprune.passes.blocks import find_blocks
from fxprune.passes.seen import Correction, Seen, between_layers, corrections, nearest_of
from fxprune.passes.slim import slim
from tests.networks import images, small_resnet
from tests.properties import plan_of
from tests.test_latency import FormulaBackend, prepared, seconds_of


def in_network(layer, sizes):
    """Twice the time alone in a wide network, down to the time alone in a narrow one."""
    region = layer.at(sizes)
    wide = region.out_width / layer.region.out_width
    return seconds_of(region) * (1 + wide)


def profile_of(layers, sizes):
    return {
        **{layer.node: in_network(layer, sizes) for layer in layers},
        "mean": 4e-6,
        "[reorder]": 2e-6,
        OVERHEAD: 8e-6,
    }


@pytest.fixture
def setting(monkeypatch, tmp_path):
    monkeypatch.setattr(
        kernel_clock,
        "measure",
        lambda engine, inputs, timing: SimpleNamespace(seconds=seconds_of(engine)),
    )
    captured, analysis, layers, choices = prepared(small_resnet(16), images(1))
    with Cache(tmp_path / "cache.sqlite") as cache:
        tables = kernels.measure_layers(
            layers, choices, FormulaBackend(), Settings(), "cpu", 4, cache
        )
    return captured, analysis, layers, choices, tables


def deployed(captured, analysis, sizes):
    kept = {g.name: tuple(range(sizes[g.atom])) for g in analysis.groups}
    return fxprune.finalize(slim(captured, analysis, plan_of(analysis, kept)), (images(1),))


def test_tables_tell_of_a_network_that_was_seen_what_it_took(setting):
    captured, analysis, layers, choices, tables = setting
    dense = profile_of(layers, {})
    options = dict.fromkeys(choices.domains, 1)
    sizes = {atom: rung.widths[1] for atom, rung in choices.ladders.items()}
    slim_profile = profile_of(layers, sizes)
    seen = Seen.of(
        sizes,
        (),
        deployed(captured, analysis, sizes),
        slim_profile,
        sum(slim_profile.values()),
        layers,
    )

    def told(*networks):
        model = latency.build_latency_model(
            captured.module,
            analysis,
            choices,
            tables,
            sum(dense.values()),
            dense,
            seen=networks,
        )
        return model.tables.at(options)

    took = sum(slim_profile.values())
    assert told() > 1.2 * took
    assert told(seen) == pytest.approx(took, rel=0.01)
    assert seen.seconds == pytest.approx(took)
    assert seen.overhead == pytest.approx(slim_profile[OVERHEAD])
    assert seen.scaled(2.0).seconds == pytest.approx(2 * took)


def test_what_a_dropped_block_leaves_behind_tells_nothing_of_its_layers(setting):
    """The activation after a residual addition stays where its block is dropped."""
    captured, analysis, layers, _, _ = setting
    sizes = {group.atom: group.size for group in analysis.groups}
    dropped = next(b for b in find_blocks(captured.module, analysis) if b.place == "blocks.0")
    plan = replace(plan_of(analysis, {}), dropped=(dropped.addition,))
    module = fxprune.finalize(slim(captured, analysis, plan), (images(1),))
    left = {node.name for node in module.graph.nodes}
    gone = {layer.node for layer in layers} - left
    profile = {name: 1e-6 for layer in layers for name in layer.fused if name in left}
    activations = [layer.fused[-1] for layer in layers if layer.node in gone]
    assert profile.keys() & set(activations), "one of them runs on"
    seen = Seen.of(sizes, (), module, profile, sum(profile.values()), layers)
    assert not {node for nodes, _ in seen.kernels for node in nodes} & gone
    assert seen.between.keys() == profile.keys() & set(activations)
    assert seen.seconds == pytest.approx(sum(profile.values()))


def test_what_was_seen_survives_json_and_a_change_of_pace(setting):
    captured, analysis, layers, choices, _ = setting
    sizes = {atom: rung.widths[1] for atom, rung in choices.ladders.items()}
    profile = profile_of(layers, sizes)
    module = deployed(captured, analysis, sizes)
    seen, slower = (
        Seen.of(sizes, (), module, profile, pace * sum(profile.values()), layers)
        for pace in (1.0, 2.0)
    )
    groups = {group.atom: group.name for group in analysis.groups}
    text = json.dumps(seen.scaled(2.0).to_json(groups))
    assert Seen.from_json(json.loads(text), {n: a for a, n in groups.items()}) == slower


def test_what_views_are_seen_to_take_is_counted_where_they_are(monkeypatch, tmp_path):
    """A channel shuffle is views to PyTorch, and a copy to most compilers."""
    monkeypatch.setattr(
        kernel_clock,
        "measure",
        lambda engine, inputs, timing: SimpleNamespace(seconds=seconds_of(engine)),
    )
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Flatten(2), nn.Conv1d(16, 4, 1))
    captured, analysis, layers, choices = prepared(model, images(1))
    with Cache(tmp_path / "cache.sqlite") as cache:
        tables = kernels.measure_layers(
            layers, choices, FormulaBackend(), Settings(), "cpu", 4, cache
        )
    (view,) = (
        node.name for node in captured.module.graph.nodes if "flatten" in f"{node.target} {node}"
    )

    def profile(sizes):
        alone = {layer.node: seconds_of(layer.at(sizes)) for layer in layers}
        return {**alone, view: 1e-6 * sizes.get(layers[0].outputs, 16)}

    sizes = {atom: rung.widths[1] for atom, rung in choices.ladders.items()}
    took = sum(profile(sizes).values())
    module = deployed(captured, analysis, sizes)
    seen = Seen.of(sizes, (), module, profile(sizes), took, layers)
    for networks in ((), (seen,)):
        model = latency.build_latency_model(
            captured.module,
            analysis,
            choices,
            tables,
            sum(profile({}).values()),
            profile({}),
            seen=networks,
        )
        told = model.tables.at(dict.fromkeys(choices.domains, 1))
        assert told == pytest.approx(took, rel=0.01)


def test_nodes_between_layers_follow_the_network_with_the_nearest_latency():
    def network(seconds, mean):
        return Seen({}, ((("conv",), seconds - mean),), {"mean": mean}, 0.0, frozenset({"mean"}))

    axis = Atom(0, 8)
    some = [network(0.8, 0.1), network(0.4, 0.2), network(0.41, 0.3)]

    def told(near):
        nearest = nearest_of(some, near)
        return between_layers([("mean", ((axis,),))], {"mean": 1.0}, {"mean": 0.0}, nearest)

    assert told(1.0) == {"mean": 0.1}
    assert told(0.42) == {"mean": 0.3}
    assert told(0.2) == {"mean": 0.2}


def test_a_network_with_a_latency_near_what_is_asked_for_tells_alone_of_its_layers(setting):
    *_, layers, choices, tables = setting
    sizes = {atom: rung.widths[1] for atom, rung in choices.ladders.items()}
    first, second, *others = layers
    factors: dict[str, list[float]] = {}

    def network(seconds, factor, those):
        told = {t.layer.node: t.at(sizes) * factor for t in tables if t.layer in those}
        kernels = tuple(((node,), taken) for node, taken in told.items())
        return Seen(sizes, kernels, {}, seconds - sum(told.values()), frozenset(told))

    far = network(0.5, 3.0, layers)
    near = network(0.95, 2.0, [first, *others])
    for seconds in (0.9, 0.7):
        found = corrections(tables, [1.0] * len(tables), [near, far], seconds)
        for layer in (first, second):
            factor = found[layer.node](*map(np.array, layer.widths(sizes)[:2]))
            factors.setdefault(layer.node, []).append(float(factor))
    assert factors[first.node] == pytest.approx([2.0, 6.0**0.5], rel=0.01)
    assert factors[second.node] == pytest.approx([3.0, 3.0], rel=0.01)


def test_a_correction_holds_near_the_widths_that_were_seen():
    there, dense = np.log2([[8.0, 16.0]]), np.log2([64.0, 64.0])
    correction = Correction(there, np.log([0.5]), dense)
    assert correction(8, 16) == pytest.approx(0.5, rel=0.01)
    assert 0.5 < correction(16, 16) < correction(32, 32) < correction(64, 64) < 1
    assert correction(np.array([8, 64]), np.array([[16], [64]])).shape == (2, 2)


def test_layers_that_became_one_kernel_share_what_it_takes():
    captured, analysis, layers, _ = prepared(
        nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2)),
        torch.randn(1, 3),
        1,
    )
    sizes = {group.atom: group.size for group in analysis.groups}
    module = slim(captured, analysis, plan_of(analysis, {}))
    final = fxprune.finalize(module, captured.example_inputs)
    names = [node.name for node in final.graph.nodes if node.op == "call_module"]
    profile = dict.fromkeys(names, 1e-6)
    seen = Seen.of(sizes, (), final, profile, 2 * sum(profile.values()), layers)
    assert len(seen.kernels) == 2
    (first, seconds), (last, _) = seen.kernels
    assert first == tuple(layer.node for layer in layers[:2])
    assert last == (layers[2].node,)
    assert seconds == pytest.approx(4e-6)  # its own, and the activation's
    assert seen.seconds == pytest.approx(2 * sum(profile.values()))
    merge = SimpleNamespace(span=SimpleNamespace(convolutions=(layers[2].node,)))
    chosen = Seen.of(sizes, (merge,), final, profile, 2 * sum(profile.values()), layers)
    assert chosen.kernels == seen.kernels[:1]
    assert chosen.seconds == pytest.approx(seen.seconds)
    groups = {group.atom: group.name for group in analysis.groups}
    again = Seen.from_json(chosen.scaled(2.0).to_json(groups), {n: a for a, n in groups.items()})
    assert again.merged == pytest.approx(2 * chosen.merged) != 0
