"""Ratios told for one pace of the machine, whatever it was while they were measured."""

import math

import pytest

from fxprune.measurement import Measurement, mean_of
from fxprune.pace import Looks, Pace, Trend

PACES = (1.0, 1.3, 1.1, 1.25, 0.9, 1.05, 1.4, 1.2)


def looks(share: float, slope: float = 0.0, paces: tuple[float, ...] = PACES) -> Looks:
    """At a network that takes `share` of the dense one where that takes a second."""
    return tuple((turns(pace), turns(share * pace ** (1 + slope))) for pace in paces)


def turns(seconds: float) -> Measurement:
    return Measurement.of_turns([seconds] * 5, "cpu")


@pytest.mark.parametrize("slope", [-0.1, 0.0, 0.3])
def test_a_ratio_that_follows_the_pace_is_told_for_one_pace(slope: float) -> None:
    measured = looks(0.6, slope)
    at_a_second = Pace(1.0).ratio(measured)
    plain = mean_of([slim.seconds / dense.seconds for dense, slim in measured])
    assert at_a_second.value == pytest.approx(0.6, rel=0.005)
    assert abs(at_a_second.value - 0.6) <= 0.1 * abs(plain.value - 0.6) + 1e-12
    assert Pace(1.2).ratio(measured).value == pytest.approx(0.6 * 1.2**slope, rel=0.005)


def test_looks_at_one_pace_tell_nothing_of_another_but_that_it_is_not_known() -> None:
    measured = (*looks(0.6, paces=(1.0,) * 4), *looks(0.61, paces=(1.0,) * 4))
    plain = mean_of([0.6, 0.61] * 4)
    here, elsewhere = Pace(1.0).ratio(measured), Pace(1.1).ratio(measured)
    assert here.value == pytest.approx(plain.value)
    assert (here.low, here.high) == pytest.approx((plain.low, plain.high))
    assert elsewhere.value == pytest.approx(plain.value)
    assert math.log(elsewhere.high / elsewhere.low) > 3 * math.log(here.high / here.low)


def test_other_slim_networks_tell_how_a_ratio_follows_the_pace() -> None:
    measured = looks(0.4, 0.2, paces=(1.2,) * 4)
    others = Trend.total([Trend.of(looks(0.6, 0.2)), Trend.of(looks(0.7, 0.2))])
    assert Pace(1.0).ratio(measured).value == pytest.approx(0.4 * 1.2**0.2)
    assert Pace(1.0, others).ratio(measured).value == pytest.approx(0.4, rel=0.002)


def test_a_trend_is_that_within_networks_not_between_them() -> None:
    slower = looks(0.6, 0.0, paces=(1.0, 1.1)), looks(0.3, 0.0, paces=(2.0, 2.1))
    assert Trend.total(map(Trend.of, slower)).slope == pytest.approx(0.0, abs=1e-12)
    assert Trend.total([]).slope == 0.0
