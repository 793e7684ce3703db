"""Stairs: how a backend rounds channel counts up, as measured.

Kernels work on blocks of channels, so 56 channels can cost what 64 do, and 134 more than 136. The
pattern repeats along the widths, and is alike for all layers of one kind. It is told in channels:
how many more a width costs than it has. With those added, latency is close to a straight line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LONGEST = 64
"""Channels after which the pattern is taken to repeat; no backend here has longer blocks."""

NOISE = 0.3
"""Share of a unit that an extra may be wrong by, with latencies that are right to some per cent."""

LITTLE = 0.07
"""Share of the period that an extra may be without counting: latencies are known roughly."""

FLAT = 0.1
"""Latencies that rise by less than this share over one period are taken not to depend on it."""


@dataclass(frozen=True)
class Stairs:
    """Widths rounded up as a backend does.

    Attributes:
        unit: channels between two widths that were measured.
        extra: channels that a width costs beyond its own, by how many units it lies below a
            multiple of the period.
    """

    unit: int
    extra: tuple[float, ...]

    @property
    def period(self) -> int:
        """Channels after which the pattern repeats."""
        return self.unit * len(self.extra)

    @property
    def step(self) -> int:
        """Widths that are a multiple of this cost hardly more than they have."""
        free = [n for n in range(1, len(self.extra) + 1) if len(self.extra) % n == 0]
        little = LITTLE * self.period
        return self.unit * next(n for n in free if max(self.extra[::n]) <= little)

    def __call__(self, width: Any) -> Array:
        """The widths that cost as much on a straight line."""
        below = -np.asarray(width) % self.period / self.unit
        extra = np.interp(below, np.arange(len(self.extra) + 1), (*self.extra, 0.0))
        return np.asarray(width + extra, dtype=np.float64)


def none(unit: int) -> Stairs:
    """No stairs: every width costs what it has."""
    return Stairs(unit, (0.0,))


def probes(size: int, unit: int) -> list[int]:
    """Widths to measure so that `fit` can tell the stairs; none where `size` leaves no room.

    They start at twice the period, because the narrower a layer, the higher its stairs.
    """
    period = max(LONGEST // unit, 1) * unit if unit > 4 else 16 * unit
    while period > unit and 2 * period > size:
        period = period // unit // 2 * unit
    return list(range(2 * period, period - 1, -unit)) if period > unit else []


def fit(seconds: Sequence[float], unit: int) -> Stairs:
    """The stairs that show in the latencies of `probes`, from wide to narrow.

    The first and the last width lie a whole period apart, so the line through them passes every
    width that costs no extra.
    """
    count = len(seconds) - 1
    rise = (seconds[0] - seconds[-1]) / count if count > 0 else 0.0
    if count < 2 or rise * count < FLAT * seconds[0]:
        return none(unit)
    over = [told - (seconds[0] - rise * place) for place, told in enumerate(seconds[:-1])]
    return Stairs(unit, tuple(unit * _settled(min(max(more / rise, 0), count)) for more in over))


def _settled(units: float) -> float:
    """Without the noise: whole units, where that is what was meant."""
    return float(round(units)) if abs(units - round(units)) <= NOISE else units
