"""Batches of (inputs, targets), as every data loader gives them: taken apart, checked, moved."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.errors import InputError

Batch: TypeAlias = tuple[Any, Any]
Data: TypeAlias = Iterable[Batch]

DATA_FIX = "Give an iterable of (inputs, targets) batches, such as a list or a DataLoader."


def pair(batch: Any) -> Batch:
    """One batch as (inputs, targets).

    Raises:
        InputError: it is not two things.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        shown = f"{len(batch)} parts" if isinstance(batch, tuple | list) else type(batch).__name__
        raise InputError(f"A batch should be (inputs, targets), not {shown}", fix=DATA_FIX)
    return batch[0], batch[1]


def arguments(inputs: Any) -> tuple[Any, ...]:
    """The positional arguments of the module: inputs are one tensor or a tuple of arguments."""
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)


def on_device(value: Any, device: torch.device) -> Any:
    """`value`, any nesting of containers, with its tensors on `device`."""
    return pytree.tree_map_only(Tensor, lambda t: t.to(device, non_blocking=True), value)


def device_of(module: nn.Module) -> torch.device:
    """Where the module's first parameter or buffer lies; the CPU when it has none."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return next((t.device for t in tensors), torch.device("cpu"))


def cuda_devices(module: nn.Module) -> list[int]:
    """The CUDA devices that the module's parameters lie on, as `torch.random.fork_rng` asks."""
    return sorted({p.device.index for p in module.parameters() if p.device.type == "cuda"})


def length(data: Data) -> int | None:
    """How many batches there are, if the data knows: a loader over a stream does not."""
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError:
        return None


def first_of(data: Data) -> tuple[Batch, Iterator[Batch]]:
    """The first batch, for a check before anything is done, and all batches including it.

    Raises:
        InputError: the data is not iterable, is empty, or its batches are not pairs.
    """
    if not isinstance(data, Iterable):
        raise InputError(f"The data is a {type(data).__name__}, not an iterable", fix=DATA_FIX)
    rest = iter(data)
    try:
        first = pair(next(rest))
    except StopIteration:
        raise InputError("The data holds no batches", fix=DATA_FIX) from None
    return first, itertools.chain([first], map(pair, rest))


def describe(value: Any) -> str:
    """Dtypes and shapes in place of tensors, such as `float32[8, 3, 224, 224]`."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(describe, value))})"
    return type(value).__name__


@contextmanager
def modes_restored(module: nn.Module) -> Iterator[None]:
    """Put every submodule back, at the end, in the train/eval mode that it has now."""
    modes = [(m, m.training) for m in module.modules()]
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training
