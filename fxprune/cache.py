"""Measurements kept on disk, so that nothing is measured twice on one machine.

A key holds everything that a measurement depends on; a value is a JSON object.  How the file
survives concurrent writers, kills and flipped bytes is told in `fxprune.store`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fxprune.backends.settings import Settings
from fxprune.errors import CacheError
from fxprune.files import write_text
from fxprune.store import SCHEMA, Store, checksum

logger = logging.getLogger(__name__)

FORMAT = "fxprune measurements"


@dataclass(frozen=True, slots=True)
class Key:
    """Everything that a measurement depends on.

    device, backend, version: as the backend names them.
    subject: what was measured, complete, such as `Region.signature()`.
    protocol: the way of measuring with its version, such as `measure.PROTOCOL`.
    """

    device: str
    backend: str
    version: str
    settings: Settings
    subject: str
    protocol: str

    def text(self) -> str:
        """Canonical JSON: equal exactly for equal keys."""
        return _canonical(asdict(self))


class Cache:
    """A dictionary on disk from `Key` to JSON objects, shared by all processes of a user.

    A context manager.  Open it anew in every process and thread.  All methods raise `CacheError`
    if the file cannot be used or a value is not plain, finite JSON.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        """Open the file, and create it if need be; it is `default_path()` unless given."""
        self._store = Store(Path(path) if path is not None else default_path())

    @property
    def path(self) -> Path:
        """The file."""
        return self._store.path

    def close(self) -> None:
        """Let the file go; the cache cannot be used any more."""
        self._store.close()

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __len__(self) -> int:
        """The number of measurements kept."""
        return len(self._store)

    def get(self, key: Key) -> dict[str, Any] | None:
        """The value kept under this key, or None."""
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[Key]) -> list[dict[str, Any] | None]:
        """The values kept under these keys, in their order, each None if there is none."""
        texts = self._store.read([key.text() for key in keys])
        return [None if text is None else json.loads(text) for text in texts]

    def machines(self) -> set[tuple[str, str, str]]:
        """(backend, device, version) of all measurements."""
        keys = map(json.loads, self._store.read_all())
        return {(key["backend"], key["device"], key["version"]) for key in keys}

    def put(self, key: Key, value: Mapping[str, Any]) -> None:
        """Keep a value; once this returns, killing the process cannot lose it."""
        self.put_many([(key, value)])

    def put_many(self, items: Iterable[tuple[Key, Mapping[str, Any]]]) -> None:
        """Keep all of these values or, if it fails, none."""
        self._store.write({key.text(): _canonical(value) for key, value in items})

    def change(self, key: Key, new: Callable[[dict[str, Any] | None], Mapping[str, Any]]) -> None:
        """Replace a value by what `new` makes of it, and nobody writes it between."""

        def text(old: str | None) -> str:
            return _canonical(new(None if old is None else json.loads(old)))

        self._store.change(key.text(), text)

    def export(self, path: str | Path) -> int:
        """Write all measurements to a JSON file for another machine; returns their number."""
        entries = [
            {"key": json.loads(key), "value": json.loads(value), "checksum": checksum(key, value)}
            for key, value in self._store.read_all().items()
        ]
        document = {"format": FORMAT, "schema": SCHEMA, "entries": entries}
        write_text(path, json.dumps(document, indent=1, allow_nan=False))
        return len(entries)

    def import_(self, path: str | Path) -> int:
        """Take in what `export` wrote, over what is there; returns the number of measurements.

        Entries whose checksum is wrong are reported and left out.
        """
        items = {}
        for entry in _entries(Path(path)):
            key, value = _canonical(entry["key"]), _canonical(entry["value"])
            if checksum(key, value) == entry["checksum"]:
                items[key] = value
            else:
                logger.warning("%s: a damaged measurement was left out: %s", path, key)
        self._store.write(items)
        return len(items)


def default_path() -> Path:
    """The file in `FXPRUNE_CACHE` if that is set, else in the user's cache folder."""
    return _folder() / f"measurements-{SCHEMA}.sqlite"


def _folder() -> Path:
    if chosen := os.environ.get("FXPRUNE_CACHE"):
        return Path(chosen)
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen, "fxprune")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "fxprune"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home()), "fxprune", "cache")
    return Path.home() / ".cache" / "fxprune"


def _canonical(value: object) -> str:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CacheError(
            f"this cannot be kept as JSON: {error}", fix="keep finite numbers, texts, lists, dicts"
        ) from error


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if (document["format"], document["schema"]) != (FORMAT, SCHEMA):
            raise ValueError(f"format {document['format']!r}, schema {document['schema']!r}")
        entries: list[dict[str, Any]] = document["entries"]
        if not all(entry.keys() >= {"key", "value", "checksum"} for entry in entries):
            raise ValueError("entries are incomplete")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(
            f"this is no table that fxprune exported: {error}", str(path), "export it again"
        ) from error
    return entries
