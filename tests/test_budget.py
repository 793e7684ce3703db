"""Budgets: what can be written, what it means, and what is refused."""

from __future__ import annotations

import math

import pytest
from torch import nn

from fxprune.budget import Budget, parse
from fxprune.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "resource", "limit", "relative"),
    [
        (0.6, "latency", 0.6, True),
        (1, "latency", 1.0, True),
        ("0.6", "latency", 0.6, True),
        ("60%", "latency", 0.6, True),
        ("60% latency", "latency", 0.6, True),
        (" 60 % of Latency ", "latency", 0.6, True),
        ("12 ms", "latency", 0.012, False),
        ("12ms", "latency", 0.012, False),
        ("850 us", "latency", 850e-6, False),
        ("850 µs", "latency", 850e-6, False),
        ("1e-3 s", "latency", 1e-3, False),
        ("1.2 GMACs", "macs", 1.2e9, False),
        ("300 mmacs", "macs", 300e6, False),
        ("50% MACs", "macs", 0.5, True),
        ("5M params", "params", 5e6, False),
        ("800 parameters", "params", 800.0, False),
        ("50% params", "params", 0.5, True),
        ("20 MB", "memory", 20e6, False),
        ("20 MiB", "memory", 20 * 2**20, False),
        ("25% memory", "memory", 0.25, True),
        ("2 MB activations", "activations", 2e6, False),
        ("512 KiB activations", "activations", 512 * 2**10, False),
        ("50% activations", "activations", 0.5, True),
    ],
)
def test_every_documented_form_parses(text, resource, limit, relative):
    (budget,) = parse(text)
    assert budget.resource == resource
    assert budget.limit == pytest.approx(limit, rel=1e-12)
    assert budget.relative is relative


def test_a_list_means_that_all_must_hold():
    assert parse(["12 ms", "20 MB", 0.5]) == (
        Budget("latency", 0.012),
        Budget("memory", 20e6),
        Budget("latency", 0.5, relative=True),
    )


def test_a_function_of_the_module_is_a_budget():
    def buffers(module: nn.Module) -> float:
        return float(sum(1 for _ in module.buffers()))

    (budget,) = parse(Budget(buffers, 3))
    assert budget.name == "buffers"
    assert budget.describe() == "buffers <= 3"
    assert budget.resolve(dense=1.0) == 3.0


@pytest.mark.parametrize(
    "wrong", ["", "fast", "12 parsecs", "1,2 GMACs", "12 ms ms", "%", "50 % bananas", "5%ms"]
)
def test_text_that_does_not_parse_is_answered_with_examples(wrong):
    with pytest.raises(BudgetError, match="does not parse") as caught:
        parse(wrong)
    assert repr(wrong) in caught.value.what
    assert '"1.2 GMACs"' in caught.value.fix


def test_flops_are_answered_with_what_a_mac_is():
    with pytest.raises(BudgetError, match="one MAC is two FLOPs"):
        parse("2 GFLOPs")


@pytest.mark.parametrize("wrong", [0, -0.5, "0 ms", "-5 ms", "0% MACs", "-1 params"])
def test_nothing_and_less_than_nothing_are_refused(wrong):
    with pytest.raises(BudgetError, match="above zero"):
        parse(wrong)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, "nan ms", "inf GMACs", "nan%"])
def test_what_is_not_finite_is_refused(wrong):
    with pytest.raises(BudgetError, match="finite"):
        parse(wrong)


@pytest.mark.parametrize("wrong", [1.5, 60, "120% latency", "100.1% params"])
def test_more_than_dense_is_refused(wrong):
    with pytest.raises(BudgetError, match="above the dense network"):
        parse(wrong)


@pytest.mark.parametrize("wrong", [None, True, b"12 ms", {"latency": 0.5}, [["12 ms"]], nn.ReLU])
def test_other_types_are_refused(wrong):
    with pytest.raises(BudgetError, match="cannot be"):
        parse(wrong)


def test_an_empty_list_is_refused():
    with pytest.raises(BudgetError, match="empty"):
        parse([])


def test_an_unknown_resource_is_refused():
    with pytest.raises(BudgetError, match="'energy' is no resource"):
        Budget("energy", 1.0)


def test_a_limit_that_is_no_number_is_refused():
    with pytest.raises(BudgetError, match="must be a number"):
        Budget("latency", "12 ms")


def test_a_black_box_may_have_a_negative_limit():
    assert Budget(lambda module: -1.0, -2.5).limit == -2.5


def test_a_relative_budget_resolves_to_a_share_of_dense():
    assert Budget("latency", 0.6, relative=True).resolve(0.020) == pytest.approx(0.012)


def test_an_absolute_budget_resolves_to_itself():
    assert Budget("macs", 1.2e9).resolve(4.1e9) == 1.2e9


def test_an_absolute_budget_above_dense_is_refused_with_both_figures():
    with pytest.raises(BudgetError, match=r"12\.0 ms is above .* 8\.00 ms") as caught:
        Budget("latency", 0.012).resolve(0.008)
    assert caught.value.requested == 0.012
    assert caught.value.unit == "s"


@pytest.mark.parametrize("dense", [0.0, math.nan, math.inf, -1.0])
def test_a_dense_value_that_cannot_be_compared_with_is_refused(dense):
    with pytest.raises(BudgetError, match="dense network's latency came out as"):
        Budget("latency", 0.5, relative=True).resolve(dense)


@pytest.mark.parametrize(
    ("budget", "phrase"),
    [
        (0.6, "latency <= 60 % of dense"),
        ("12 ms", "latency <= 12.0 ms"),
        ("1.2 GMACs", "MACs <= 1.20 GMACs"),
        ("5M params", "parameters <= 5.00 M parameters"),
        ("20 MB", "weight memory <= 20.0 MB"),
    ],
)
def test_a_budget_describes_itself(budget, phrase):
    assert str(parse(budget)[0]) == phrase


def test_only_latency_has_a_backend():
    assert Budget("latency", 0.5, relative=True, backend="eager").name == "latency on eager"
    with pytest.raises(BudgetError, match="MACs has no backend"):
        Budget("macs", 0.5, relative=True, backend="eager")
