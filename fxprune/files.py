"""Writing files so that a failure, or a kill, leaves either the old file or the new one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fxprune.errors import InputError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """An empty file beside `path` that takes its place when the block ends without an error.

    Raises:
        InputError: `path` is a folder, or lies in one that does not exist or cannot be written.
    """
    target = Path(path)
    if target.is_dir():
        raise _unwritable(target, "it is a folder")
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
    except OSError as error:
        raise _unwritable(target, error.strerror or str(error)) from error
    try:
        yield temporary
        temporary.chmod(mode)  # writers that make the file anew may leave it private
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically; raises as `atomic_path` does."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _unwritable(target: Path, why: str) -> InputError:
    return InputError(
        f"{str(target)!r} cannot be written: {why}",
        fix="Choose a file in a folder that exists and can be written.",
    )
