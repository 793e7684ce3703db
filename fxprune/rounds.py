"""What was predicted and measured on the way to a slim network."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Round:
    """One turn of the closed loop: a network's cost per budget, as predicted and as measured.

    In seconds, MACs, parameters, bytes, or what a budget function returns, which is not predicted
    where it is the only budget that has to be measured.

    known: slim networks that had put the prediction right by then, per budget.
    rehearsal: whether that was no candidate, but a network looked at to put the prediction right;
    what needs no such look is not measured then (nan).
    """

    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    known: tuple[int, ...]
    rehearsal: bool = False
