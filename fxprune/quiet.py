"""Moments in which a shared machine runs at its full speed.

Whatever runs on the other thread of a core, in another virtual machine even, slows everything down
for fractions of a second, and not alike: a dense convolution by a fifth, a depthwise one twofold.
A moment of arithmetic, which touches no cache, tells whether somebody is there; what is measured
waits until nobody is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

PATIENCE = 1.0
"""Seconds to wait for one sample, or the samples of one turn."""
READINGS = 3
"""So many in a row tell that it is quiet."""
LOOSE = 1.15
"""Times the fastest reading: what is quiet still. The neighbours' noise is 1.5 to 2 times that."""
LASTS = 2e-3
"""Seconds for which that is taken to hold."""
CREEP = 0.01
"""By which the fastest reading is taken to be out of date per second: clock rates change."""
FIRST = 0.3
"""Seconds of readings before the first wait."""
RATION = 0.7
"""Of all time since the first wait, the share that may be spent on waiting."""
ADDITIONS = 1000


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
        self._start = self._read_at = clock()
        self._fastest = float("inf")
        self._quiet_at = float("-inf")
        self._waited = 0.0
        while clock() < self._start + FIRST:
            self._is_fast()

    def wait(self, patience: float = PATIENCE) -> bool:
        """Wait until it is quiet; False if that is not so within `patience` seconds.

        Waiting is rationed: on a machine that never is quiet, measuring must end all the same.
        """
        begin = self._clock()
        if begin < self._quiet_at + LASTS:
            return True
        left = RATION * (begin - self._start) - self._waited
        stop = begin + min(patience, left)
        while not (quiet := self._is_quiet()) and self._clock() < stop:
            pass
        end = self._clock()
        self._waited += end - begin
        if quiet:
            self._quiet_at = end
        return quiet

    def _is_quiet(self) -> bool:
        return all(self._is_fast() for _ in range(READINGS))

    def _is_fast(self) -> bool:
        begin = self._clock()
        self._read()
        end = self._clock()
        self._fastest *= 1 + CREEP * (end - self._read_at)
        self._fastest, self._read_at = min(self._fastest, end - begin), end
        return end - begin <= LOOSE * self._fastest


def wait_for_quiet(patience: float = PATIENCE) -> float:
    """Wait until this process has a core to itself; what is left of the patience (seconds)."""
    start = time.perf_counter()
    _canary().wait(patience)
    return max(patience - (time.perf_counter() - start), 0.0)


@cache
def _canary() -> Canary:
    return Canary(_add_up)


def _add_up() -> int:
    total = 0
    for _ in range(ADDITIONS):
        total += 1
    return total
