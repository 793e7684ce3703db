"""Errors read as sentences, and cross process boundaries whole."""

from __future__ import annotations

import copy
import pickle

import pytest

from fxprune import errors
from fxprune.errors import BackendUnavailable, BudgetError, FxpruneError, VerificationError

CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, FxpruneError)]


def test_the_parts_of_a_message_become_sentences() -> None:
    error = FxpruneError("it broke", "node 'relu'", "mend it!")
    assert str(error) == "it broke. node 'relu'. mend it!"
    assert (error.what, error.where, error.fix) == ("it broke", "node 'relu'", "mend it!")


def test_parts_that_are_not_given_leave_no_trace() -> None:
    assert str(FxpruneError("it broke.")) == "it broke."
    assert str(FxpruneError("it broke", fix="mend it")) == "it broke. mend it."


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_has_one_base_and_a_sentence_about_itself(kind: type[FxpruneError]) -> None:
    assert issubclass(kind, FxpruneError)
    assert kind.__doc__ is not None
    assert str(kind("what", "where", "fix")) == "what. where. fix."


def test_an_infeasible_budget_carries_its_floor() -> None:
    error = BudgetError("too little", requested=3.0, floor=5.5, unit="ms")
    assert (error.requested, error.floor, error.unit) == (3.0, 5.5, "ms")


@pytest.mark.parametrize(
    "error",
    [
        FxpruneError("a", "b", "c"),
        BudgetError("a", requested=3.0, floor=5.5, unit="ms"),
        BackendUnavailable("a", backend="openvino"),
        VerificationError("a", node="conv1"),
    ],
)
def test_errors_survive_being_taken_apart_and_put_together(error: FxpruneError) -> None:
    again = copy.copy(error)  # by the protocol that carries them between processes
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_an_error_can_be_placed_in_the_model_that_it_was_met_in() -> None:
    error = BudgetError("Too slow", "kernel conv", "Ask for more", 1.0, 2.0, "s")
    placed = error.within("layer stem")
    assert str(placed) == "Too slow. layer stem; kernel conv. Ask for more."
    assert (placed.floor, placed.unit) == (2.0, "s")
    assert str(pickle.loads(pickle.dumps(placed))) == str(placed)
    assert str(error) == "Too slow. kernel conv. Ask for more."
