"""Batch norm's running statistics, taken anew from data: the cheapest recovery after slimming.

Removing channels moves the mean and variance of every later layer, but the stored statistics are
still the dense network's, so a slim network in eval mode normalises wrongly until they are taken
again.  A few forward passes do that; no weight changes (Li et al. 2020, "EagleEye", section 3.3;
Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxprune import batches
from fxprune.batches import DATA_FIX, Data
from fxprune.errors import InputError

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def recalibrate(slim: M, data: Data, *, limit: int = 32, seed: int = 0) -> M:
    """Replace the running statistics by their average over batches of data, in place.

    Args:
        slim: any module; only the running mean and variance of its batch norms change.
        data: (inputs, targets) batches, as in training; targets are not looked at.
        limit: how many batches to use at most.
        seed: of PyTorch's generators during the call; they are as before afterwards.

    Raises:
        InputError: the data does not go through the module; its statistics are as before then.
    """
    if limit < 1:
        raise InputError(f"limit should be at least 1, not {limit}")
    norms = [m for m in slim.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return slim
    device = batches.device_of(slim)
    with torch.random.fork_rng(batches.cuda_devices(slim)), batches.modes_restored(slim):
        torch.manual_seed(seed)
        stream = itertools.islice(batches.first_of(data)[1], limit)
        slim.eval()  # dropout and the like stay as in deployment
        with _averaging(norms):
            for inputs, _ in stream:
                try:
                    slim(*batches.arguments(batches.on_device(inputs, device)))
                except Exception as error:
                    raise InputError(
                        f"A batch does not go through the module: {error}",
                        f"Inputs {batches.describe(inputs)}",
                        DATA_FIX,
                    ) from error
    return slim


@contextmanager
def _averaging(norms: list[_BatchNorm]) -> Iterator[None]:
    """Batch norms that average all batches equally, from nothing; undone if the block fails."""
    before = [({k: b.clone() for k, b in norm.named_buffers()}, norm.momentum) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's way to ask for a plain average
        norm.train()
    try:
        yield
    except BaseException:
        for norm, (buffers, _) in zip(norms, before, strict=True):
            norm.load_state_dict(buffers, strict=False)
        raise
    finally:
        for norm, (_, momentum) in zip(norms, before, strict=True):
            norm.momentum = momentum
