"""Plans: the decision as data, deterministic and strictly validated."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxprune
from fxprune.errors import InputError, PlanMismatch
from fxprune.plan import Plan

SMALL = Plan({"b": (0, 2), "a": (1,)}, {"a": 2, "b": 4}, {"torch": "2.15.0", "budget": None})


def as_json(**changes: object) -> str:
    plain = json.loads(SMALL.to_json())
    return json.dumps({**plain, **changes})


@st.composite
def plans(draw):
    names = draw(st.lists(st.text(max_size=8), unique=True, max_size=4))
    sizes = {name: draw(st.integers(1, 12)) for name in names}
    kept = {
        name: tuple(sorted(draw(st.sets(st.integers(0, size - 1), min_size=1))))
        for name, size in sizes.items()
    }
    scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
    scalars |= st.floats(allow_nan=False, allow_infinity=False)
    meta = draw(st.dictionaries(st.text(max_size=8), scalars | st.lists(scalars), max_size=3))
    return Plan(kept, sizes, meta)


@settings(deadline=None)
@given(plans())
def test_json_brings_back_the_same_plan(plan):
    assert Plan.from_json(plan.to_json()) == plan


@settings(deadline=None)
@given(st.text(max_size=60) | st.binary(max_size=60))
def test_arbitrary_text_is_refused_and_never_crashes(text):
    with pytest.raises(PlanMismatch):
        Plan.from_json(text)


def test_the_same_plan_gives_the_same_bytes_whatever_the_order():
    other = Plan({"a": (1,), "b": (0, 2)}, {"b": 4, "a": 2}, {"budget": None, "torch": "2.15.0"})
    assert other.to_json() == SMALL.to_json()


def test_only_a_plan_is_applied():
    with pytest.raises(InputError, match="plan is a dict, not a "):
        fxprune.apply(nn.Linear(2, 2), {}, (torch.ones(1, 2),))


def test_a_plan_reads_as_one_line_per_group():
    assert SMALL.to_json().splitlines()[:6] == [
        "{",
        '  "dropped": [],',
        '  "kept": {',
        '    "a": [1],',
        '    "b": [0, 2]',
        "  },",
    ]


def test_slim_sizes_count_what_is_kept():
    assert SMALL.slim_sizes == {"a": 1, "b": 2}


def test_a_plan_does_not_follow_its_callers_mappings():
    kept = {"a": (0,)}
    plan = Plan(kept, {"a": 2})
    kept["a"] = (1,)
    assert plan.kept["a"] == (0,)


def test_a_plan_can_be_deep_copied():
    assert copy.deepcopy(SMALL) == SMALL


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", "the top level: not JSON"),
        ("[]", "the top level: should be an object"),
        ("[" * 100_000, "the top level: nested too deeply"),
        (as_json(kept={"a": [0]}), "kept.b: is missing"),
        (as_json(sizes={"a": 2}), "sizes.b: is missing"),
        (as_json(kept={"a": [1], "b": [0, "2"]}), r"kept.b\[1\]: should be an integer, not '2'"),
        (as_json(kept={"a": [1], "b": [0, True]}), r"kept.b\[1\]: should be an integer, not True"),
        (as_json(kept={"a": [1], "b": [2, 2]}), r"kept.b\[1\]: should be an integer above 2"),
        (as_json(kept={"a": [1], "b": [2, 0]}), r"kept.b\[1\]: should be an integer above 2"),
        (as_json(kept={"a": [1], "b": [-1]}), r"kept.b\[0\]: should be an integer above -1"),
        (as_json(kept={"a": [2], "b": [0]}), r"kept.a\[0\]: .* below 2, not 2"),
        (as_json(kept={"a": [1], "b": []}), "kept.b: is empty"),
        (as_json(kept={"a": 1, "b": [0]}), "kept.a: should be a list"),
        (as_json(sizes={"a": 0, "b": 4}), "sizes.a: should be a positive integer"),
        (as_json(sizes={"a": 2.0, "b": 4}), "sizes.a: should be an integer, not 2.0"),
        (as_json(meta=[]), "meta: should be an object"),
        (as_json(extra=1), "extra: is not a known field"),
        (as_json(version=2), "version: is 2; this fxprune reads version 1"),
        (as_json(version=True), "version: should be an integer"),
        ('{"kept": {}, "kept": {}, "sizes": {}}', "kept: occurs twice"),
        ('{"kept": {}, "sizes": {}, "meta": {"x": NaN}}', "NaN is not JSON"),
        ('{"sizes": {}}', "kept: is missing"),
    ],
)
def test_a_malformed_plan_is_refused_with_the_path_of_the_fault(text, path):
    with pytest.raises(PlanMismatch, match=path):
        Plan.from_json(text)


def test_meta_must_be_plain():
    with pytest.raises(PlanMismatch, match=r"meta\.device\[0\]: is not plain JSON"):
        Plan({}, {}, {"device": [object()]})


def test_a_model_with_the_same_groups_passes_the_check():
    SMALL.check({"b": 4, "a": 2})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"a": 2, "b": 8}, "Group 'b' has 8 positions in the model but 4 in the plan"),
        ({"a": 2}, "The model has no group 'b'"),
        ({"a": 2, "aa": 3, "b": 8}, "The plan says nothing about the model's group 'aa'"),
    ],
)
def test_the_first_group_that_differs_is_named(sizes, message):
    with pytest.raises(PlanMismatch, match=message):
        SMALL.check(sizes)
