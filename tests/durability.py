"""Writers of the cache that are killed, and files whose every byte is flipped.

    python -m tests.durability --kills 1000 --writers 2

The tests do a few dozen of each; this does as many as one likes, and tells what was lost.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import fxprune
from fxprune.backends.settings import Settings
from fxprune.cache import Cache, Key

WRITERS = """
import os, random, signal, sys, time, types
from pathlib import Path

# The store alone, without all of fxprune and torch: it starts a hundred times faster.
package = types.ModuleType("fxprune")
package.__path__ = [sys.argv[1]]
sys.modules["fxprune"] = package
from fxprune.store import Store

path, rounds, writers, lifetime = Path(sys.argv[2]), *map(int, sys.argv[3:])

def write(name, pipe):
    store, count = Store(path), 0
    while True:
        key = f"{name}.{count}"
        store.write({key: key * 20})
        os.write(pipe, f"{key}\\n".encode())
        count += 1

rng, written = random.Random(0), set()
for round in range(rounds):
    children = []
    for writer in range(writers):
        out, into = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                write(f"{round}.{writer}", into)
            finally:
                os._exit(1)
        os.close(into)
        children.append((child, out))
    time.sleep(rng.uniform(0, 2) * lifetime / 1000)
    for child, out in children:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, "a writer failed by itself"
        with os.fdopen(out) as lines:
            written.update(lines.read().split("\\n")[:-1])
store = Store(path)
found = dict(zip(sorted(written), store.read(sorted(written))))
print(len(written), sum(found[key] != key * 20 for key in written))
"""


def killed_writers(path: Path, rounds: int, writers: int, lifetime_ms: int) -> tuple[int, int]:
    """Numbers of acknowledged writes, and of those that were lost or are wrong."""
    folder = str(Path(fxprune.__file__).parent)
    numbers = map(str, (rounds, writers, lifetime_ms))
    command = [sys.executable, "-c", WRITERS, folder, str(path), *numbers]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "damaged" not in process.stderr
    written, wrong = process.stdout.split()
    return int(written), int(wrong)


def flipped_bytes(folder: Path, entries: int) -> tuple[int, int, int]:
    """Numbers of bytes in a file of so many entries, of wrong values, and of silent losses.

    Every byte is flipped in turn, and all entries are read. What comes back is right or missing;
    whenever something is missing, a warning must have said so.
    """
    key = Key("some CPU", "onnxruntime", "1", Settings(), "region", "p10/1")
    known = [dataclasses.replace(key, subject=f"region {index}") for index in range(entries)]
    path = folder / "whole.sqlite"
    with Cache(path) as cache:
        cache.put_many((key, {"seconds": 1e-6 * place}) for place, key in enumerate(known))
    data, told = path.read_bytes(), _Counter()
    wrong = silent = 0
    logging.getLogger("fxprune").addHandler(told)
    for position in range(len(data)):
        copy = folder / f"{position}.sqlite"
        copy.write_bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
        told.count = 0
        with Cache(copy) as cache:
            found = cache.get_many(known)
        right = [{"seconds": 1e-6 * place} for place in range(entries)]
        wrong += any(a not in (b, None) for a, b in zip(found, right, strict=True))
        silent += None in found and not told.count
        for left in folder.glob(f"{position}.sqlite*"):
            left.unlink()
    return len(data), wrong, silent


class _Counter(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


def main() -> None:
    """Kill and flip as often as asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--writers", type=int, default=2, help="at once")
    parser.add_argument("--entries", type=int, default=8, help="in the file that is damaged")
    arguments = parser.parse_args()
    logging.getLogger("fxprune").propagate = False
    with tempfile.TemporaryDirectory() as folder:
        rounds = -(-arguments.kills // arguments.writers)
        path = Path(folder, "killed.sqlite")
        written, lost = killed_writers(path, rounds, arguments.writers, 40)
        print(f"{rounds * arguments.writers} kills: {written} writes told, {lost} lost or wrong")
        count, wrong, silent = flipped_bytes(Path(folder), arguments.entries)
        print(f"{count} bytes flipped in turn: {wrong} wrong values, {silent} losses unsaid")
    sys.exit(bool(lost or wrong or silent))


if __name__ == "__main__":
    main()
