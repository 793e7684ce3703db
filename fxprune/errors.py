"""Every error that a user of fxprune can meet.

Each message has three parts and reads as sentences: *what* is wrong (with the values), *where* it
is (backend, node, module path, source line, file) and *what to do* about it.  The parts stay
readable as attributes, so that a tool can show them apart.  All errors survive copying and crossing
a process boundary.
"""

from __future__ import annotations

import copy
from typing import Self


def _sentence(part: str) -> str:
    part = part.strip()
    return part if part.endswith((".", "!", "?", ":")) else f"{part}."


class FxpruneError(Exception):
    """Base class of every error that fxprune raises on purpose."""

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        return " ".join(_sentence(part) for part in (self.what, self.where, self.fix) if part)

    def within(self, place: str) -> Self:
        """The same error, met in `place`, such as a layer of the user's model."""
        error = copy.copy(self)
        error.where = f"{place}; {self.where}" if self.where else place
        error.args = (self.what, error.where, *self.args[2:])
        return error


class CaptureError(FxpruneError):
    """The model could not be captured as a graph."""


class InputError(FxpruneError):
    """An argument is wrong: the model itself, example inputs, data, importance, or a setting."""


class BudgetError(FxpruneError):
    """The budget cannot be met: `floor` is the least that can be reached, in `unit`."""

    def __init__(
        self,
        what: str,
        where: str = "",
        fix: str = "",
        requested: float = float("nan"),
        floor: float = float("nan"),
        unit: str = "",
    ) -> None:
        super().__init__(what, where, fix)
        self.args = (what, where, fix, requested, floor, unit)
        self.requested = requested
        self.floor = floor
        self.unit = unit


class BackendUnavailable(FxpruneError):  # noqa: N818 - a state of the machine
    """A backend cannot run on this machine; the message names it, says why, and how to get it."""

    def __init__(self, what: str, where: str = "", fix: str = "", backend: str = "") -> None:
        super().__init__(what, where, fix)
        self.args = (what, where, fix, backend)
        self.backend = backend


class BackendError(FxpruneError):
    """A backend that is present failed to compile, run, save or load something."""


class MeasurementError(FxpruneError):
    """A measurement spreads more than is allowed, or was not taken on the machine asked for."""


class PlanMismatch(FxpruneError):  # noqa: N818 - the noun already says that it is wrong
    """A plan was applied to a model that it was not made for."""


class VerificationError(FxpruneError):
    """The slim model differs numerically from the masked original, first at `node`."""

    def __init__(self, what: str, where: str = "", fix: str = "", node: str = "") -> None:
        super().__init__(what, where, fix)
        self.args = (what, where, fix, node)
        self.node = node


class CacheError(FxpruneError):
    """The measurement cache cannot be opened, read or written."""
