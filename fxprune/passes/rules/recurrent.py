"""Recurrent kernels: PyTorch takes them apart before a rule sees them, but they ask for more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

TELLING_BY_WIDTH = frozenset({"lstm"})


def told_by_width(name: str, args: Sequence[Any]) -> Iterator[tuple[Tensor, int]]:
    """Dimensions by which the kernel `name` tells what it has to do, so that they must stay.

    An LSTM projects its output (Sak et al. 2014) where output and cell differ in width. With the
    cell as it is, they do so at every width of the output.
    """
    if name in TELLING_BY_WIDTH and len(args) > 1 and isinstance(args[1], (list, tuple)):
        output, cell = args[1]
        if output.shape[-1] != cell.shape[-1]:
            yield cell, -1
            if output.shape[-1] > cell.shape[-1]:
                yield output, -1
