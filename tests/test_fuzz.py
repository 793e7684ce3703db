"""Random networks through every check of `tests.properties`: the short run of `tests.fuzz_long`."""

from __future__ import annotations

import pytest

from tests.fuzz_long import Tally, run_seed

GRAPHS, CHUNK = 300, 20


def failures(seeds: range, how: str) -> Tally:
    total = Tally()
    for seed in seeds:
        total.add(run_seed(seed, how))
    return total


@pytest.mark.parametrize("first", range(0, GRAPHS, CHUNK))
def test_random_networks_pass_every_check(first):
    found = failures(range(first, first + CHUNK), "default")
    assert not found.failures
    assert found.graphs == CHUNK
    assert found.slimmed > 5 * CHUNK
    assert found.worst < 1e-9


def test_random_networks_captured_by_export_pass_every_check():
    found = failures(range(GRAPHS, GRAPHS + CHUNK), "export")
    assert not found.failures
    assert found.captures == {"torch.export": CHUNK}


@pytest.mark.parametrize("seed", [3240])
def test_a_network_that_failed_once_passes_every_check(seed):
    assert not run_seed(seed).failures
