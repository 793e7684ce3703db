"""Allocation: ladders, tables over choices, and the plan that the solver's answer becomes."""

from dataclasses import replace
from itertools import islice, product
from math import inf

import numpy as np
import pytest
import torch
from torch import nn

from fxprune.axes import Atom, concat, kept_positions, kept_size
from fxprune.axes import product as times
from fxprune.errors import InputError
from fxprune.passes.allocate import Allocator, plan_of
from fxprune.passes.allocation import values
from fxprune.passes.allocation.costs import macs, macs_tables, memory_tables, params_tables
from fxprune.passes.allocation.forms import NO_FORMS, Forms
from fxprune.passes.allocation.ladders import Ladder, build_ladders
from fxprune.passes.allocation.values import value_tables
from fxprune.passes.allocation.widths import AlikeChoices, Choices, SeparateChoices, Tables
from fxprune.passes.blocks import Block, find_blocks
from fxprune.passes.capture import capture
from fxprune.passes.importance import magnitude
from fxprune.passes.infer import Group, infer
from fxprune.passes.layers import find_layers
from fxprune.passes.merge import merged
from fxprune.passes.merges import Merge, find_merges, without_activations
from fxprune.passes.slim import slim
from tests.networks import images, small_resnet

STEP = 997  # of many choices, those tried: coprime to their numbers, so that all options come up


class Forked(nn.Module):
    """Two branches that are concatenated, then a grouped and a depthwise convolution."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 16, 3, padding=1)
        self.join = nn.Conv2d(24, 12, 1, bias=False)
        self.grouped = nn.Conv2d(12, 12, 3, groups=3)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.last = nn.Conv2d(12, 2, 1)

    def forward(self, x):
        x = self.join(torch.cat([self.a(x), self.b(x)], 1))
        return self.last(self.depthwise(torch.relu(self.grouped(x))))


def normed():
    """Group norms make every width a product of two groups, and every layer depend on four."""
    layers = [nn.Conv2d(3, 12, 3), nn.GroupNorm(3, 12), nn.Conv2d(12, 8, 3), nn.GroupNorm(2, 8)]
    return nn.Sequential(*layers, nn.Conv2d(8, 2, 1))


def prepared(model, x, multiple_of=4):
    captured = capture(model, x)
    analysis = infer(captured)
    ladders = build_ladders(analysis, multiple_of)
    return captured, analysis, ladders, magnitude(captured.module, analysis)


def all_forms(captured, analysis):
    """Every block and every span that could be merged."""
    layers = find_layers(captured.module, analysis)
    merges = [replace(m, loss=1.0) for m in find_merges(captured, analysis, layers)]
    blocks = find_blocks(captured.module, analysis)
    return Forms.of([*blocks, *merges], captured.module.graph)


def every_choice(ladders, forms=NO_FORMS, step=1):
    """Every combination: widths by atom, parts taken, and the solver's option numbers."""
    domains = {ladder.group.name: len(ladder.widths) for ladder in ladders.values()}
    domains |= {cluster.name: len(cluster.forms) for cluster in forms.clusters}
    for options in islice(product(*map(range, domains.values())), 0, None, step):
        numbers = dict(zip(domains, options, strict=True))
        if any([numbers[n] for n in tie.scope] not in tie.rows.tolist() for tie in forms.ties):
            continue
        sizes = {a: ladder.widths[numbers[ladder.group.name]] for a, ladder in ladders.items()}
        yield sizes, forms.of_options(numbers), numbers


def with_sums(choices, options):
    """Options of the derived choices as well: sums and products of widths."""
    found = dict(options)
    for tie in choices.sums[len(choices.forms.ties) :]:
        *parts, derived = tie.scope
        (row,) = np.flatnonzero((tie.rows[:, :-1] == [found[part] for part in parts]).all(axis=1))
        found[derived] = int(tie.rows[row, -1])
    return found


@pytest.mark.parametrize("model", [Forked(), small_resnet(8), normed()])
def test_cost_tables_are_exact_for_every_choice(model):
    captured, analysis, ladders, importance = prepared(model, images(1))
    forms = all_forms(captured, analysis)
    choices = Choices(ladders, forms)
    tables = {
        "macs": macs_tables(analysis, choices),
        "params": params_tables(captured.module, analysis, choices),
        "memory": memory_tables(captured.module, analysis, choices),
    }
    for sizes, parts, options in every_choice(ladders, forms, step=STEP):
        dropped = [part for part in parts if isinstance(part, Block)]
        merges = [part for part in parts if isinstance(part, Merge)]
        module = slim(captured, analysis, plan_of(sizes, analysis, importance, {}, dropped))
        module = merged(without_activations(module, [merge.span for merge in merges]))
        gone = {name for block in dropped for name in block.gone}
        found = {k: t.at(with_sums(choices, options)) for k, t in tables.items()}
        parameters = list(module.parameters())
        state = [*parameters, *module.buffers()]
        assert found == {
            "macs": macs(analysis, sizes, gone, merges),
            "params": sum(p.numel() for p in parameters),
            "memory": sum(t.numel() * t.element_size() for t in state),
        }


@pytest.mark.parametrize("strip", [1, 50, 1000])
def test_value_tables_are_the_same_in_strips_of_any_size(strip, monkeypatch):
    _, analysis, ladders, importance = prepared(small_resnet(), images())
    whole = value_tables(analysis, importance, Choices(ladders))
    monkeypatch.setattr(values, "STRIP", strip)
    tables = value_tables(analysis, importance, Choices(ladders))
    assert tables.by_scope.keys() == whole.by_scope.keys()
    for scope, table in whole.by_scope.items():
        np.testing.assert_allclose(tables.by_scope[scope], table, rtol=1e-12)


def test_value_tables_are_the_saliency_that_is_kept_less_what_merging_loses():
    captured, analysis, ladders, importance = prepared(small_resnet(8), images(1))
    forms = all_forms(captured, analysis)
    choices = Choices(ladders, forms)
    tables = value_tables(analysis, importance, choices)
    total = sum(s.sum() for s in importance.weights.values())
    for sizes, parts, options in every_choice(ladders, forms, step=STEP):
        gone = {name for part in parts if isinstance(part, Block) for name in part.tensors}
        kept = {atom: np.sort(importance.order[atom][:size]) for atom, size in sizes.items()}
        worth = 0.0
        for name, saliency in importance.weights.items():
            rows, columns = (kept_positions(a, kept) for a in analysis.tensors[name][:2])
            worth += 0 if name in gone else saliency[np.ix_(rows, columns)].sum()
        lost = sum(isinstance(part, Merge) for part in parts)
        assert tables.at(options) == pytest.approx(100 * worth / total - lost)


def test_the_dense_network_is_worth_100_also_with_concatenations():
    _, analysis, ladders, importance = prepared(Forked(), images(1))
    choices = Choices(ladders)
    tables = value_tables(analysis, importance, choices)
    assert tables.at(dict.fromkeys(choices.domains, -1)) == pytest.approx(100)


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_the_answer_is_the_best_of_all_choices(share):
    captured, analysis, ladders, importance = prepared(small_resnet(8), images(1))
    forms = all_forms(captured, analysis)
    costs = [lambda choices: macs_tables(analysis, choices)]
    allocator = Allocator.build(analysis, ladders, importance, costs, [1.0], forms)
    limit = share * macs(analysis)
    answer = allocator.solve([limit])
    value = value_tables(analysis, importance, allocator.choices)
    cost = macs_tables(analysis, allocator.choices)
    best = -inf
    for _, _, options in every_choice(ladders, forms):
        if cost.at(options) <= limit:
            best = max(best, value.at(options))
    assert macs(analysis, answer.sizes, answer.gone, answer.merged) <= limit
    assert answer.dropped
    assert answer.solution.value == pytest.approx(best, rel=2e-4)
    assert answer.solution.bound >= best * (1 - 1e-9)


@pytest.mark.parametrize("bounds", ["least", "most", "both"])
def test_the_answer_between_two_networks_is_the_best_of_those_that_lie_there(bounds):
    captured, analysis, ladders, importance = prepared(small_resnet(8), images(1))
    forms = all_forms(captured, analysis)
    costs = [lambda choices: macs_tables(analysis, choices)]
    allocator = Allocator.build(analysis, ladders, importance, costs, [1.0], forms)
    least = allocator.solve([0.2 * macs(analysis)]) if bounds != "most" else None
    limit = 0.4 * macs(analysis)
    most = allocator.between([0.7 * macs(analysis)], least, None) if bounds != "least" else None
    answer = allocator.between([limit], least, most)
    assert answer.costs[0] <= limit
    value = value_tables(analysis, importance, allocator.choices)
    best = -inf
    for sizes, parts, options in every_choice(ladders, forms):
        numbers = with_sums(allocator.choices, options)
        other = allocator.read(replace(answer.solution, assignment=numbers))
        assert (other.sizes, other.parts) == (sizes, tuple(part.name for part in parts))
        above = least is None or allocator.lies_within(least, other)
        below = most is None or allocator.lies_within(other, most)
        if above and below and other.costs[0] <= limit:
            best = max(best, value.at(options))
    assert answer.solution.value == pytest.approx(best, rel=2e-4)
    free = allocator.solve([limit]).solution
    assert answer.solution.bound == max(free.bound, answer.solution.value)
    assert answer.solution.gap == pytest.approx(1 - answer.solution.value / answer.solution.bound)


def test_first_order_tables_are_exact_where_one_group_changes():
    _, analysis, ladders, _ = prepared(Forked(), images(1))
    choices = SeparateChoices(ladders)
    tables = macs_tables(analysis, choices)
    assert set(choices.domains) == {ladder.group.name for ladder in ladders.values()}
    for atom, ladder in ladders.items():
        options = dict.fromkeys(choices.domains, -1) | {ladder.group.name: 0}
        assert tables.at(options) == pytest.approx(macs(analysis, {atom: ladder.widths[0]}))


def ladder_of(ident, size, widths):
    atom = Atom(ident, size)
    return atom, Ladder(Group(f"g{ident}", atom, ()), widths)


def test_a_running_sum_is_shared_by_all_concatenations_that_start_alike():
    ladders = dict(ladder_of(i, 8, (4, 8)) for i in range(3))
    a, b, c = ladders
    choices = Choices(ladders)
    two, three = choices.width(concat([a, b])), choices.width(concat([a, b, c]))
    assert two.scope == ("g0 + g1",)
    assert three.scope == ("g0 + g1 + g2",)
    assert two.grid().tolist() == [8, 12, 16]
    assert [tie.name for tie in choices.sums] == ["g0 + g1", "g0 + g1 + g2"]


def test_running_sums_are_made_of_sums_that_are_known():
    ladders = dict(ladder_of(i, 8, (4, 8)) for i in range(5))
    a, b, c, d, e = ladders
    choices = Choices(ladders)
    choices.width(concat([b, c]))
    choices.width(concat([d, e]))
    four = choices.width(concat([a, b, c, d, e]))
    assert [tie.scope for tie in choices.sums] == [
        ("g1", "g2", "g1 + g2"),
        ("g3", "g4", "g3 + g4"),
        ("g1 + g2", "g3 + g4", "g1 + g2 + g3 + g4"),
        ("g1 + g2 + g3 + g4", "g0", "g1 + g2 + g3 + g4 + g0"),
    ]
    assert four.grid().tolist() == [20, 24, 28, 32, 36, 40]


def test_a_multiple_of_a_width_is_one_choice_wherever_it_occurs():
    ladders = dict(ladder_of(i, 8, (4, 8)) for i in range(3))
    a, b, c = ladders
    choices = Choices(ladders)
    for first in (b, c):
        width = choices.width(concat([first, a, a]))
        assert width.grid().tolist() == [12, 16, 20, 24]
    names = [tie.name for tie in choices.sums]
    assert sorted(names) == sorted(set(names))
    assert names.count("2*g0") == 1


class Trunks(nn.Module):
    """Two trunks that are concatenations, the first a part of the second, with blocks on both."""

    def __init__(self, blocks=2, width=8):
        super().__init__()
        self.stems = nn.ModuleList([nn.Conv2d(3, width, 1) for _ in range(3)])
        self.first = nn.ModuleList([self.block(3 * width) for _ in range(blocks)])
        self.more = nn.ModuleList([nn.Conv2d(3 * width, width, 1) for _ in range(3)])
        self.second = nn.ModuleList([self.block(6 * width) for _ in range(blocks)])
        self.head = nn.Conv2d(6 * width, 2, 1)

    @staticmethod
    def block(width):
        return nn.Sequential(nn.Conv2d(width, 8, 1), nn.ReLU(), nn.Conv2d(8, width, 1))

    def forward(self, x):
        x = torch.cat([stem(x) for stem in self.stems], 1)
        for block in self.first:
            x = x + block(x)
        x = torch.cat([*[more(x) for more in self.more], x], 1)
        for block in self.second:
            x = x + block(x)
        return self.head(torch.relu(x))


def macs_allocator(model, multiple_of=2):
    captured, analysis, ladders, importance = prepared(model, images(1), multiple_of)
    forms = Forms.of(find_blocks(captured.module, analysis), captured.module.graph)
    costs = [lambda choices: macs_tables(analysis, choices)]
    return analysis, Allocator.build(analysis, ladders, importance, costs, [1.0], forms)


def test_trunks_of_concatenations_are_allocated_exactly_and_with_their_blocks():
    analysis, allocator = macs_allocator(Trunks(blocks=12, width=32))
    assert isinstance(allocator.choices, AlikeChoices)
    limit = 0.4 * macs(analysis)
    answer = allocator.solve([limit])
    assert answer.costs == (macs(analysis, answer.sizes, answer.gone),)
    assert 0.98 * limit <= answer.costs[0] <= limit
    assert answer.solution.gap <= 1e-4


def test_parts_cut_alike_are_worth_the_same_as_counted_one_by_one():
    captured, analysis, ladders, importance = prepared(Trunks(), images(1), 2)
    forms = Forms.of(find_blocks(captured.module, analysis), captured.module.graph)
    alike, exact = AlikeChoices(ladders, forms), Choices(ladders, forms)
    by_width = value_tables(analysis, importance, alike)
    by_part = value_tables(analysis, importance, exact)
    for option in range(4):
        widths = {rung.group.name: option for rung in ladders.values()}
        for form in (0, -1):
            options = widths | {cluster.name: form for cluster in forms.clusters}
            number = {c.name: len(c.forms) - 1 if form else 0 for c in forms.clusters}
            found = by_width.at(with_sums(alike, widths | number))
            assert found == pytest.approx(by_part.at(options))


def test_main_effects_replace_tables_that_would_be_too_large():
    ladders = dict(ladder_of(i, 4, (2, 4)) for i in range(4))
    choices = SeparateChoices(ladders)
    tables = Tables(choices.domains)
    axis = times(list(ladders))
    tables.add_product([choices.width(axis)], 1.0)
    assert tables.at(dict.fromkeys(choices.domains, -1)) == 4**4
    assert tables.at({"g0": 0, "g1": -1, "g2": -1, "g3": -1}) == kept_size(
        axis, {next(iter(ladders)): 2}
    )


def test_widths_are_aligned_and_end_with_the_dense_one():
    _, analysis, ladders, _ = prepared(
        nn.Sequential(nn.Linear(3, 50), nn.Linear(50, 2)), torch.randn(1, 3), multiple_of=16
    )
    (ladder,) = ladders.values()
    assert ladder.widths == (8, 16, 24, 32, 40, 48, 50)  # 16 leaves too few, so half of that
    (ladder,) = build_ladders(analysis, 4).values()
    assert ladder.widths == (*range(4, 50, 4), 50)


def test_one_position_may_stand_for_several_channels():
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, groups=8), nn.Conv2d(32, 2, 1))
    _, _, ladders, _ = prepared(model, images(1), multiple_of=8)
    widths = {ladder.group.size: ladder.widths for ladder in ladders.values()}
    assert widths[8] == (2, 4, 6, 8)  # two groups of four channels are eight


def test_ignored_modules_keep_their_width():
    _, analysis, _, _ = prepared(small_resnet(8), images(1))
    ladders = build_ladders(analysis, 4, ignore=["blocks.1"])
    ignored = {g.name for g in analysis.groups if len(ladders[g.atom].widths) == 1}
    assert "blocks.1.conv1.weight[0]" in ignored
    assert "blocks.2.conv1.weight[0]" not in ignored
    with pytest.raises(InputError, match="matches no module or parameter"):
        build_ladders(analysis, 4, ignore=["bloks*"])
