"""What a user can ask of single groups: bounds, alignment, and a warning where it cannot be had."""

import re
import warnings

import pytest
import torch
from torch import nn

import fxprune
from fxprune.backends import backends
from fxprune.cli import _bound
from fxprune.errors import InputError
from fxprune.passes.allocation.ladders import build_ladders
from fxprune.passes.capture import capture
from fxprune.passes.infer import infer
from tests.networks import images, small_resnet


def chain(inner=40):
    return nn.Sequential(nn.Linear(5, inner), nn.ReLU(), nn.Linear(inner, 24), nn.Linear(24, 3))


def ladders(bounds, multiple_of=8):
    analysis = infer(capture(chain(), torch.randn(1, 5)))
    found = build_ladders(analysis, multiple_of, (), bounds)
    return {ladder.group.name: (ladder.widths, ladder.whole) for ladder in found.values()}


def optimized(model, x, budget, **options):
    options = {"multiple_of": 1, "importance": "magnitude", "progress": False} | options
    return fxprune.optimize(model, budget, (x,), **options)


def test_a_bound_in_shares_cuts_the_ladder_below_and_above():
    found = ladders({"0": (0.4, 0.8)})
    assert found["0.weight[0]"] == ((16, 24, 32, 40), False)
    assert found["2.weight[0]"] == ((4, 8, 12, 16, 20, 24), True)


def test_whole_numbers_count_positions():
    assert ladders({"0": (1, 24)})["0.weight[0]"] == ((8, 16, 24, 40), False)
    assert ladders({"0": (1.0, 1.0)})["0.weight[0]"] == ((40,), True)


def test_a_bound_between_two_steps_is_a_width_of_its_own():
    assert ladders({"0": (10, 13)})["0.weight[0]"] == ((13, 40), False)


def test_all_bounds_on_a_group_hold():
    bounds = {"0.*": (0.25, 1.0), "2.weight": (1, 30)}
    assert ladders(bounds)["0.weight[0]"] == ((16, 24, 40), False)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"nowhere": (0.1, 0.5)}, "matches no module"),
        ({"0": (0.5, 0.1)}, "more than the most"),
        ({"0": 0.5}, "least, most"),
        ({"0": (-1, 5)}, "least, most"),
        ({"0": (0.5, 1.5)}, "least, most"),
        ({"0": (True, 5)}, "least, most"),
        ({"0": (20, 40), "2.weight": (1, 10)}, "no width"),
        ([("0", (1, 2))], "dict"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(bounds, message):
    with pytest.raises(InputError, match=message):
        ladders(bounds)


def test_the_slim_network_keeps_to_its_bounds():
    torch.manual_seed(0)
    dense = small_resnet()
    name, conv = next((n, m) for n, m in dense.named_modules() if isinstance(m, nn.Conv2d))
    width = conv.out_channels
    for bound, low, high in (((0.75, 1.0), 0.75, 1.0), ((1, width // 2), 0.0, 0.5)):
        slim = optimized(dense, images(), "40% MACs", bounds={name: bound}, drop_blocks=False)
        assert low * width <= slim.get_submodule(name).out_channels <= high * width


def test_the_most_holds_even_where_the_budget_asks_for_less():
    slim = optimized(chain(), torch.randn(1, 5), "100% params", bounds={"0": (1, 20)})
    assert slim.get_submodule("0").out_features == 20
    assert slim.get_submodule("2").out_features == 24


def test_a_bounded_block_is_not_dropped():
    dense = small_resnet()
    free = optimized(dense, images(), "15% MACs").meta["fxprune"]["plan"]
    assert free.dropped
    bounds = dict.fromkeys((name.split("[")[0] for name in free.kept), (1, 1.0))
    bound = optimized(dense, images(), "15% MACs", bounds=bounds).meta["fxprune"]["plan"]
    assert not bound.dropped


def test_the_front_keeps_to_bounds_and_is_told_in_shares_of_dense():
    front = fxprune.pareto(
        chain(),
        (torch.randn(1, 5),),
        resource="params",
        points=5,
        multiple_of=1,
        bounds={"0": (1, 20)},
        progress=False,
    )
    assert all(len(point.plan.kept["0.weight[0]"]) <= 20 for point in front)
    assert front[-1].share < 0.6


def test_bounds_on_the_command_line():
    assert _bound("layer1.*=0.5:1.0") == ("layer1.*", (0.5, 1.0))
    assert _bound("conv1=16:64") == ("conv1", (16, 64))
    with pytest.raises(InputError, match="does not parse"):
        _bound("conv1=16")


@pytest.mark.parametrize("name", sorted(backends()))
def test_every_backend_says_which_channel_counts_it_likes(name):
    assert backends()[name].alignment in (4, 8, 16, 32)


def test_without_multiple_of_widths_follow_the_backend():
    model, x = nn.Sequential(nn.Linear(5, 128), nn.ReLU(), nn.Linear(128, 3)), torch.randn(1, 5)
    slim = fxprune.optimize(model, "50% params", (x,), importance="magnitude", progress=False)
    assert slim.get_submodule("0").out_features % 8 == 0


# -- the warning -----------------------------------------------------------------------------------


class Stubborn(nn.Module):
    """Most of the work is a layer between channels that are sorted, and so stay."""

    def __init__(self):
        super().__init__()
        self.first, self.heavy = nn.Linear(5, 60), nn.Linear(60, 60)
        self.free, self.last = nn.Linear(60, 40), nn.Linear(40, 3)

    def forward(self, x):
        x = self.heavy(self.first(x).sort(1).values).sort(1).values
        return self.last(self.free(x).relu())


@pytest.mark.parametrize(
    ("budget", "what"), [("70% params", "parameters"), ("70% MACs", "multiply-accumulates")]
)
def test_a_budget_mostly_taken_by_what_stays_dense_is_warned_of(budget, what):
    torch.manual_seed(0)
    expected = rf"6\d% of the {what} stay .* budget of 70% .* at heavy"
    with pytest.warns(UserWarning, match=expected) as caught:
        optimized(Stubborn(), torch.randn(1, 5), budget)
    (warning,) = caught
    assert "\n" not in str(warning.message)
    assert warning.filename == __file__


def test_layers_that_are_ignored_stay_dense_too():
    with pytest.warns(UserWarning, match=r"stay whatever is slimmed"):
        optimized(chain(400), torch.randn(1, 5), "100% params", ignore=["0", "2"])


def test_networks_that_shrink_freely_are_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimized(small_resnet(), images(), "40% MACs")


def test_the_warning_comes_before_the_refusal():
    with (
        pytest.warns(UserWarning, match="stay whatever"),
        pytest.raises(fxprune.BudgetError, match=re.escape("out of reach")),
    ):
        optimized(Stubborn(), torch.randn(1, 5), "20% params")
