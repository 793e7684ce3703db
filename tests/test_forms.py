"""Forms: blocks and spans that exclude one another, as choices for the solver."""

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.depth_dp import layer_merge, two_stage
from fxprune.passes.allocate import Allocator
from fxprune.passes.allocation.costs import macs, macs_tables
from fxprune.passes.allocation.forms import MOST_FORMS, Forms
from fxprune.passes.allocation.ladders import build_ladders
from fxprune.passes.allocation.values import value_tables
from fxprune.passes.allocation.widths import Choices
from fxprune.passes.blocks import find_blocks
from fxprune.passes.capture import capture
from fxprune.passes.importance import magnitude
from fxprune.passes.infer import infer
from fxprune.passes.layers import find_layers
from fxprune.passes.merges import find_merges
from tests.networks import images, small_resnet


def chain(length):
    """Convolutions in a row, an activation after each."""
    layers = (nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()) for _ in range(length))
    return nn.Sequential(*layers).eval()


SMALL = torch.zeros(1, 4, 8, 8)


def parts_of(model, x):
    captured = capture(model, x)
    analysis = infer(captured)
    merges = find_merges(captured, analysis, find_layers(captured.module, analysis))
    return captured, analysis, [*find_blocks(captured.module, analysis), *merges]


def consistent(forms):
    """All combinations of options that the ties allow, as the names of the parts taken."""
    clusters = forms.clusters
    found = []
    for options in product(*(range(len(c.forms)) for c in clusters)):
        named = {c.name: o for c, o in zip(clusters, options, strict=True)}
        if all([named[n] for n in tie.scope] in tie.rows.tolist() for tie in forms.ties):
            found.append(frozenset(part.name for part in forms.of_options(named)))
    return found


def independent(parts):
    """All sets of parts of which no two have a node in common."""
    found = []
    for count in range(len(parts) + 1):
        for chosen in combinations(parts, count):
            nodes = [node for part in chosen for node in part.gone]
            if len(nodes) == len(set(nodes)):
                found.append(frozenset(part.name for part in chosen))
    return found


@pytest.mark.parametrize(("model", "x"), [(chain(4), SMALL), (small_resnet(8), images(1))])
def test_the_forms_are_all_sets_of_parts_that_do_not_overlap(model, x):
    captured, _, parts = parts_of(model, x)
    forms = Forms.of(parts, captured.module.graph)
    found = consistent(forms)
    assert len(found) == len(set(found))
    assert set(found) == set(independent(parts))


def test_a_long_chain_becomes_several_choices_that_agree():
    captured, _, parts = parts_of(chain(6), SMALL)
    forms = Forms.of(parts, captured.module.graph)
    assert len(forms.clusters) > 1
    assert max(len(cluster.forms) for cluster in forms.clusters) <= MOST_FORMS
    # A segmentation of six in a row cuts at any of five places.
    assert len(set(consistent(forms))) == len(consistent(forms)) == 2**5


def test_the_last_form_takes_nothing_and_the_barest_drops_every_block():
    captured, _, parts = parts_of(small_resnet(8), images(1))
    forms = Forms.of(parts, captured.module.graph)
    dense = {cluster.name: len(cluster.forms) - 1 for cluster in forms.clusters}
    assert forms.of_options(dense) == ()
    assert forms.of_options(forms.barest()) == forms.blocks()


def dropped(form, forms):
    return form & {block.name for block in forms.blocks()}


def test_forms_between_two_networks_drop_no_more_than_one_and_no_less_than_the_other():
    captured, _, parts = parts_of(small_resnet(8), images(1))
    forms = Forms.of(parts, captured.module.graph)
    compared = 0
    for cluster in forms.clusters:
        for (i, low), (j, high) in product(enumerate(cluster.forms), repeat=2):
            least = dict.fromkeys((c.name for c in forms.clusters), 0) | {cluster.name: i}
            most = dict.fromkeys((c.name for c in forms.clusters), 0) | {cluster.name: j}
            expected = [
                k
                for k, form in enumerate(cluster.forms)
                if dropped(high, forms) <= dropped(form, forms) <= dropped(low, forms)
                and form - dropped(form, forms) == low - dropped(low, forms)
                and form - dropped(form, forms) == high - dropped(high, forms)
            ]
            assert forms.between(least, most)[cluster.name] == expected
            compared += bool(expected)
    assert compared > len(forms.clusters)


def test_a_gate_is_open_exactly_where_a_node_runs_as_itself():
    captured, _, parts = parts_of(small_resnet(8), images(1))
    forms = Forms.of(parts, captured.module.graph)
    for node, gate in forms.runs().items():
        (cluster,) = (c for c in forms.clusters if c.name == gate.choice)
        for form, is_open in zip(cluster.forms, gate.open, strict=True):
            taken = [forms.parts[name] for name in form]
            assert is_open == (not any(node in part.gone or node in part.tensors for part in taken))


@pytest.mark.parametrize("seed", range(3))
def test_a_chain_is_cut_as_well_as_by_the_published_programmes(seed):
    """Where no width is free, spans are all there is to choose."""
    captured, analysis, parts = parts_of(chain(6), SMALL)
    rng = np.random.default_rng(seed)
    merges = [replace(part, loss=float(rng.uniform(0, 20))) for part in parts]
    ladders = build_ladders(analysis, 1, ignore=["*"])
    importance = magnitude(captured.module, analysis)
    forms = Forms.of(merges, captured.module.graph)
    costs = [lambda choices: macs_tables(analysis, choices)]
    allocator = Allocator.build(analysis, ladders, importance, costs, [1.0], forms)
    each = macs(analysis) // 6
    worth = {(i, i + 1): 0.0 for i in range(6)}
    worth |= {(_first(merge), _last(merge)): -merge.loss for merge in merges}
    latency = dict.fromkeys(worth, 1.0)  # a merged 1x1 kernel takes as long as one of its parts
    sized = {(*segment, 1): value for segment, value in worth.items()}
    for limit in range(1, 7):
        found = allocator.solve([limit * each]).solution.value - 100
        two = two_stage(latency, worth, 6, limit, 1.0)
        layered = layer_merge(dict.fromkeys(sized, 1.0), sized, 6, limit, 1.0)
        assert found == pytest.approx(two.importance, abs=0.11)
        assert found >= max(two.importance, layered.importance) - 0.11


def _first(merge):
    return int(merge.span.convolutions[0].split("_")[1])


def _last(merge):
    return int(merge.span.convolutions[-1].split("_")[1]) + 1


def test_values_of_merged_and_dropped_parts_do_not_depend_on_the_cutting():
    captured, analysis, parts = parts_of(chain(6), SMALL)
    merges = [replace(part, loss=1.0) for part in parts]
    choices = Choices(build_ladders(analysis, 4), Forms.of(merges, captured.module.graph))
    table = value_tables(analysis, magnitude(captured.module, analysis), choices)
    dense = {name: len(options) - 1 for name, options in choices.domains.items()}
    for cluster in choices.forms.clusters:
        for option, form in enumerate(cluster.forms):
            homes = [name for name in form if choices.forms.homes[name] is cluster]
            value = table.at(dense | {cluster.name: option})
            assert value == pytest.approx(100 - len(homes))
