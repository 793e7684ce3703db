"""Whether a computation makes shapes or Python numbers out of the values of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.passes.rules import tensors

TAGS = frozenset({torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output})
# Indexing has the tag, but only masks give it a shape that depends on values.
INDEXING = frozenset({torch.ops.aten.index, torch.ops.aten._unsafe_index})
MASKS = (torch.bool, torch.uint8)


class ValueWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the first operator whose result has a size, or is a number, that depends on values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: str | None = None

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if self.found is None and not TAGS.isdisjoint(func.tags):
            indices = tensors(args[1:]) if func.overloadpacket in INDEXING else None
            if indices is None or any(index.dtype in MASKS for index in indices):
                self.found = str(func)
        return func(*args, **(kwargs or {}))
