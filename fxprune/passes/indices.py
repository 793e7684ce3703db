"""Index tensors whose numbers are known: constants of the graph that nothing writes to.

A buffer of integers, or a list in the code, says which positions a look-up reads. Whoever relies on
that has to know of it when the tensor is written to after all: then nothing may rely on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._ops import OpOverload

from fxprune.axes import Axis
from fxprune.passes.fakes import storage_of

Numbers = NDArray[np.int64]

# Longer tensors are look-up tables for places, which no group of channels goes by.
MOST = 1 << 14

KEEPING = frozenset({"lift_fresh", "lift_fresh_copy", "clone", "detach", "alias", "_to_copy"})
RESHAPING = frozenset({"view", "_unsafe_view", "unsqueeze", "squeeze"})


def numbers_in(tensor: Tensor) -> Numbers | None:
    """The numbers in a real `tensor`, if it may be an index."""
    plain = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    if not plain or tensor.is_quantized or tensor.is_meta or tensor.layout != torch.strided:
        return None
    if not tensor.dim() or not 0 < tensor.numel() <= MOST:
        return None
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.int64)


def line(numbers: Numbers | None, dim: int) -> Numbers | None:
    """The numbers along `dim`, if they are the same at every place of the other dimensions."""
    if numbers is None:
        return None
    lines = np.moveaxis(numbers, dim, 0).reshape(numbers.shape[dim], -1)
    return lines[:, 0] if bool((lines == lines[:, :1]).all()) else None


def digest(numbers: Numbers) -> str:
    """A short text that is another one for other numbers."""
    return hashlib.sha256(numbers.tobytes()).hexdigest()[:16]


class Indices:
    """The numbers in tensors of the graph, as far as they are constants, and who relies on them."""

    def __init__(self) -> None:
        self._numbers: dict[int, tuple[int, Numbers]] = {}
        """By tensor: the memory that it looks at, and what is in it."""
        self._relying: dict[int, list[Axis]] = {}

    def know(self, tensor: Tensor, numbers: Numbers) -> None:
        """`tensor` holds `numbers`."""
        self._numbers[id(tensor)] = storage_of(tensor), numbers

    def of(self, tensor: Tensor) -> Numbers | None:
        """What `tensor` holds, if that is known."""
        known = self._numbers.get(id(tensor))
        return None if known is None else known[1]

    def rely(self, tensor: Tensor, *axes: Axis) -> None:
        """Positions of `axes` correspond as long as nothing is written to `tensor`."""
        self._relying.setdefault(storage_of(tensor), []).extend(axes)

    def relied_on(self, tensor: Tensor) -> bool:
        """Whether any positions correspond because of what `tensor` holds."""
        return storage_of(tensor) in self._relying

    def follow(self, func: OpOverload, given: Sequence[Tensor], results: Sequence[Tensor]) -> None:
        """Note what `func` makes of constants that it only passes on, in another shape perhaps."""
        name = func.overloadpacket.__name__
        if len(given) != 1 or len(results) != 1 or name not in KEEPING | RESHAPING | {"expand"}:
            return
        (source,), (result,) = given, results
        numbers = self.of(source)
        if numbers is None and type(source) is Tensor:
            with torch._C._DisableTorchDispatch():
                numbers = numbers_in(source)
        if numbers is None or result.is_floating_point() or result.numel() > MOST:
            return
        shape = tuple(result.shape)
        spread = np.broadcast_to(numbers, shape) if name == "expand" else numbers.reshape(shape)
        self.know(result, spread)

    def written(self, tensors: Iterable[Tensor]) -> list[Axis]:
        """`tensors` are written to: what they hold is forgotten. The axes that relied on it."""
        relying: list[Axis] = []
        for storage in set(map(storage_of, tensors)):
            relying.extend(self._relying.pop(storage, ()))
            self._numbers = {i: known for i, known in self._numbers.items() if known[0] != storage}
        return relying


def written_by(func: OpOverload, args: Sequence[object], kwargs: dict[str, object]) -> list[Tensor]:
    """The tensors that a call of `func` writes to; `detach_` and the like only say that they do."""
    if func.overloadpacket.__name__ in ("detach_", "lift_fresh"):
        return []
    found: list[Tensor] = []
    for place, declared in enumerate(func._schema.arguments):
        if declared.alias_info is None or not declared.alias_info.is_write:
            continue
        value = args[place] if place < len(args) else kwargs.get(declared.name)
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, Tensor):
                found.append(item)
    return found
