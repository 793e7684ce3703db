"""Watching Python glue: which tensors it reads, and where in the user's code.

Two modes see it all. The function mode sees what is asked of a tensor in Python, its shape
included; the dispatch mode sees every operator that runs, wherever it was called from. Both look
away while a captured child runs.

A shape is handed out as a `WatchedShape`, so that reading height and width does not count as
reading the channels. Where glue does not take it (it is no `torch.Size`), the run fails and is
repeated with plain shapes, and then asking for a shape reads all of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.passes.rules import tensors

Dims = tuple[int, ...] | None
Seen = Callable[[Tensor, Dims, str], None]

# What can be asked of a tensor without learning any width.
HARMLESS = frozenset(
    {
        "dtype", "device", "ndim", "requires_grad", "grad_fn", "is_leaf", "layout", "is_cuda",
        "is_cpu", "is_mps", "is_meta", "is_sparse", "is_quantized", "names", "itemsize",
        "dim", "ndimension", "is_floating_point", "is_complex", "is_signed", "is_contiguous",
        "element_size", "get_device", "is_nested", "__hash__", "is_tensor",
    }
)  # fmt: skip


class WatchedShape(Sequence[int]):
    """The shape of a tensor; tells which of its entries are read."""

    def __init__(self, sizes: torch.Size, read: Callable[[Dims], None]) -> None:
        self._sizes = sizes
        self._read = read

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: Any) -> Any:
        dims = range(len(self._sizes))[index]
        self._read((dims,) if isinstance(dims, int) else tuple(dims))
        return self._sizes[index]

    def __iter__(self) -> Iterator[int]:
        self._read(None)
        return iter(self._sizes)

    def __eq__(self, other: object) -> bool:
        self._read(None)
        return self._sizes == (other._sizes if isinstance(other, WatchedShape) else other)

    def __hash__(self) -> int:
        self._read(None)
        return hash(self._sizes)

    def numel(self) -> int:
        """As of `torch.Size`."""
        self._read(None)
        return self._sizes.numel()


class GlueWatch:
    """Calls `seen(tensor, dims, site)` whenever glue reads a tensor; `site` is for people.

    `plain_shape(tensor)` tells whether to hand out its shape as it is.
    """

    def __init__(self, seen: Seen, plain_shape: Callable[[Tensor], bool]) -> None:
        self.seen = seen
        self.plain_shape = plain_shape
        self._inside = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what runs in this context."""
        with ExitStack() as stack:
            stack.enter_context(_Functions(self))
            stack.enter_context(_Operators(self))
            yield

    @contextmanager
    def looking_away(self) -> Iterator[None]:
        """Do not watch what runs in this context."""
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    @property
    def active(self) -> bool:
        """Whether what runs now is glue."""
        return not self._inside

    def report(self, values: Any, dims: Dims, name: str) -> None:
        """Glue calls `name` on the tensors in `values`."""
        found = tensors(values)
        if found:
            site = f"{name} {_place()}"
            with self.looking_away():
                for tensor in found:
                    self.seen(tensor, dims, site)


class _Functions(TorchFunctionMode):
    def __init__(self, watch: GlueWatch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        watch = self._watch
        result = func(*args, **kwargs)
        if not watch.active:
            return result
        getter = getattr(func, "__name__", "") == "__get__"
        name = getattr(func.__self__ if getter else func, "__name__", str(func))
        if name in HARMLESS:
            return result
        if name == "shape" or name == "size":
            return self._shape(args, kwargs, result)
        if name == "__len__":
            watch.report(args, (0,), name)
        else:
            watch.report((args, kwargs), None, name)
        return result

    def _shape(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Any:
        tensor, watch = args[0], self._watch
        if isinstance(result, int):
            dim = args[1] if len(args) > 1 else kwargs["dim"]
            watch.report(tensor, (dim,), "size")
            return result
        if watch.plain_shape(tensor):
            watch.report(tensor, None, "shape")
            return result
        return WatchedShape(result, lambda dims: watch.report(tensor, dims, "shape"))


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, watch: GlueWatch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watch = watch

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._watch.active:
            self._watch.report((args, kwargs), None, str(func))
        return func(*args, **kwargs)


def _place() -> str:
    """Where the user's code is now: the innermost frame that is neither PyTorch's nor ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_globals.get("__name__", "").split(".")[0]
        if owner not in ("torch", "fxprune", "contextlib"):
            return f"at {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
