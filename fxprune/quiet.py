"""Moments in which a shared machine runs at its full speed.

Whatever runs on the other thread of a core, in another virtual machine even, slows everything down
for fractions of a second or longer. A moment of arithmetic, which touches no cache, tells whether
somebody is there. What cannot be compared with anything that runs beside it, and is known once and
for all, waits until nobody is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache

READINGS = 3
"""So many in a row tell that it is quiet."""
LOOSE = 1.15
"""Times the fastest reading: what is quiet still. Neighbours make it 1.5 to 2 times the fastest."""
LASTS = 2e-3
"""Seconds for which that is taken to hold."""
CREEP = 0.01
"""By which the fastest reading is taken to be out of date per second: clock rates change."""
MOST_CREEP = 1.0
"""Seconds of a pause between readings that count for that: they do not change without end."""
FIRST = 0.3
"""Seconds of readings at the start."""
RATION = 0.7
"""Share of the time that may be spent on waiting."""
MOST_SAVED = 5.0
"""Seconds of waiting that may be saved up."""
ADDITIONS = 1000
PATIENCE_OF_A_MOMENT = 0.1
"""Seconds that there are to wait for each of several moments, which share them."""


class Canary:
    """Tells whether the machine runs at its full speed.

    Args:
        read: does a fixed amount of work.
        clock: seconds.
    """

    def __init__(
        self, read: Callable[[], object], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._read, self._clock = read, clock
        start = self._read_at = self._saved_at = clock()
        self._fastest = float("inf")
        self._quiet_at = float("-inf")
        self._saved = 0.0
        while clock() < start + FIRST:
            self._is_fast()

    def wait(self, patience: float) -> float:
        """Wait until it is quiet, for `patience` seconds at most; seconds that this took.

        Waiting is rationed: on a machine that never is quiet, measuring must end all the same.
        """
        begin = self._clock()
        if begin < self._quiet_at + LASTS:
            return 0.0
        self._saved = min(self._saved + RATION * (begin - self._saved_at), MOST_SAVED)
        stop = begin + min(patience, self._saved)
        while not (quiet := self._is_quiet()) and self._clock() < stop:
            pass
        end = self._clock()
        self._saved, self._saved_at = self._saved - (end - begin), begin
        if quiet:
            self._quiet_at = end
        return end - begin

    def _is_quiet(self) -> bool:
        return all(self._is_fast() for _ in range(READINGS))

    def _is_fast(self) -> bool:
        begin = self._clock()
        self._read()
        end = self._clock()
        self._fastest *= 1 + CREEP * min(end - self._read_at, MOST_CREEP)
        self._fastest, self._read_at = min(self._fastest, end - begin), end
        return end - begin <= LOOSE * self._fastest


def quiet_moments(count: int) -> Iterator[int]:
    """So many moments, of which as many are quiet as patience allows."""
    patience = count * PATIENCE_OF_A_MOMENT
    for moment in range(count):
        patience -= _canary().wait(max(patience, 0.0))
        yield moment


@cache
def _canary() -> Canary:
    return Canary(_add_up)


def _add_up() -> int:
    total = 0
    for _ in range(ADDITIONS):
        total += 1
    return total
