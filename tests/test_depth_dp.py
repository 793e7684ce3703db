"""The published dynamic programmes for depth, against trying everything."""

from __future__ import annotations

import itertools
import random

import pytest

from benchmarks.depth_dp import fastest_merges, layer_merge, two_stage

LENGTH = 6
SEGMENTS = [(i, j) for i in range(LENGTH) for j in range(i + 1, LENGTH + 1)]


def cuts(start: int, stop: int) -> list[tuple[int, ...]]:
    """Every way to cut start .. stop."""
    inner = range(start + 1, stop)
    sizes = range(len(inner) + 1)
    chosen = itertools.chain.from_iterable(itertools.combinations(inner, n) for n in sizes)
    return [(start, *places, stop) for places in chosen]


def tables(seed: int) -> tuple[dict[tuple[int, int], float], dict[tuple[int, int], float]]:
    draw = random.Random(seed)
    latency = {s: draw.randint(1, 9) / 8 * (s[1] - s[0]) ** 0.5 for s in SEGMENTS}
    importance = {s: -draw.random() * (s[1] - s[0]) for s in SEGMENTS}
    for i, j in SEGMENTS:
        if j - i > 1 and draw.random() < 0.2:
            latency[i, j] = float("inf")
        if j - i > 1 and draw.random() < 0.2:
            del importance[i, j]
    return latency, importance


def best_by_trying(latency, importance, budget):
    best = None
    for activations in cuts(0, LENGTH):
        if not all(pair in importance for pair in itertools.pairwise(activations)):
            continue
        value = sum(importance[pair] for pair in itertools.pairwise(activations))
        seconds = sum(
            min(sum(latency[p] for p in itertools.pairwise(places)) for places in cuts(i, j))
            for i, j in itertools.pairwise(activations)
        )
        if seconds <= budget and (best is None or value > best):
            best = value
    return best


@pytest.mark.parametrize("seed", range(10))
def test_the_first_stage_finds_the_fastest_cuts(seed):
    latency, _ = tables(seed)
    for (i, j), (seconds, places) in fastest_merges(latency, LENGTH).items():
        options = [sum(latency[p] for p in itertools.pairwise(way)) for way in cuts(i, j)]
        assert seconds == pytest.approx(min(options))
        assert (places[0], places[-1]) == (i, j)
        assert sum(latency[p] for p in itertools.pairwise(places)) == pytest.approx(seconds)


@pytest.mark.parametrize("seed", range(40))
def test_two_stages_find_the_best_choice(seed):
    latency, importance = tables(seed)
    budget = random.Random(seed).uniform(0.8, 4)
    expected = best_by_trying(latency, importance, budget)
    found = two_stage(latency, importance, LENGTH, budget, tick=1e-4)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found.importance == pytest.approx(expected)
    assert found.seconds <= budget
    assert set(found.activations) <= set(found.merges)
    seconds = sum(latency[pair] for pair in itertools.pairwise(found.merges))
    assert seconds == pytest.approx(found.seconds)


@pytest.mark.parametrize("seed", range(40))
def test_layer_merge_finds_the_best_choice(seed):
    draw = random.Random(seed)
    sizes = [(i, j, k) for i, j in SEGMENTS for k in (1, 3, 5) if draw.random() < 0.7]
    latency = {s: draw.randint(1, 9) / 8 + s[2] / 8 for s in sizes}
    importance = {s: draw.random() for s in sizes}
    budget = draw.uniform(1, 4)
    expected = None
    for places in cuts(0, LENGTH):
        ways = [[s for s in sizes if s[:2] == pair] for pair in itertools.pairwise(places)]
        for segments in itertools.product(*ways):
            if sum(latency[s] for s in segments) <= budget:
                value = sum(importance[s] for s in segments)
                expected = value if expected is None else max(expected, value)
    found = layer_merge(latency, importance, LENGTH, budget, tick=1e-4)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found.importance == pytest.approx(expected)
    assert found.importance == pytest.approx(sum(importance[s] for s in found.segments))
    assert sum(latency[s] for s in found.segments) == pytest.approx(found.seconds)
    assert found.seconds <= budget


def test_some_budgets_of_the_tests_can_be_met_and_some_cannot():
    outcomes = set()
    for seed in range(40):
        latency, importance = tables(seed)
        budget = random.Random(seed).uniform(0.8, 4)
        outcomes.add(two_stage(latency, importance, LENGTH, budget, tick=1e-4) is None)
    assert outcomes == {True, False}


def test_a_coarse_tick_never_exceeds_the_budget():
    latency = dict.fromkeys(SEGMENTS, 0.9)
    importance = {(i, j): -(j - i - 1.0) for i, j in SEGMENTS}
    found = two_stage(latency, importance, LENGTH, budget=3.0, tick=0.5)
    assert found is not None
    assert len(found.activations) == 4  # three segments of 0.9, counted as 1.0 each
    assert found.seconds == pytest.approx(2.7)


def test_of_equal_choices_the_faster_is_taken():
    latency = {(0, 1): 1.0, (1, 2): 1.0, (0, 2): 1.5}
    importance = {(0, 1): 0.5, (1, 2): 0.5, (0, 2): 1.0}
    found = two_stage(latency, importance, 2, budget=2.0, tick=0.25)
    assert found is not None
    assert found.activations == (0, 2)


def test_convolutions_without_activations_may_stay_apart():
    latency = {(0, 1): 1.0, (1, 2): 1.0, (0, 2): 5.0}
    found = two_stage(latency, {(0, 2): 1.0}, 2, budget=2.0, tick=0.1)
    assert found is not None
    assert found.activations == (0, 2)
    assert found.merges == (0, 1, 2)
