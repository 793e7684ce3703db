"""Activation memory: what is alive at once, as counted, as tables, and as a budget."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from fxprune.passes.allocate import plan_of
from fxprune.passes.allocation.activations import critical, moments, peak
from fxprune.passes.allocation.forms import Forms
from fxprune.passes.allocation.ladders import build_ladders
from fxprune.passes.allocation.widths import Choices
from fxprune.passes.blocks import find_blocks
from fxprune.passes.capture import capture
from fxprune.passes.importance import magnitude
from fxprune.passes.infer import infer
from fxprune.passes.slim import slim
from tests.networks import images, small_resnet
from tests.ways.base import Model


def analysed(model, x):
    captured = capture(model, x)
    return captured, infer(captured)


def peak_of(model, x):
    captured, analysis = analysed(model, x)
    return peak(moments(captured.module, analysis), {})


def test_a_result_lives_until_its_last_reader_and_weights_and_inputs_do_not_count():
    layers = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 16), nn.Linear(16, 2))
    assert peak_of(layers, torch.randn(5, 3)) == 5 * 4 * (8 + 16)


def test_a_skip_lives_on_beside_the_branch():
    model = Model(
        lambda s, x: (y := s.a(x)) + s.c(s.b(y)),
        a=nn.Linear(3, 8), b=nn.Linear(8, 16), c=nn.Linear(16, 8),
    )  # fmt: skip
    assert peak_of(model, torch.randn(1, 3)) == 4 * (8 + 16 + 8)


def test_views_and_what_is_written_in_place_take_no_more():
    model = Model(
        lambda s, x: s.b(torch.relu_(s.a(x)).view(-1, 2, 4).flatten(1)),
        a=nn.Linear(3, 8), b=nn.Linear(8, 1),
    )  # fmt: skip
    assert peak_of(model, torch.randn(1, 3)) == 4 * (8 + 1)


@pytest.mark.parametrize("seed", range(6))
def test_the_slim_network_needs_what_was_counted_for_it(seed):
    captured, analysis = analysed(small_resnet(), images())
    rng = np.random.default_rng(seed)
    blocks = find_blocks(captured.module, analysis)
    dropped = [block for block in blocks if rng.random() < 0.5]
    sizes = {g.atom: int(rng.integers(1, g.size + 1)) for g in analysis.groups}
    plan = plan_of(sizes, analysis, magnitude(captured.module, analysis), {}, dropped)
    module = slim(captured, analysis, plan)
    counted = peak(moments(captured.module, analysis, (), dropped), sizes)
    assert counted == peak_of(module, images())
    gone = {name for block in dropped for name in block.gone}
    bound = max(m.bytes(sizes, gone) for m in moments(captured.module, analysis, blocks))
    assert counted <= bound


def test_tables_are_exact_for_every_choice():
    captured, analysis = analysed(small_resnet(8), images(1))
    ladders, blocks = build_ladders(analysis, 4), find_blocks(captured.module, analysis)
    choices = Choices(ladders, Forms.of(blocks, captured.module.graph))
    found = moments(captured.module, analysis, blocks)
    tables = [moment.tables(choices) for moment in found]
    domains = [range(len(domain)) for domain in choices.domains.values()]
    for options in list(product(*domains))[::211]:
        named = dict(zip(choices.domains, options, strict=True))
        sizes = {a: ladder.widths[named[ladder.group.name]] for a, ladder in ladders.items()}
        gone = {n for block in blocks if not named[f"form of {block.addition}"] for n in block.gone}
        for moment, table in zip(found, tables, strict=True):
            assert table.at(named) == moment.bytes(sizes, gone)


def test_only_moments_above_the_limit_that_lie_in_no_other_count():
    captured, analysis = analysed(small_resnet(), images())
    found = moments(captured.module, analysis)
    limit = 0.5 * peak(found, {})
    chosen = critical(found, limit)
    assert 1 <= len(chosen) < sum(moment.bytes({}) > limit for moment in found)
    assert all(
        any(set(moment.alive) <= set(other.alive) for other in chosen)
        for moment in found
        if moment.bytes({}) > limit
    )


@pytest.mark.parametrize("share", [0.7, 0.4])
def test_a_budget_on_activations_is_kept_and_used(share):
    model = small_resnet()
    module = fxprune.optimize(
        model, f"{share:.0%} activations", (images(),), multiple_of=1, progress=False
    )
    used = peak_of(module, images()) / peak_of(model, images())
    assert 0.9 * share < used <= share


def test_activations_and_macs_hold_together():
    model = small_resnet()
    budgets = ["60% activations", "40% MACs"]
    module = fxprune.optimize(model, budgets, (images(),), multiple_of=2, progress=False)
    report = fxprune.report(module)
    assert peak_of(module, images()) <= 0.6 * peak_of(model, images())
    assert 0.35 * report.dense.macs < report.slim.macs <= 0.4 * report.dense.macs


def test_activations_out_of_reach_name_the_least():
    with pytest.raises(fxprune.BudgetError, match="out of reach") as caught:
        fxprune.optimize(small_resnet(), "100 B activations", (images(),), progress=False)
    assert caught.value.floor > 100
