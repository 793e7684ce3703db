"""Waiting until neighbours leave the core alone, on a clock that is told what time it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fxprune import quiet
from fxprune.quiet import FIRST, LASTS, MOST_SAVED, RATION, Canary, quiet_moments

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
    assert machine.canary().wait(1.0) == pytest.approx(3 * WORK)


def test_a_quiet_moment_is_trusted_for_a_while() -> None:
    machine = Machine(lambda now: 1.0)
    canary = machine.canary()
    canary.wait(1.0)
    assert canary.wait(1.0) == 0.0
    machine.now += 1.1 * LASTS
    assert canary.wait(1.0) == pytest.approx(3 * WORK)


@pytest.mark.parametrize("pause", [5.0, 60.0, 3600.0])
def test_it_waits_until_the_neighbour_is_gone_however_long_nothing_was_measured(
    pause: float,
) -> None:
    machine = Machine(lambda now: 1.7 if pause <= now < pause + 0.4 else 1.0)
    canary = machine.canary()
    machine.now = pause + 0.1
    canary.wait(1.0)
    assert pause + 0.4 <= machine.now < pause + 0.41


def test_it_does_not_wait_longer_than_its_patience() -> None:
    machine = Machine(lambda now: 1.7 if now > 5.0 else 1.0)
    canary = machine.canary()
    machine.now = 10.0
    waited = canary.wait(0.2)
    assert waited == machine.now - 10.0
    assert 0.2 <= waited < 0.2 + 3 * 1.7 * WORK


def test_waiting_is_rationed() -> None:
    machine = Machine(lambda now: 1.0 if now < FIRST else 2.0 + 50 * now)
    canary = machine.canary()
    for _ in range(200):
        canary.wait(1.0)
        machine.now += 0.01
    working = FIRST + 200 * 0.01
    assert working < machine.now < working / (1 - RATION) + 3


def test_little_waiting_is_saved_up() -> None:
    machine = Machine(lambda now: 1.0 if now < 3600 else 2.0 + 10 * (now - 3600))
    canary = machine.canary()
    machine.now = 3600.0
    waited = sum(canary.wait(1.0) for _ in range(100))
    assert MOST_SAVED - 1 < waited < MOST_SAVED / (1 - RATION) + 3


def test_a_machine_that_became_slower_is_believed_to_be_quiet_again() -> None:
    machine = Machine(lambda now: 1.0 if now < 10 else 1.3)
    canary = machine.canary()
    machine.now = 11.0
    assert canary.wait(0.1) >= 0.1
    for _ in range(60):
        machine.now += 1.0
        waited = canary.wait(0.1)
    assert waited < 0.01


def test_several_moments_share_their_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Slow:
        def wait(self, patience: float) -> float:
            asked.append(patience)
            return 0.15

    monkeypatch.setattr(quiet, "_canary", Slow)
    assert list(quiet_moments(4)) == [0, 1, 2, 3]
    assert asked == pytest.approx([0.4, 0.25, 0.1, 0.0])
