"""The value of a span: measured with a loss, by agreement, or guessed without data."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune.errors import InputError
from fxprune.passes.chains import Span, find_chains
from fxprune.passes.depth_value import Damage, disagreement, expected_errors, loss_rise
from fxprune.passes.merge import drop_activations
from tests.linear_networks import Skip, lively, noise


class Net(nn.Module):
    """One span that does not matter, and one that does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.c, self.d = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 5, 1)
        nn.init.constant_(self.a.bias, 100.0)  # far above the kink: the activation does nothing
        nn.init.constant_(self.c.bias, -0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.b(F.relu(self.a(x))), 2) / 100
        return self.d(F.relu(self.c(x))).mean((2, 3))


@pytest.fixture(scope="module")
def net() -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(lively(Net()))


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(noise(4, 3, 8, 8, seed=i), torch.arange(4)) for i in range(count)]


def spans(module: fx.GraphModule) -> list[Span]:
    return [chain.span for chain in find_chains(module)]


def damages(module: fx.GraphModule, damage: Damage) -> list[float]:
    """The damage of dropping the activations of each span alone."""
    return [damage(drop_activations(module, [span]).eval()) for span in spans(module)]


def test_the_rise_of_the_loss_is_the_difference_of_two_losses(net):
    data = batches(3)
    found = damages(net, loss_rise(net, data, F.cross_entropy))

    def loss(module: fx.GraphModule) -> float:
        return sum(float(F.cross_entropy(module(x), y).detach()) for x, y in data) / 3

    expected = [loss(drop_activations(net, [span])) - loss(net) for span in spans(net)]
    assert found == pytest.approx(expected)
    assert found[0] == 0.0
    assert abs(found[1]) > 1e-3


def test_disagreement_is_relative_to_the_outputs(net):
    data = batches(2)
    found = damages(net, disagreement(net, data))
    variant = drop_activations(net, [spans(net)[1]])
    with torch.no_grad():
        want = torch.cat([net(x) for x, _ in data])
        have = torch.cat([variant(x) for x, _ in data])
    expected = float((have - want).square().sum() / want.square().sum())
    assert found == pytest.approx((0.0, expected))
    assert expected > 1e-3


def test_no_more_batches_are_used_than_asked_for(net):
    used = []

    def watched():
        for batch in batches(5):
            used.append(batch)
            yield batch

    damages(net, loss_rise(net, watched(), F.cross_entropy, limit=2))
    assert len(used) <= 3


def test_running_statistics_are_taken_anew():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()
    )
    module = fx.symbolic_trace(lively(model))
    module.get_submodule("3").running_mean.fill_(50.0)  # nonsense, which would hide everything
    (found,) = damages(module, disagreement(module, batches(2)))
    assert 0 < found < 2


def test_the_model_is_not_changed(net):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    code = net.code
    damages(net, loss_rise(net, batches(1), F.cross_entropy))
    assert net.code == code
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_a_loss_that_does_not_take_the_targets_is_refused(net):
    with pytest.raises(InputError, match="The loss does not take the data"):
        loss_rise(net, [(noise(4, 3, 8, 8), torch.zeros(4, 7))], F.cross_entropy)


def test_a_loss_that_is_not_finite_is_refused(net):
    with pytest.raises(InputError, match="The loss is nan"):
        loss_rise(net, batches(1), lambda output, y: output.sum() * math.nan)


# -- without data ----------------------------------------------------------------------------------


def error_of(*between: nn.Module) -> float:
    module = fx.symbolic_trace(
        nn.Sequential(nn.Conv2d(3, 2, 1), *between, nn.Conv2d(2, 3, 1)).double().eval()
    )
    return sum(expected_errors(module, spans(module)).values())


def norm(scale: float, shift: float) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(2)
    nn.init.constant_(layer.weight, scale)
    nn.init.constant_(layer.bias, shift)
    return layer


def test_a_rectifier_of_a_centred_gaussian_is_as_far_off_as_it_is_large():
    # E min(x, 0)^2 = E max(x, 0)^2 = 1/2.
    assert error_of(norm(1.0, 0.0), nn.ReLU()) == pytest.approx(1.0, rel=1e-3)


def test_the_scale_of_a_rectifiers_input_does_not_matter():
    assert error_of(norm(7.0, 0.0), nn.ReLU()) == pytest.approx(1.0, rel=1e-3)


def test_an_activation_far_from_its_kink_costs_nothing():
    assert error_of(norm(1.0, 20.0), nn.ReLU()) == 0.0


def test_errors_of_several_activations_add_up():
    one = error_of(norm(1.0, 0.3), nn.ReLU())
    two = error_of(norm(1.0, 0.3), nn.ReLU(), nn.Conv2d(2, 2, 1), norm(1.0, 0.3), nn.ReLU())
    assert two == pytest.approx(2 * one)


def test_what_is_added_up_before_an_activation_counts_together():
    torch.manual_seed(0)
    block = Skip(nn.Sequential(nn.Conv2d(2, 2, 1), norm(3.0, 6.0)))
    # Mean 1 + 6 and variance 4^2 + 3^2: as one norm with shift 7 and scale 5.
    both = error_of(norm(4.0, 1.0), block, nn.ReLU())
    assert both == pytest.approx(error_of(norm(5.0, 7.0), nn.ReLU()))


@pytest.mark.parametrize("activation", [nn.PReLU(2), nn.GELU(), nn.ReLU(inplace=True), nn.Tanh()])
def test_every_kind_of_activation_can_be_judged(activation):
    assert 0 < error_of(nn.BatchNorm2d(2), activation) < 10
    assert 0 < error_of(activation) < 10


@pytest.mark.parametrize(
    "call",
    [
        lambda x: F.leaky_relu(x, 0.2),
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: x.relu(),
        torch.relu_,
    ],
)
def test_functions_can_be_judged_too(call):
    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(call(self.a(x)))

    module = fx.symbolic_trace(Called())
    found = sum(expected_errors(module, spans(module)).values())
    assert 0 < found < 2


def test_a_lossless_span_costs_nothing():
    module = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 1)))
    assert expected_errors(module, spans(module)) == {}
