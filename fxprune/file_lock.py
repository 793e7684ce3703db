"""A lock file that many processes may share, or one may have alone; a killed process lets it go."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

if sys.platform != "win32":
    import fcntl

POLL_SECONDS = 0.02


class FileLock:
    """Shared by every user of a file, exclusive for the one who is about to move it away.

    On Windows nothing is locked: the system itself refuses to move a file that is open.
    """

    def __init__(self, path: Path) -> None:
        """Open (and create) the lock file; raises `OSError` if that is not possible."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def share(self) -> None:
        """Wait until nobody has the lock alone, then share it."""
        if sys.platform == "win32":
            return
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def exclude(self, seconds: float) -> bool:
        """Give up one's share and try for so long to have the lock alone; False if others stay."""
        if sys.platform == "win32":
            return True
        # Given up first: two sharers that wait for each other would wait for ever.
        fcntl.flock(self._file, fcntl.LOCK_UN)
        stop = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > stop:
                    return False
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """Let go."""
        os.close(self._file)
