"""Keeps a library's stray lines off standard output.

HiGHS 1.12 prints a line of its own from C++ in one rare branch, whatever its options say.  Standard
output may be someone's data, so the line is dropped; anything else that is written meanwhile, by
another thread for instance, is passed on.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_STDOUT = 1
# Standard output belongs to the whole process: two overlapping redirections would mix it up.
_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def without_lines(prefix: bytes) -> Iterator[None]:
    """Drops the lines on standard output that begin with the prefix, also those from C."""
    with _ONE_AT_A_TIME, tempfile.TemporaryFile() as caught:
        try:
            _flush()
            real = os.dup(_STDOUT)
        except OSError:  # there is no standard output, so nothing to keep clean
            yield
            return
        try:
            os.dup2(caught.fileno(), _STDOUT)
            yield
        finally:
            _flush()
            os.dup2(real, _STDOUT)
            os.close(real)
            caught.seek(0)
            rest = b"".join(line for line in caught if not line.startswith(prefix))
            if rest:
                os.write(_STDOUT, rest)


def _flush() -> None:
    """Empties the buffers of Python and, where it can be found, of C."""
    with suppress(AttributeError, OSError, ValueError):  # replaced, broken or closed
        sys.stdout.flush()
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)
