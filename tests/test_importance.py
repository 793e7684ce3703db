"""Importance: orders and saliencies against numbers worked out by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from fxprune.errors import InputError
from fxprune.passes.capture import capture
from fxprune.passes.importance import magnitude, taylor
from fxprune.passes.infer import infer
from tests.networks import images, labelled, small_resnet


def prepared(model, x):
    captured = capture(model, x)
    return captured.module, infer(captured)


def test_magnitude_adds_up_all_coupled_layers_relative_to_their_norm():
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    model[0].weight.data = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, 1.0]])
    model[2].weight.data = torch.tensor([[0.0, -5.0, 1.0]])
    module, analysis = prepared(model, torch.randn(1, 2))
    importance = magnitude(module, analysis)
    (group,) = analysis.groups
    first, second = np.sqrt(9 + 1 + 2), np.sqrt(26)
    expected = [3 / first, 1 / first + 5 / second, 2 / first + 1 / second]
    np.testing.assert_allclose(importance.scores[group.atom], expected)
    assert importance.order[group.atom].tolist() == [1, 0, 2]
    np.testing.assert_allclose(importance.weights["2.weight"], [[0, 5 / second, 1 / second]])


def test_taylor_is_weight_times_gradient_per_batch():
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0], [2.0]])
    model[1].weight.data = torch.tensor([[3.0, 0.5]])
    module, analysis = prepared(model, torch.ones(1, 1))
    # output = 3 x + x; each path's share of dL/d(log weight) is its part of the output.
    data = [(torch.ones(1, 1), torch.zeros(1)), (-torch.ones(1, 1), torch.zeros(1))]
    importance = taylor(module, analysis, data, lambda y, _: y.sum())
    (group,) = analysis.groups
    np.testing.assert_allclose(importance.scores[group.atom], [2 * 3.0, 2 * 1.0])
    np.testing.assert_allclose(importance.weights["0.weight"], [[3.0], [1.0]])
    np.testing.assert_allclose(importance.weights["1.weight"], [[3.0, 1.0]])


class BareWeights(nn.Module):
    """Weights that no layer of its own multiplies, one of them scaled by what flows."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.randn(8, 6))
        self.scaled = nn.Parameter(torch.randn(6, 5))
        self.cell, self.last = nn.GRUCell(5, 7), nn.Linear(7, 2)
        self.added, self.gain = nn.Parameter(torch.randn(4, 8)), nn.Parameter(torch.randn(8))

    def forward(self, x):
        hidden = (torch.einsum("ni,io->no", x, self.up) + self.added) * self.gain
        style = x.mean(1)[:, None, None]
        out = torch.bmm((hidden @ self.down)[:, None], self.scaled[None] * style)[:, 0]
        return self.last(self.cell(out))


@pytest.mark.parametrize("by_gradients", [False, True])
def test_whatever_is_multiplied_is_worth_something(by_gradients):
    module, analysis = prepared(BareWeights(), torch.randn(4, 3))
    if by_gradients:
        data = [(torch.randn(4, 3), torch.zeros(4, 2))]
        importance = taylor(module, analysis, data, nn.functional.mse_loss)
    else:
        importance = magnitude(module, analysis)
    expected = {"up", "down", "scaled", "last.weight", "cell.weight_ih", "cell.weight_hh"}
    assert set(importance.weights) == expected


def test_equal_scores_keep_their_order():
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.Linear(4, 1, bias=False))
    for layer in model:
        nn.init.ones_(layer.weight)
    module, analysis = prepared(model, torch.randn(1, 2))
    (order,) = magnitude(module, analysis).order.values()
    assert order.tolist() == [0, 1, 2, 3]


def test_judging_changes_neither_weights_nor_gradients_of_the_captured_model():
    module, analysis = prepared(small_resnet(), images())
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    taylor(module, analysis, labelled(), nn.functional.cross_entropy)
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    assert all(p.grad is None for p in module.parameters())


def test_only_as_many_batches_are_used_as_asked_for():
    module, analysis = prepared(small_resnet(), images())
    seen = []
    taylor(module, analysis, labelled(3), nn.functional.cross_entropy, limit=2, step=seen.append)
    assert seen == [1, 2]


def test_data_of_the_wrong_shape_is_refused_with_its_shapes():
    module, analysis = prepared(small_resnet(), images())
    data = [(torch.randn(8, 5, 8, 8), torch.zeros(8, dtype=torch.long))]
    with pytest.raises(InputError, match=r"batch 0, inputs float32\[8, 5, 8, 8\]"):
        taylor(module, analysis, data, nn.functional.cross_entropy)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda y, t: y, "not a scalar"),
        (lambda y, t: y.sum() * float("nan"), "The loss is nan"),
        (lambda y, t: torch.zeros((), requires_grad=True) * 1, "depend|gradient"),
    ],
)
def test_a_loss_that_says_nothing_is_refused(loss, message):
    module, analysis = prepared(small_resnet(), images())
    with pytest.raises(InputError, match=message):
        taylor(module, analysis, labelled(), loss)
