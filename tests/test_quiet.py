"""Waiting until neighbours leave the core alone, on a clock that is told what time it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fxprune import quiet
from fxprune.quiet import FIRST, LASTS, RATION, Canary, wait_for_quiet

WORK = 1e-4


@pytest.fixture(autouse=True)
def the_usual_ration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "RATION", RATION)


class Machine:
    """A clock, and work that takes so long as somebody else leaves of the core."""

    def __init__(self, slowdown: Callable[[float], float]) -> None:
        self.now = 0.0
        self.slowdown = slowdown

    def clock(self) -> float:
        return self.now

    def work(self) -> None:
        self.now += WORK * self.slowdown(self.now)

    def canary(self) -> Canary:
        return Canary(self.work, self.clock)


def test_on_a_machine_of_ones_own_there_is_nothing_to_wait_for() -> None:
    machine = Machine(lambda now: 1.0)
    canary = machine.canary()
    start = machine.now
    assert canary.wait()
    assert machine.now - start == pytest.approx(3 * WORK)


def test_a_quiet_moment_is_trusted_for_a_while() -> None:
    machine = Machine(lambda now: 1.0)
    canary = machine.canary()
    canary.wait()
    before = machine.now
    assert canary.wait()
    assert machine.now == before
    machine.now += 1.1 * LASTS
    assert canary.wait()
    assert machine.now > before + 1.2 * LASTS


def test_it_waits_until_the_neighbour_is_gone() -> None:
    machine = Machine(lambda now: 1.7 if 5.0 <= now < 5.4 else 1.0)
    canary = machine.canary()
    machine.now = 5.1
    assert canary.wait()
    assert 5.4 <= machine.now < 5.41


def test_it_does_not_wait_longer_than_its_patience() -> None:
    machine = Machine(lambda now: 1.7 if now > FIRST else 1.0)
    canary = machine.canary()
    machine.now = 60.0
    canary.wait()
    assert not Machine.canary(Machine(lambda now: 1.0 if now < FIRST else 1.7)).wait(0.1)


def test_waiting_is_rationed() -> None:
    machine = Machine(lambda now: 1.0 if now < FIRST else 2.0 + 50 * now)
    canary = machine.canary()
    for _ in range(200):
        canary.wait()
        machine.now += 0.01
    assert machine.now * RATION < 0.01 * 200 / (1 - RATION)
    assert 200 * 0.01 < machine.now < 200 * 0.01 / (1 - RATION) + 3


def test_a_machine_that_became_slower_is_believed_to_be_quiet_again() -> None:
    machine = Machine(lambda now: 1.0 if now < 10 else 1.3)
    canary = machine.canary()
    canary.wait()
    machine.now = 11.0
    assert not canary.wait(0.1)
    machine.now = 45.0
    assert canary.wait(0.1)


def test_what_is_left_of_the_patience_is_told() -> None:
    left = wait_for_quiet(5.0)
    assert 0 <= left <= 5.0
    assert wait_for_quiet(0.0) == 0.0
