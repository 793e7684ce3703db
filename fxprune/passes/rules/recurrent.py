"""Recurrent kernels: PyTorch takes them apart before a rule sees them, but they ask for more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fxprune.axes import Axis
from fxprune.passes.rules.base import Op, Outputs, rule, tensors

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


@contextmanager
def unfused_recurrence() -> Iterator[None]:
    """Keep recurrent layers off the kernels of oneDNN and cuDNN, which hide what is inside."""
    switches: tuple[Any, ...] = (torch.backends.mkldnn.set_flags, torch.backends.cudnn.set_flags)
    before = [switch(False, _fp32_precision=None)[0] for switch in switches]
    try:
        yield
    finally:
        for switch, enabled in zip(switches, before, strict=True):
            switch(enabled, _fp32_precision=None)


@rule("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell")
def fused_cell(op: Op) -> Outputs:
    """The gates of one step, as CUDA computes them: each is as wide as the state."""
    first, second, state = op.args[:3]
    width = op.axes(state)[-1]
    count = op.axes(first)[-1].size // width.size
    for gates in (first, second, *tensors([op.args[3:], op.kwargs])):
        lead, *others = reversed(op.axes(gates))
        for piece in op.pieces(lead, (width.size,) * count):
            op.unify(piece, width)
        if others:
            op.unify(others[0], op.axes(state)[0])
    axes: tuple[Axis, ...] = tuple(map(op.unifier.resolve, op.axes(state)))
    return [
        axes
        if tuple(result.shape) == tuple(state.shape)
        else (axes[0], op.frozen(result.shape[-1], "state kept for the backward pass"))
        for result in tensors(op.out)
    ]
