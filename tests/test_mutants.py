"""The verifier itself is tested: it must notice every fault, and nothing else."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from fxprune.passes.verify import verify
from tests.faults.base import KINDS, Subject
from tests.mutants import Chaotic, Mutant, mutants, noticed, subject_of, subjects

MOST = 4  # of each kind in each model; `python -m tests.mutants` takes all


@pytest.fixture(scope="module")
def slimmed() -> list[Subject]:
    torch.set_num_threads(1)
    return subjects()


@pytest.fixture(scope="module")
def chaotic() -> Subject:
    torch.set_num_threads(1)
    return subject_of(Chaotic, 4)


def some(kind: str, slimmed: list[Subject]) -> list[Mutant]:
    return [mutant for subject in slimmed for mutant in islice(mutants(subject, kind), MOST)]


def test_a_correctly_slimmed_model_raises_no_alarm(slimmed):
    for subject in slimmed:
        found = verify(subject.captured, subject.analysis, subject.plan, subject.slim)
        assert found.max_error < 1e-12
        assert found.slimmed >= 15
        assert not found.silent


@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_is_noticed(kind, slimmed):
    chosen = some(kind, slimmed)
    assert chosen, "no place for this kind of fault"
    missed = [mutant.place for mutant in chosen if not noticed(mutant)]
    assert not missed, f"{len(missed)} of {len(chosen)} not noticed: {missed}"


def test_the_faults_are_many_and_of_many_kinds(slimmed):
    counts = {kind: len(some(kind, slimmed)) for kind in KINDS}
    assert len(counts) >= 25
    assert sum(counts.values()) >= 150


def test_the_chaotic_network_makes_something_of_round_off(chaotic):
    module, (x,) = chaotic.captured.module, chaotic.captured.example_inputs
    with torch.no_grad():
        one, other = module(x), module(x * (1 + 2**-50))
    assert (one - other).abs().max() > 1e-3 * one.abs().max()


def test_round_off_raises_no_alarm_however_much_the_network_makes_of_it(chaotic):
    found = verify(chaotic.captured, chaotic.analysis, chaotic.plan, chaotic.slim)
    assert found.max_error < 1e-12
    assert found.slimmed >= 15
    assert not found.silent


@pytest.mark.parametrize("kind", KINDS)
def test_faults_are_noticed_in_the_chaotic_network_too(kind, chaotic):
    chosen = list(islice(mutants(chaotic, kind), MOST))
    missed = [mutant.place for mutant in chosen if not noticed(mutant)]
    assert not missed, f"{len(missed)} of {len(chosen)} not noticed: {missed}"
