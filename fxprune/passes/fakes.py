"""Fake tensors, and calls on them that are worked out once.

A network repeats itself: most of its calls have arguments of sizes that an earlier call had too.
What a fake tensor mode needs a tenth of a millisecond for is looked up here in a hundredth.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

DEVICE = torch.ops.prim.device.default


@dataclass(frozen=True)
class Given:
    """A result that is one of the arguments itself, as in-place calls return it."""

    argument: int


@dataclass(frozen=True)
class Made:
    """A result of its own; a view lies in the memory of the argument number `view_of`."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device
    view_of: int | None


Recipe = tuple[Given | Made, ...]


class Fakes:
    """Makes fake tensors and runs calls on them, inside one fake tensor mode."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self._recipes: dict[Any, tuple[type, Recipe]] = {}
        self._states: dict[torch.device, dict[str, Any]] = {}
        """By device: what a fake tensor holds besides its sizes."""

    def of_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A fake for each tensor; those that share memory still do."""
        shared = Counter(map(storage_of, state.values()))
        return {
            name: self._twin(tensor)
            if _is_plain(tensor) and shared[storage_of(tensor)] == 1
            else self.mode.from_tensor(tensor)
            for name, tensor in state.items()
        }

    def run(
        self, func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, list[Tensor]]:
        """What `func` returns for these arguments, and the tensors among them."""
        given: list[Tensor] = []
        # Calls without tensors make some of the type that is the default.
        key = (func, torch.get_default_dtype(), _described(args, given), _described(kwargs, given))
        if not all(map(_is_ordinary, given)):
            return func(*args, **kwargs), given
        if func is DEVICE:
            return given[0].device, given
        if _is_written_over(func):
            return given[0], given
        try:
            known = self._recipes.get(key)
        except TypeError:  # an argument without a hash
            return func(*args, **kwargs), given
        if known is not None:
            return self._follow(*known, given), given
        before = [_description(tensor) for tensor in given]
        out = func(*args, **kwargs)
        recipe = _recipe(out, given)
        # A call that changes the dimensions of an argument is not repeated by making its result.
        if recipe is not None and before == [_description(tensor) for tensor in given]:
            self._recipes[key] = (type(out), recipe)
        return out, given

    def _follow(self, kind: type, recipe: Recipe, given: Sequence[Tensor]) -> Any:
        found = [
            given[step.argument] if isinstance(step, Given) else self._make(step, given)
            for step in recipe
        ]
        return kind(found) if issubclass(kind, (tuple, list)) else found[0]

    def _make(self, made: Made, given: Sequence[Tensor]) -> Tensor:
        with torch._C._DisableTorchDispatch():
            if made.view_of is None:
                meta = torch.empty_strided(made.shape, made.stride, dtype=made.dtype, device="meta")
            else:
                meta = torch.empty(0, dtype=made.dtype, device="meta")
                storage = given[made.view_of].untyped_storage()
                meta.set_(storage, made.offset, made.shape, made.stride)
            return self._fake(meta, made.device)

    def _fake(self, meta: Tensor, device: torch.device) -> Tensor:
        """A fake tensor of `device` with the sizes and the memory of `meta`.

        Its constructor looks at each argument anew, which takes four times as long as this copy.
        """
        state = self._states.get(device)
        if state is None:
            fake = FakeTensor(self.mode, meta, device)
            self._states[device] = dict(vars(fake))
            return fake
        fake = Tensor._make_subclass(
            FakeTensor, meta, dispatch_device=True, device_for_backend_keys=device
        )
        torch._C._set_warn_deprecated_on_mutable_data_ptr(fake)
        vars(fake).update(state)
        return fake

    def _twin(self, tensor: Tensor) -> Tensor:
        shape, stride = tuple(tensor.shape), tensor.stride()
        return self._make(Made(shape, stride, 0, tensor.dtype, tensor.device, None), ())


def storage_of(tensor: Tensor) -> int:
    """What tells the memory of `tensor` apart; views have that of what they look at."""
    return int(tensor.untyped_storage()._cdata)


@functools.cache
def _is_written_over(func: OpOverload) -> bool:
    """Whether `func` computes place by place and writes into its first argument, as `relu_`."""
    name = func.overloadpacket.__name__
    return name.endswith("_") and torch.Tag.pointwise in func.tags


def _is_plain(tensor: Tensor) -> bool:
    """Whether sizes, strides, type and device are all there is to `tensor`."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and not (tensor.is_conj() or tensor.is_neg() or tensor.is_quantized)
    )


def _is_ordinary(tensor: Tensor) -> bool:
    """Whether calls on `tensor` depend on its sizes alone, and not on numbers that are known."""
    return type(tensor) is FakeTensor and tensor.constant is None and not tensor.is_conj()


def _described(value: Any, given: list[Tensor]) -> Any:
    """`value` with every tensor replaced by its description; the tensors go to `given`."""
    if isinstance(value, Tensor):
        given.append(value)
        return _description(value)
    if isinstance(value, (tuple, list)):
        return tuple([_described(item, given) for item in value])
    if isinstance(value, Mapping):
        return tuple([(name, _described(item, given)) for name, item in value.items()])
    return type(value), value


def _description(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, tensor.device


def _recipe(out: Any, given: Sequence[Tensor]) -> Recipe | None:
    """How to make `out` again, or None where that is not plain."""
    results = out if isinstance(out, (tuple, list)) else (out,)
    steps: list[Given | Made] = []
    for result in results:
        if not (isinstance(result, Tensor) and _is_ordinary(result)):
            return None
        same = [i for i, tensor in enumerate(given) if tensor is result]
        if same:
            steps.append(Given(same[0]))
            continue
        lenders = [i for i, t in enumerate(given) if storage_of(t) == storage_of(result)]
        if len(lenders) > 1:
            return None
        steps.append(
            Made(
                tuple(result.shape),
                result.stride(),
                int(result.storage_offset()),
                result.dtype,
                result.device,
                lenders[0] if lenders else None,
            )
        )
    return tuple(steps)
