"""Recalibration: statistics are those of the data, and nothing else moves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fxprune.errors import InputError
from fxprune.passes.recalibrate import recalibrate


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm1d(2, momentum=0.3), nn.Dropout(0.5), nn.Linear(2, 2)).eval()


def points(batches: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (3 + 2 * torch.randn(8, 2, generator=generator), torch.zeros(8)) for _ in range(batches)
    ]


def test_the_statistics_become_the_average_over_the_batches():
    module, data = net(), points()
    assert recalibrate(module, data) is module
    means = torch.stack([x.mean(dim=0) for x, _ in data])
    variances = torch.stack([x.var(dim=0) for x, _ in data])
    assert torch.allclose(module[0].running_mean, means.mean(dim=0), rtol=1e-5)
    assert torch.allclose(module[0].running_var, variances.mean(dim=0), rtol=1e-5)


def test_only_as_many_batches_as_asked_for_are_used():
    module, data = net(), points()
    recalibrate(module, iter(data), limit=1)
    assert torch.allclose(module[0].running_mean, data[0][0].mean(dim=0), rtol=1e-5)


def test_weights_modes_and_momentum_stay():
    module = net()
    module[1].train()
    before = copy.deepcopy(module)
    recalibrate(module, points())
    weights = dict(before.named_parameters())
    assert all(torch.equal(weights[k], p) for k, p in module.named_parameters())
    assert [m.training for m in module.modules()] == [m.training for m in before.modules()]
    assert module[0].momentum == 0.3


def test_a_module_without_batch_norm_comes_back_as_it_was():
    module = nn.Linear(2, 2)
    before = copy.deepcopy(module.state_dict())
    assert recalibrate(module, points()) is module
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_batch_norm_without_running_statistics_is_left_alone():
    module = nn.BatchNorm1d(2, track_running_stats=False)
    assert recalibrate(module, points()).running_mean is None


def test_the_callers_random_state_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    module = nn.BatchNorm1d(2)
    recalibrate(module, points())
    assert torch.equal(torch.rand(1), expected)


def test_data_that_does_not_fit_brings_the_statistics_back():
    module = net()
    before = copy.deepcopy(module.state_dict())
    data = [*points(2), (torch.rand(8, 3), torch.zeros(8))]
    with pytest.raises(InputError, match=r"does not go through .*Inputs float32\[8, 3\]"):
        recalibrate(module, data)
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert not module[0].training
    assert module[0].momentum == 0.3


def test_empty_data_is_refused():
    with pytest.raises(InputError, match="no batches"):
        recalibrate(net(), [])


def test_a_limit_below_one_is_refused():
    with pytest.raises(InputError, match="limit should be at least 1"):
        recalibrate(net(), points(), limit=0)
