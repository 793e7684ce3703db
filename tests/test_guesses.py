"""Which network is tried next, from what earlier ones turned out to use."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from fxprune.calibration import Calibration, Tried
from fxprune.guesses import Around, around_latest, exceeded, guesses
from fxprune.passes.allocate import Allocator
from fxprune.passes.allocation.costs import macs_tables, params_tables
from fxprune.passes.allocation.forms import Forms
from fxprune.passes.allocation.ladders import build_ladders
from fxprune.passes.blocks import find_blocks
from fxprune.passes.capture import capture
from fxprune.passes.importance import magnitude
from fxprune.passes.infer import infer
from tests.networks import images, small_resnet


@pytest.fixture(scope="module")
def allocator():
    """MACs and parameters of a network with blocks."""
    captured = capture(small_resnet(16), (images(1),))
    analysis = infer(captured)
    costs = [
        lambda choices: macs_tables(analysis, choices),
        lambda choices: params_tables(captured.module, analysis, choices),
    ]
    forms = Forms.of(find_blocks(captured.module, analysis), captured.module.graph)
    importance = magnitude(captured.module, analysis)
    ladders = build_ladders(analysis, 1)
    return Allocator.build(analysis, ladders, importance, costs, [1.0, 1.0], forms)


def calibrations(allocator, *points):
    """By tables that are right; points are pairs of costs by the tables, and actual ones."""
    dense = allocator.dense_costs()
    return [
        Calibration(dense[i], ((dense[i], dense[i]), *((t[i], a[i]) for t, a in points)))
        for i in range(2)
    ]


def aims(allocator, *shares):
    return [share * cost for share, cost in zip(shares, allocator.dense_costs(), strict=True)]


def test_a_guess_has_all_of_a_network_that_used_too_little(allocator):
    least = allocator.solve(aims(allocator, 0.4, 1.0))
    around = Around(least, None, ())
    near, best, *_ = guesses(allocator, calibrations(allocator), aims(allocator, 0.45, 1.0), around)
    assert allocator.lies_within(least, near)
    assert best.solution.bound == near.solution.bound
    assert 0.98 * best.solution.value <= near.solution.value <= best.solution.bound


def test_only_a_budget_that_was_exceeded_is_halved(allocator):
    limits = aims(allocator, 0.5, 0.9)
    least = allocator.solve(aims(allocator, 0.4, 0.9))
    most = allocator.between(aims(allocator, 0.6, 0.9), least, None)
    around = Around(least, most, (True, False))
    *_, halfway, _ = guesses(allocator, calibrations(allocator), limits, around)
    middle = (least.costs[0] + most.costs[0]) / 2
    assert halfway.solution.bound == allocator.solve([middle, limits[1]]).solution.bound
    assert allocator.lies_within(least, halfway)
    assert allocator.lies_within(halfway, most)


def test_the_next_network_lies_between_the_latest_and_one_on_the_other_side(allocator):
    gauges = [SimpleNamespace(limit=1.0, margin=0.01), SimpleNamespace(limit=1.0, margin=0.0)]
    low = allocator.solve(aims(allocator, 0.3, 1.0))
    high = allocator.between(aims(allocator, 0.6, 1.0), low, None)
    other = allocator.between(aims(allocator, 0.2, 1.0), None, low)
    tried = [Tried(other, (0.8, 0.5)), Tried(low, (0.9, 0.5)), Tried(high, (0.995, 0.6))]
    assert exceeded(tried[-1].used, gauges) == (True, False)
    assert around_latest(allocator, gauges, tried) == Around(low, high, (True, False))
    assert around_latest(allocator, gauges, tried[::-1]) == Around(other, high, (True, False))
    assert around_latest(allocator, gauges, tried[:2]) == Around(low, None, ())
    assert around_latest(allocator, gauges, tried[2:]) == Around(None, high, (True, False))


def test_widths_inside_of_a_dropped_block_do_not_count(allocator):
    network = allocator.solve(aims(allocator, 0.3, 1.0))
    gone = frozenset().union(*(block.tensors for block in network.dropped))
    ladders = allocator.choices.ladders.values()
    (inner, *_) = (some for some in ladders if all(m.tensor in gone for m in some.group.members))
    options = network.solution.assignment | {inner.group.name: len(inner.widths) - 1}
    widest = replace(network, solution=replace(network.solution, assignment=options))
    assert allocator.lies_within(widest, network)
    limits = [2 * cost for cost in allocator.dense_costs()]
    above = allocator.between(limits, widest, None)
    assert above.sizes == allocator.solve(limits).sizes
    assert not above.dropped


def test_what_is_wanted_lies_between_what_was_less_and_what_was_more():
    found = Calibration(100.0, ((200.0, 210.0), (90.0, 95.0), (100.0, 99.5)))
    # Just under the limit is too much to aim for, but nothing that costs more is known to be.
    assert found.table_limit(98.0) == pytest.approx(98.0 / 0.995)
    assert found.middle(98.0) == 95.0


def test_a_guess_that_contradicts_what_is_known_becomes_the_middle():
    found = Calibration(100.0, ((200.0, 210.0), (100.0, 96.0), (101.0, 102.0)))
    assert found.table_limit(98.0) == 100.5
