"""Texts kept on disk under texts, such that damage is noticed and mended.

One SQLite file in WAL mode: many processes may read and write at once, and one that is killed
loses nothing that it was told is written.  SQLite does not notice flipped bytes in its pages, so
every row carries a checksum over its key and value, and the whole file is checked when it is
opened.  A damaged row is reported and dropped; a damaged file is reported, moved aside, and rebuilt
from its intact rows.  A wrong value is never returned.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

from fxprune.errors import CacheError
from fxprune.file_lock import FileLock

T = TypeVar("T")
Row = tuple[bytes, bytes, bytes]

logger = logging.getLogger(__name__)

SCHEMA = "1"
"""Version of the layout; part of every checksum."""

BUSY_SECONDS = 60.0
LOCK_SECONDS = 1.0
"""How long to wait for having a file alone, before looking again whether that is needed."""

_CREATE = """
CREATE TABLE IF NOT EXISTS measurements (
    key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum BLOB NOT NULL
) WITHOUT ROWID
"""
_READ = "SELECT key, value, checksum FROM measurements"
_WRITE = "INSERT OR REPLACE INTO measurements VALUES (CAST(? AS TEXT), CAST(? AS TEXT), ?)"
_DROP = "DELETE FROM measurements WHERE key = CAST(? AS TEXT)"

_TRANSIENT = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_PROTOCOL,
    }
)
_AMBIGUOUS = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR})
"""Told of files without permission, but of damaged headers too."""


class _DamagedError(Exception):
    """The file can be read, but not trusted."""


# Python fails to decode SQLite's own message where that quotes damaged text.
_FAULTS = (sqlite3.DatabaseError, UnicodeDecodeError, _DamagedError)


class Store:
    """A dictionary of texts in one file, open in this process and thread.

    All methods raise `CacheError` if the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, and create it and its folder if need be."""
        self.path = path
        if path.is_dir():
            raise CacheError(
                "the cache of measurements is one file, and this is a folder",
                str(path),
                f"pass {str(path / 'latencies.sqlite')!r}",
            )
        with self._clear_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path.with_name(f"{path.name}.lock"))
            try:
                self._lock.share()
                self._finish_mending()
                self._connection = self._open()
            except BaseException:
                self._lock.close()
                raise

    def close(self) -> None:
        """Let the file go; the store cannot be used any more."""
        self._connection.close()
        self._lock.close()

    def __len__(self) -> int:
        """The number of rows."""
        count: int = self._run(
            lambda connection: connection.execute("SELECT count(*) FROM measurements").fetchone()[0]
        )
        return count

    def read(self, keys: Sequence[str]) -> list[str | None]:
        """The values under these keys, in their order, each None if there is none."""
        return self._run(lambda connection: [_value(connection, key.encode()) for key in keys])

    def read_all(self) -> dict[str, str]:
        """All rows, in order of their keys."""
        rows = self._run(_intact_rows)
        return {key.decode(): value.decode() for key, value, _ in rows}

    def write(self, items: Mapping[str, str]) -> None:
        """Keep all of these or, if it fails, none; killing the process afterwards loses nothing."""
        texts = ((key.encode(), value.encode()) for key, value in items.items())
        rows = [(key, value, _digest(key, value)) for key, value in texts]
        self._run(lambda connection: _write(connection, rows))

    def change(self, key: str, new: Callable[[str | None], str]) -> None:
        """Replace a value by what `new` makes of it (None if there is none), and nobody between."""
        name = key.encode()

        def replace(connection: sqlite3.Connection) -> None:
            with _transaction(connection):
                old = _value(connection, name)
                value = new(old).encode()
                connection.execute(_WRITE, (name, value, _digest(name, value)))

        self._run(replace)

    def _run(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        with self._clear_errors():
            try:
                return operation(self._connection)
            except _FAULTS as error:
                if not self._is_damage(error):
                    raise
                self._connection.close()
                self._connection = self._rebuild(error)
            return operation(self._connection)

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except _FAULTS as error:
            if not self._is_damage(error):
                raise
            return self._rebuild(error)

    def _connect(self) -> sqlite3.Connection:
        """Open and check the file; raises one of `_FAULTS`."""
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            # A flipped byte may be no UTF-8, and that must not stop the rest from being read.
            connection.text_factory = bytes
            _use_write_ahead_log(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(_CREATE)
            (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            if verdict != b"ok":
                raise _DamagedError(verdict.decode(errors="replace"))
            _intact_rows(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _rebuild(self, cause: Exception) -> sqlite3.Connection:
        """Move the damaged file aside and start a new one with its intact rows."""
        stop = time.monotonic() + BUSY_SECONDS
        while time.monotonic() < stop:
            # A share in the file again and again: another process may mend it, and stay.
            with self._alone() as alone:
                connection = self._mend(cause, alone)
            if connection is not None:
                return connection
        raise self._in_use(f"damaged ({cause})")

    def _mend(self, cause: Exception, alone: bool) -> sqlite3.Connection | None:
        """The file mended, by another process or now; None if that is only for who has it alone."""
        if self._mended.exists():
            if not alone:
                return None
            self._put_in_place()
        try:
            return self._connect()  # another process may have been faster
        except _FAULTS:
            if not alone:
                return None
        rows = self._salvage()
        self._write_mended(rows)
        aside = self._put_in_place()
        logger.warning(
            "%s was damaged (%s) and is now %s; %d intact rows were carried over to a new file, "
            "what was in others will be measured again",
            self.path,
            cause,
            aside.name,
            len(rows),
        )
        return self._connect()

    def _in_use(self, state: str) -> CacheError:
        return CacheError(
            f"the file is {state}, and another process is using it",
            str(self.path),
            "end the other process, or set FXPRUNE_CACHE to another folder",
        )

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether the file could be had alone for a while; a share in it, if not and afterwards."""
        alone = self._lock.exclude(LOCK_SECONDS)
        if not alone:
            self._lock.share()
        try:
            yield alone
        finally:
            self._lock.share()

    @property
    def _mended(self) -> Path:
        """Where the new file lies, whole, until the damaged one is out of its way."""
        return self.path.with_name(f"{self.path.name}.mended")

    def _write_mended(self, rows: Iterable[Row]) -> None:
        unfinished = self.path.with_name(f"{self.path.name}.unfinished")
        for suffix in ("", "-journal"):  # of a process that was killed
            Path(f"{unfinished}{suffix}").unlink(missing_ok=True)
        with closing(sqlite3.connect(unfinished, isolation_level=None)) as connection:
            connection.execute(_CREATE)
            _write(connection, rows)
        os.replace(unfinished, self._mended)

    def _finish_mending(self) -> None:
        """Put a mended file in place that another process did not come to, since it was killed."""
        stop = time.monotonic() + BUSY_SECONDS
        while self._mended.exists():
            if time.monotonic() > stop:
                raise self._in_use("about to be replaced by a mended one")
            with self._alone() as alone:
                if alone and self._mended.exists():  # nobody was faster
                    aside = self._put_in_place()
                    logger.warning("%s was damaged and is now %s", self.path, aside.name)

    def _put_in_place(self) -> Path:
        try:
            aside = self._move_aside()
        except OSError:  # Windows moves no file that is open: what is written to it must count
            self._mended.unlink()
            raise
        os.replace(self._mended, self.path)
        return aside

    def _salvage(self) -> list[Row]:
        """All intact rows that can be reached in a damaged file, from either end."""
        rows: set[Row] = set()
        for order in ("ASC", "DESC"):
            try:
                with closing(sqlite3.connect(self.path)) as connection:
                    connection.text_factory = bytes
                    found = connection.execute(f"{_READ} ORDER BY key {order}")
                    rows.update(row for row in found if _is_intact(row))
            except _FAULTS:
                continue
        return sorted(rows)

    def _move_aside(self) -> Path:
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
        # The file itself last: a log that stayed behind would be replayed into the new file.
        for suffix in ("-wal", "-shm", ""):
            source = Path(f"{self.path}{suffix}")
            if source.exists():
                os.replace(source, f"{aside}{suffix}")
        return aside

    def _is_damage(self, error: Exception) -> bool:
        if isinstance(error, sqlite3.ProgrammingError):
            return False
        # The low byte is the primary code; errors that Python finds by itself have none.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code in _AMBIGUOUS:
            return self.path.is_file() and os.access(self.path, os.R_OK | os.W_OK)
        return code not in _TRANSIENT

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error, *_FAULTS) as error:
            raise CacheError(
                f"the cache of measurements cannot be used: {error}",
                str(self.path),
                "set FXPRUNE_CACHE to a folder that can be written",
            ) from error


def checksum(key: str, value: str) -> str:
    """The checksum of a row, in hexadecimal, for those who write rows elsewhere."""
    return _digest(key.encode(), value.encode()).hex()


def _digest(key: bytes, value: bytes) -> bytes:
    # The length keeps the parts from running into each other.
    return hashlib.sha256(f"{SCHEMA} {len(key)} ".encode() + key + value).digest()


def _is_intact(row: tuple[object, ...]) -> bool:
    key, value, digest = row
    if not (isinstance(key, bytes) and isinstance(value, bytes)):
        return False
    return digest == _digest(key, value)


def _value(connection: sqlite3.Connection, key: bytes) -> str | None:
    found = connection.execute(f"{_READ} WHERE key = CAST(? AS TEXT)", [key]).fetchone()
    if found is None:
        return None
    if found[0] != key or not _is_intact(found):
        _drop(connection, found[0])
        return None
    value: bytes = found[1]
    return value.decode()


def _intact_rows(connection: sqlite3.Connection) -> list[Row]:
    """All rows in order; damaged ones are reported and dropped on the way."""
    rows: list[Row] = connection.execute(f"{_READ} ORDER BY key").fetchall()
    intact = [row for row in rows if _is_intact(row)]
    if len(intact) < len(rows):
        for damaged in set(rows).difference(intact):
            _drop(connection, damaged[0])
    return intact


def _drop(connection: sqlite3.Connection, key: bytes) -> None:
    logger.warning("a damaged measurement was dropped and will be taken again: %r", key)
    if connection.execute(_DROP, [key]).rowcount != 1:
        raise _DamagedError("a damaged row cannot be found by its key")


def _write(connection: sqlite3.Connection, rows: Iterable[Row]) -> None:
    with _transaction(connection):
        connection.executemany(_WRITE, rows)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Everything or, if something fails, nothing; other writers wait."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Fails at once, whatever the timeout, while another process does the same."""
    stop = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > stop:
                raise
            time.sleep(0.01)
