"""The benchmark on real networks solves the product's problem, and counts rivals by its tables."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

from benchmarks.allocation import Results, as_markdown, investigate
from benchmarks.real_networks import Network, read
from benchmarks.rivals import RIVALS
from fxprune.solver import measure
from tests.networks import small_resnet


class Dense(nn.Module):
    """Two layers whose outputs are concatenated, as in a dense block, and grouped ones behind."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.second = nn.Conv2d(16, 8, 1)
        self.third = nn.Conv2d(24, 16, 1)
        self.grouped = nn.Conv2d(16, 16, 3, groups=4)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.third(torch.cat([y, self.second(y)], 1))
        return self.head(self.grouped(z).mean((2, 3)))


def seen(model: nn.Module) -> Network:
    # Large images, so that the roofline is more than launches.
    return read(model.eval(), (torch.zeros(1, 3, 64, 64),), multiple_of=4)


@pytest.fixture(params=["residual", "concatenated"])
def network(request: pytest.FixtureRequest) -> Network:
    torch.manual_seed(0)
    return seen(small_resnet() if request.param == "residual" else Dense())


def test_the_layers_add_up_to_the_products_problem(network: Network) -> None:
    allocator = network.allocator(network.latency)
    instance = network.instance(allocator.choices)
    rng = random.Random(0)
    for _ in range(50):
        options = {
            group: rng.randrange(len(instance.ladders[group])) for group in instance.groups()
        }
        value, latency = instance.count(instance.complete(options))
        assert (pytest.approx(value), (latency,)) == measure(
            allocator.problem, instance.complete(options)
        )


def test_every_rival_is_below_the_bound_and_above_nothing(network: Network) -> None:
    results = Results([], [], [], [])
    investigate("net", network, 0.0, list(RIVALS), results)
    solved = [row for row in results.rows if row.status != "infeasible"]
    assert solved
    for row in solved:
        assert row.status == "optimal"
        found = [r.value for r in row.rivals.values() if r.value is not None]
        assert found
        assert max(found) <= row.bound * (1 + 1e-9)
    assert max(front.gap for front in results.fronts) <= 1e-4
    assert "## Summary" in as_markdown(results, "the command")


def test_methods_that_know_no_concatenations_stay_away_from_them() -> None:
    network = seen(Dense())
    allocator = network.allocator(network.latency)
    instance = network.instance(allocator.choices)
    latency = instance.count(instance.dense())[1]
    found = {name for name, rival in RIVALS.items() if rival(instance, latency) is not None}
    assert found == {"uniform", "greedy"}
