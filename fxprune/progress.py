"""Progress of long steps, shown in the terminal with rich."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed

Tell = Callable[[str, int, int], None]
"""What is being done, how many steps of it are done, and how many there are (0: not known)."""


@contextmanager
def shown(visible: bool) -> Iterator[Tell]:
    """Show one line that says what is going on, as long as the block runs."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24))
    with Progress(
        *columns, MofNCompleteColumn(), Elapsed(), transient=True, disable=not visible
    ) as bar:
        task = bar.add_task("fxprune", total=None)

        def tell(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total or None)

        yield tell
