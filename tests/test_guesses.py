"""Which network is tried next, from what earlier ones turned out to use."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from fxprune.calibration import Calibration, Tried
from fxprune.gauges import Gauge
from fxprune.guesses import guesses
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


class Limited(Gauge):
    """A budget of which a candidate should leave one per cent."""

    margin = 0.01

    def __init__(self, limit):
        self.limit = limit

    def tables(self, choices):
        raise NotImplementedError

    def actual(self, slim, allocation):
        raise NotImplementedError


def aims(allocator, *shares):
    return [share * cost for share, cost in zip(shares, allocator.dense_costs(), strict=True)]


def tried_next(allocator, limits, *tried):
    """Guesses by tables that are right, when networks turned out to use these shares of limits."""
    gauges = [Limited(limit) for limit in limits]
    calibrations = [Calibration(cost, ((cost, cost),)) for cost in allocator.dense_costs()]
    told = [
        Tried(allocation, tuple(share * limit for share, limit in zip(shares, limits, strict=True)))
        for allocation, shares in tried
    ]
    return list(guesses(allocator, gauges, calibrations, limits, told))


@pytest.mark.parametrize(
    ("known", "aim", "tried"),
    [
        ((90.0, 98.5), 0.98, (98.5, 90.0)),  # falls short, and the next one surely keeps the budget
        ((90.0, 99.5), 0.98, (90.0, 90.0)),  # the next one may not
        ((98.0, 98.5), 0.98, (98.0, 0.0)),  # does not fall short
        ((90.0, 98.5), 1.0, (98.5, 0.0)),  # aims at all that there is
    ],
)
def test_where_the_best_network_falls_short_one_behind_the_aim_is_tried_first(known, aim, tried):
    class Coarse:
        """Knows few networks, by what they cost."""

        def solve(self, limits):
            cost = max(cost for cost in (0.0, *known) if cost <= limits[0])
            return SimpleNamespace(costs=(cost,), sizes={"a group": 1})

    gauge = Limited(100.0)
    gauge.aim = aim
    calibration = Calibration(gauge.limit, ((1.0, 1.0),))
    found = [guess.costs[0] for guess in guesses(Coarse(), [gauge], [calibration], [100 * aim], ())]
    assert tuple(found[:2]) == tried


def test_a_guess_has_all_of_a_network_that_used_too_little(allocator):
    least = allocator.solve(aims(allocator, 0.4, 1.0))
    near, best, _ = tried_next(allocator, aims(allocator, 0.45, 1.0), (least, (0.9, 0.5)))
    assert allocator.lies_within(least, near)
    assert best.solution.bound == near.solution.bound
    assert 0.98 * best.solution.value <= near.solution.value <= best.solution.bound


def test_a_guess_lies_within_a_network_that_used_too_much(allocator):
    most = allocator.solve(aims(allocator, 0.5, 1.0))
    near, *_ = tried_next(allocator, aims(allocator, 0.45, 1.0), (most, (0.995, 0.5)))
    assert allocator.lies_within(near, most)


def test_only_a_budget_that_was_exceeded_is_halved(allocator):
    limits = aims(allocator, 0.5, 0.9)
    least = allocator.solve(aims(allocator, 0.4, 0.9))
    most = allocator.between(aims(allocator, 0.6, 0.9), least, None)
    *_, halfway, _ = tried_next(allocator, limits, (least, (0.9, 0.5)), (most, (1.1, 0.6)))
    middle = (least.costs[0] + most.costs[0]) / 2
    assert halfway.solution.bound == allocator.solve([middle, limits[1]]).solution.bound
    assert allocator.lies_within(least, halfway)
    assert allocator.lies_within(halfway, most)


@pytest.mark.parametrize("latest", ["low", "high"])
def test_a_guess_lies_between_the_latest_network_and_one_on_the_other_side(latest, allocator):
    low = allocator.solve(aims(allocator, 0.3, 1.0))
    high = allocator.between(aims(allocator, 0.6, 1.0), low, None)
    apart = allocator.between(aims(allocator, 0.2, 1.0), None, low)
    tried = [(apart, (0.8, 0.5)), (low, (0.9, 0.5)), (high, (1.2, 0.6))]
    if latest == "low":
        tried = [tried[0], tried[2], tried[1]]
    near, *_ = tried_next(allocator, aims(allocator, 0.45, 1.0), *tried)
    assert allocator.lies_within(low, near)
    assert allocator.lies_within(near, high)


def test_nothing_lies_between_networks_that_all_cost_too_much(allocator):
    least = allocator.solve(aims(allocator, 0.5, 1.0))
    assert allocator.between(aims(allocator, 0.3, 1.0), least, None) is None


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
