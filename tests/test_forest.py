"""The last resort of allocation: a forest of interactions, whatever the network."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from fxprune.passes.allocate import Allocator
from fxprune.passes.allocation.costs import macs_tables
from fxprune.passes.allocation.forest import along_forest
from fxprune.passes.allocation.ladders import build_ladders
from fxprune.passes.allocation.widths import Choices, Tables
from fxprune.passes.capture import capture
from fxprune.passes.importance import magnitude
from fxprune.passes.infer import infer
from fxprune.solver import SparseFactor


def tables_of(strengths, options=3):
    """Tables of `strength * i * j` over pairs of choices."""
    domains = {name: tuple(range(options)) for pair in strengths for name in pair}
    tables = Tables(domains)
    for pair, strength in strengths.items():
        tables.add(pair, strength * np.outer(np.arange(options), np.arange(options)))
    return tables


def test_the_strongest_interactions_that_form_no_cycle_stay():
    tables = tables_of({("a", "b"): 3.0, ("b", "c"): 1.0, ("a", "c"): 2.0, ("c", "d"): 0.5})
    (found,) = along_forest([tables], [])
    assert {scope for scope in found.by_scope if len(scope) > 1} == {
        ("a", "b"), ("a", "c"), ("c", "d")
    }  # fmt: skip
    for pair in (("a", "b"), ("a", "c"), ("c", "d")):
        assert np.array_equal(found.by_scope[pair], tables.by_scope[pair])


def test_what_does_not_interact_stays_exact():
    rng = np.random.default_rng(0)
    tables = Tables({name: tuple(range(4)) for name in "abc"}, constant=1.0)
    for pair in combinations("abc", 2):
        tables.add(pair, np.add.outer(rng.normal(size=4), rng.normal(size=4)))
    (found,) = along_forest([tables], [])
    for options in np.ndindex(4, 4, 4):
        at = dict(zip("abc", options, strict=True))
        assert found.at(at) == pytest.approx(tables.at(at))


def test_ties_count_as_interactions():
    tables = tables_of({("a", "b"): 1.0, ("b", "c"): 1.0})
    nothing = np.zeros((0, 1), dtype=np.int64)
    tie = SparseFactor("tie", ("a", "b"), np.zeros((1, 2), dtype=np.int64), nothing, np.zeros(1))
    (found,) = along_forest([tables], [tie])
    assert ("a", "b") not in found.by_scope
    assert ("b", "c") in found.by_scope


def test_a_network_in_which_all_widths_meet_is_allocated_nevertheless():
    layers = [nn.Linear(40, 40) for _ in range(8)]
    captured = capture(nn.Sequential(*layers), (torch.randn(2, 40),))
    analysis = infer(captured)
    ladders = build_ladders(analysis, 2)
    importance = magnitude(captured.module, analysis)

    def everything(choices: Choices) -> Tables:
        tables = macs_tables(analysis, choices)
        for one, other in combinations(choices.domains, 2):
            sizes = (np.array(choices.domains[name]) for name in (one, other))
            tables.add((one, other), np.outer(*sizes).astype(float))
        return tables

    allocator = Allocator.build(analysis, ladders, importance, [everything], [1.0])
    (table,) = allocator.costs
    assert sum(len(scope) > 1 for scope in table.by_scope) == len(ladders) - 1
    exact = everything(allocator.choices)
    dense = exact.at(dict.fromkeys(exact.domains, -1))
    answer = allocator.solve([dense / 2])
    assert answer.solution.gap <= 1e-4
    options = {
        ladder.group.name: ladder.widths.index(answer.sizes[atom])
        for atom, ladder in ladders.items()
    }
    assert exact.at(options) == pytest.approx(dense / 2, rel=0.2)
