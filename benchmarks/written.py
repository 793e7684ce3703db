"""Tables in Markdown that a benchmark writes row by row, so that it can be taken up again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fxprune.backends import available, get_backend
from fxprune.files import write_text


def machine(device_type: str = "cpu") -> str:
    """What runs networks: the processor, and the version of every compiler that is there."""
    versions = dict.fromkeys(row.version for row in available() if row.version)
    return f"{get_backend('eager').device(device_type)}; {', '.join(versions)}"


def arguments_for(document: str, networks: Sequence[str]) -> argparse.Namespace:
    """Networks, backends and a file to write to, as given on the command line; for one thread.

    Args:
        document: of the program; its first line tells what it is for.
        networks: those that are run where none is named.
    """
    parser = argparse.ArgumentParser(description=document.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=networks)
    parser.add_argument("--backends", nargs="+", default=("onnxruntime", "openvino"))
    parser.add_argument("--out", type=Path, help="Markdown file to write to, row by row")
    torch.set_num_threads(1)
    return parser.parse_args()


@dataclass
class WrittenTable:
    """A table in a file, or only on the screen if `path` is None.

    Attributes:
        heading: text above the table: what was run and, in its last paragraph, on what.
        columns: names of the columns.
        keys: how many columns, from the left, tell one row from another.
    """

    path: Path | None
    heading: str
    columns: Sequence[str]
    keys: int

    def __post_init__(self) -> None:
        self.rows: list[list[str]] = []
        if self.path is not None and self.path.exists():
            text = self.path.read_text(encoding="utf-8")
            self.rows = list(rows_of(text, len(self.columns)))
            if line_of(self.columns) not in text.splitlines():
                raise SystemExit(f"{self.path} has other columns. Give another file, or delete it.")
            before, now = conditions_of(text), conditions_of(self.heading)
            if self.rows and before != now:
                raise SystemExit(
                    f"{self.path} has rows of another run:\n  {before}\nnot of\n  {now}\n"
                    "Give another file, or run what it was written by."
                )

    def has(self, *key: str) -> bool:
        """Whether there is a row with this key already."""
        return list(key) in [row[: self.keys] for row in self.rows]

    def add(self, *cells: str) -> None:
        """Print a row, and write the table with it."""
        self.rows.append(list(cells))
        print(" | ".join(cells), flush=True)
        self.write()

    def write(self, ending: str = "") -> None:
        """Write all rows, and `ending` under them."""
        if self.path is None:
            return
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        table = "\n".join(map(line_of, lines))
        write_text(self.path, f"{self.heading.strip()}\n\n{table}\n\n{ending}".rstrip() + "\n")

    def column(self, name: str) -> list[str]:
        """The cells under one heading."""
        return [row[self.columns.index(name)] for row in self.rows]


def line_of(cells: Sequence[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def conditions_of(text: str) -> str:
    """The last paragraph above the table of a text."""
    above = text.split("\n|")[0].strip()
    return " ".join(above.split("\n\n")[-1].split())


def rows_of(text: str, width: int) -> list[list[str]]:
    """The rows of the first table in a text, without its head."""
    lines = [line.strip() for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return [row for row in rows if len(row) == width]
