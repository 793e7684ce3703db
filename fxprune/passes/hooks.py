"""Whether the forward hooks of a module change what goes through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.utils.hooks import RemovableHandle

from fxprune.passes.rules import tensors


class HookWatch:
    """Watches one call of a module, to see whether its forward hooks change what goes through."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.seen: Any = None
        self.made: Any = None

    def __enter__(self) -> HookWatch:
        # Without a hook there is nothing to watch, and PyTorch calls the module a shorter way.
        self._handles: tuple[RemovableHandle, ...] = ()
        if not has_hooks(self.module):
            return self
        before = self.module.register_forward_pre_hook(self._before)
        after = self.module.register_forward_hook(self._after, prepend=True)
        self._handles = (before, after)
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, args: Any) -> None:
        self.seen = args

    def _after(self, module: nn.Module, args: Any, result: Any) -> None:
        self.made = result

    def changed(self, args: Any, result: Any) -> bool:
        """Whether the module itself read or yielded anything else than the graph passes on."""
        if not self._handles:
            return False
        return _differ(args, self.seen) or _differ(self.made, result)


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of `module` runs forward hooks, its own or those of all modules."""
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module_hooks._global_forward_pre_hooks
        or module_hooks._global_forward_hooks
    )


@contextmanager
def attributes_restored(module: nn.Module) -> Iterator[None]:
    """Undo what hooks leave behind on `module` and its parts, such as a weight for the next call.

    It would be in the way of copies: it is fake after inference, and has a graph after training.
    """
    before = [
        (part, {name: value for name, value in vars(part).items() if isinstance(value, Tensor)})
        for part in module.modules()
    ]
    try:
        yield
    finally:
        for part, held in before:
            vars(part).update(held)


def _differ(mine: Any, theirs: Any) -> bool:
    left, right = tensors(mine), tensors(theirs)
    return len(left) != len(right) or any(a is not b for a, b in zip(left, right, strict=True))
