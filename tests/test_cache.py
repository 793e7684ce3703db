"""The cache on disk: it remembers, it is shared, and it never tells a wrong value."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import random
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fxprune import store
from fxprune.backends.settings import Settings
from fxprune.cache import Cache, Key, default_path
from fxprune.errors import CacheError
from fxprune.file_lock import FileLock
from tests.durability import killed_writers

KEY = Key(
    device="some CPU",
    backend="onnxruntime",
    version="1.2.3",
    settings=Settings(threads=2),
    subject="conv2d in64 out64",
    protocol="p10/1",
)


def keys(count: int) -> list[Key]:
    return [dataclasses.replace(KEY, subject=f"region {index}") for index in range(count)]


def value(index: int) -> dict[str, Any]:
    return {"seconds": index * 1e-6, "samples": [index * 1e-6] * (index % 7)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "cache.sqlite"


def filled(path: Path, count: int) -> list[Key]:
    with Cache(path) as cache:
        cache.put_many((key, value(index)) for index, key in enumerate(keys(count)))
    return keys(count)


def test_what_was_put_is_got_after_opening_again(path: Path) -> None:
    with Cache(path) as cache:
        cache.put(KEY, {"seconds": 0.1 + 0.2})
    with Cache(path) as cache:
        assert cache.get(KEY) == {"seconds": 0.1 + 0.2}


def test_an_unknown_key_gives_none(path: Path) -> None:
    with Cache(path) as cache:
        assert cache.get(KEY) is None


def test_every_field_of_the_key_and_of_the_settings_matters(path: Path) -> None:
    others: dict[str, Any] = {
        "threads": 1,
        "precision": "bf16",
        "channels_last": True,
        "cuda_graphs": True,
        "batch_range": (1, 4),
    }
    assert set(others) == {field.name for field in dataclasses.fields(Settings)}
    changed = [
        dataclasses.replace(KEY, settings=dataclasses.replace(KEY.settings, **{name: other}))
        for name, other in others.items()
    ]
    texts: list[dict[str, Any]] = [
        {name: "other"} for name in ("device", "backend", "version", "subject", "protocol")
    ]
    changed += [dataclasses.replace(KEY, **text) for text in texts]
    with Cache(path) as cache:
        cache.put(KEY, {"seconds": 1.0})
        assert cache.get_many(changed) == [None] * 10


def test_putting_again_replaces(path: Path) -> None:
    with Cache(path) as cache:
        cache.put(KEY, {"seconds": 1.0})
        cache.put(KEY, {"seconds": 2.0})
        assert cache.get(KEY) == {"seconds": 2.0}
        assert len(cache) == 1


def test_many_are_got_in_the_order_asked_for(path: Path) -> None:
    known = filled(path, 20)
    with Cache(path) as cache:
        assert cache.get_many([known[7], KEY, known[3]]) == [value(7), None, value(3)]


def test_a_value_that_is_not_finite_is_refused_and_nothing_of_its_batch_is_kept(path: Path) -> None:
    first, second = keys(2)
    with Cache(path) as cache:
        with pytest.raises(CacheError, match="JSON"):
            cache.put_many([(first, {"seconds": 1.0}), (second, {"seconds": float("nan")})])
        assert len(cache) == 0


def test_export_and_import_carry_all_measurements_to_another_file(path: Path) -> None:
    known = filled(path, 50)
    table = path.with_name("table.json")
    with Cache(path) as cache:
        assert cache.export(table) == 50
    with Cache(path.with_name("other.sqlite")) as other:
        assert other.import_(table) == 50
        assert other.get_many(known) == [value(index) for index in range(50)]


def test_import_leaves_out_an_entry_that_was_changed(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = filled(path, 3)
    table = path.with_name("table.json")
    with Cache(path) as cache:
        cache.export(table)
    document = json.loads(table.read_text())
    document["entries"][1]["value"]["seconds"] = 0.5
    table.write_text(json.dumps(document))
    with Cache(path.with_name("other.sqlite")) as other, caplog.at_level(logging.WARNING):
        assert other.import_(table) == 2
        assert other.get(known[1]) is None
    assert "region 1" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "x", "schema": "1"}', "\x00"])
def test_import_refuses_what_was_not_exported(path: Path, text: str) -> None:
    table = path.parent.parent / "table.json"
    table.write_text(text)
    with Cache(path) as cache, pytest.raises(CacheError, match=r"table\.json"):
        cache.import_(table)


def test_the_environment_says_where_the_file_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("FXPRUNE_CACHE", raising=False)
    assert default_path() == tmp_path / "xdg" / "fxprune" / "measurements-1.sqlite"
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path / "own"))
    assert default_path() == tmp_path / "own" / "measurements-1.sqlite"
    with Cache() as cache:
        assert cache.path == default_path()


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="FXPRUNE_CACHE"):
        Cache(tmp_path / "file" / "cache.sqlite")


def test_a_damaged_row_is_named_dropped_and_can_be_put_again(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = filled(path, 5)
    with sqlite3.connect(path) as connection:
        connection.execute(
            "UPDATE measurements SET value = '{\"seconds\":9.0}' WHERE key LIKE '%region 2%'"
        )
    connection.close()
    with caplog.at_level(logging.WARNING), Cache(path) as cache:
        assert cache.get_many(known) == [value(0), value(1), None, value(3), value(4)]
        cache.put(known[2], value(2))
        assert cache.get(known[2]) == value(2)
    assert "region 2" in caplog.text


def test_a_row_damaged_while_the_file_is_open_is_not_returned(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = filled(path, 3)
    with Cache(path) as cache:
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE measurements SET value = '{}' WHERE key LIKE '%region 1%'")
        connection.close()
        assert cache.get_many(known) == [value(0), None, value(2)]
    assert "region 1" in caplog.text


def test_a_file_that_is_no_database_is_moved_aside_and_replaced(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database at all" * 300)
    with caplog.at_level(logging.WARNING), Cache(path) as cache:
        cache.put(KEY, {"seconds": 1.0})
    (aside,) = path.parent.glob("*.damaged-*")
    assert aside.read_bytes().startswith(b"not a database")
    assert aside.name in caplog.text
    with Cache(path) as cache:
        assert cache.get(KEY) == {"seconds": 1.0}


def test_a_truncated_file_gives_no_wrong_value_and_can_be_used_again(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = filled(path, 100)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with caplog.at_level(logging.WARNING), Cache(path) as cache:
        found = cache.get_many(known)
        assert [index for index, got in enumerate(found) if got not in (value(index), None)] == []
        cache.put(known[0], value(0))
        assert cache.get(known[0]) == value(0)
    assert "damaged" in caplog.text


class Killed(BaseException):
    """Stands in for a signal."""


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_being_killed_while_a_damaged_file_is_mended_loses_no_more(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    known = filled(path, 200)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    data = bytearray(path.read_bytes())
    data[8 * 4096 : 9 * 4096] = bytes(4096)
    path.write_bytes(data)
    Path(f"{path}-wal").write_bytes(b"")
    unharmed = path.with_name("unharmed.sqlite")
    unharmed.write_bytes(data)
    with caplog.at_level(logging.WARNING), Cache(unharmed) as cache:
        salvaged = cache.get_many(known)
    assert None in salvaged
    assert value(3) in salvaged

    replace, moves = os.replace, 0

    def killed(source: str, target: str) -> None:
        nonlocal moves
        if moves == moved:
            raise Killed
        moves += 1
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            Cache(path)
    with Cache(path) as cache:
        assert cache.get_many(known) == salvaged
        cache.put(known[0], value(0))
    assert not list(path.parent.glob("*.mended"))
    with Cache(path) as cache:
        assert cache.get(known[0]) == value(0)


def test_a_repair_goes_on_where_another_one_was_killed(path: Path) -> None:
    """Both found the damage; the other one had moved the file away, and not put its own there."""
    known = filled(path, 10)
    with Cache(path) as cache:
        cache.close()
        os.replace(path, path.with_name(f"{path.name}.mended"))
        cache._store._lock = FileLock(path.with_name(f"{path.name}.lock"))
        cache._store._connection = cache._store._rebuild(ValueError("a flipped byte"))
        assert cache.get_many(known) == [value(index) for index in range(10)]
    with Cache(path) as cache:
        assert cache.get_many(known) == [value(index) for index in range(10)]


def test_who_waits_for_a_repair_uses_the_file_while_the_other_one_still_does(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = filled(path, 10)
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.05)
    with Cache(path) as faster, Cache(path) as slower:
        slower._store._connection.close()
        slower._store._connection = slower._store._rebuild(ValueError("a flipped byte"))
        assert slower.get_many(known) == faster.get_many(known)


def test_what_several_change_at_once_has_all_changes(path: Path) -> None:
    def count() -> None:
        with Cache(path) as cache:
            for _ in range(25):
                cache.change(KEY, lambda old: {"count": (old or {"count": 0})["count"] + 1})

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(count) for _ in range(4)]:
            done.result()
    with Cache(path) as cache:
        assert cache.get(KEY) == {"count": 100}


def test_no_flipped_byte_leads_to_a_wrong_value_or_goes_unnoticed(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = filled(path, 60)
    data = path.read_bytes()
    rng = random.Random(0)
    noticed = 0
    for attempt in range(300):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        copy = path.with_name(f"{attempt}.sqlite")
        copy.write_bytes(flipped)
        caplog.clear()
        with caplog.at_level(logging.WARNING), Cache(copy) as cache:
            found = cache.get_many(known)
        wrong = [index for index, got in enumerate(found) if got not in (value(index), None)]
        assert wrong == []
        assert None not in found or caplog.records
        noticed += bool(caplog.records)
    # The others hit unused space in a page, and left every value right.
    assert noticed > 150


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither fork nor SIGKILL")
def test_killing_the_writer_forty_times_loses_nothing_it_was_told_is_written(path: Path) -> None:
    written, wrong = killed_writers(path, rounds=40, writers=1, lifetime_ms=30)
    assert written > 20
    assert wrong == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither fork nor SIGKILL")
def test_eight_writers_at_once_lose_nothing(path: Path) -> None:
    written, wrong = killed_writers(path, rounds=2, writers=8, lifetime_ms=400)
    assert written > 50
    assert wrong == 0


def test_a_folder_in_place_of_the_file_is_refused_and_nothing_is_left(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    with pytest.raises(CacheError, match="is one file, and this is a folder"):
        Cache(folder)
    assert list(tmp_path.rglob("*")) == [folder]
