"""The front in one call."""

import pytest

import fxprune
from fxprune.passes.allocation.costs import macs
from fxprune.passes.capture import capture
from fxprune.passes.infer import infer
from tests.networks import images, small_resnet


def front(**options):
    options = {"resource": "macs", "points": 9, "multiple_of": 2, "progress": False} | options
    return fxprune.pareto(small_resnet(), (images(),), **options)


def test_value_rises_with_cost_from_the_floor_to_the_dense_network():
    found = front()
    costs, values = [p.cost for p in found], [p.value for p in found]
    assert costs == sorted(costs)
    assert values == sorted(values)
    assert (found[-1].share, found[-1].value) == pytest.approx((1, 100))
    assert all(0 <= p.gap <= 1e-3 for p in found)


def test_every_point_is_a_plan_that_costs_what_it_says():
    found = front()
    for point in (found[0], found[4]):
        slim = fxprune.apply(small_resnet(), point.plan, (images(),))
        assert macs(infer(capture(slim, (images(),)))) == pytest.approx(point.cost)


def test_a_point_is_worth_what_optimize_finds_at_its_cost():
    point = front()[4]
    budget = fxprune.Budget("macs", point.cost)
    slim = fxprune.optimize(small_resnet(), budget, (images(),), multiple_of=2, progress=False)
    assert fxprune.report(slim).certificate.value == pytest.approx(point.value, rel=2e-4)


def test_the_front_prints_and_draws(tmp_path):
    found = front(points=3)
    assert "100.0%" in str(found)
    found.plot(tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("options", [{"resource": "luck"}, {"points": 1}])
def test_wrong_questions_are_refused(options):
    with pytest.raises(fxprune.InputError):
        front(**options)
