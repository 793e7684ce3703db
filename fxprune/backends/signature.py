"""What an engine takes and gives.

Compilers hand back flat lists of tensors and fail in their own words on inputs that do not fit.
The signature, taken from the module itself, restores the structure and checks inputs early.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.backends.region import Region
from fxprune.backends.settings import Settings
from fxprune.errors import InputError

Structure = None | int | tuple[str, ...]
"""Outputs of a module: one tensor (None), a tuple of so many, or a dict with these keys."""


@dataclass(frozen=True, slots=True)
class Signature:
    """Shapes and dtypes of the inputs, and the structure of the outputs.

    `batched[i]` says that the first dimension of input i is the batch and may vary within
    `batch_range`; all other dimensions are fixed.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    batched: tuple[bool, ...]
    batch_range: tuple[int, int] | None
    outputs: Structure

    @classmethod
    def of(cls, module: nn.Module, inputs: tuple[Tensor, ...], settings: Settings) -> Signature:
        """Observe one call; raises `InputError` if the module cannot take these inputs."""
        try:
            with torch.no_grad():
                result = module(*inputs)
        except Exception as error:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
            raise InputError(
                f"the model fails on the example inputs: {_first_line(error)}",
                f"example inputs of shape {shapes}",
                "pass inputs that model(*example_inputs) accepts",
            ) from error
        batch = _batch(inputs)
        varies = settings.batch_range is not None
        if settings.batch_range is not None and batch is not None:
            low, high = settings.batch_range
            if not low <= batch <= high:
                raise InputError(
                    f"the example batch of {batch} lies outside of batch_range {low}..{high}",
                    "example inputs",
                    "pass examples with a batch in that range",
                )
        return cls(
            shapes=tuple(tuple(tensor.shape) for tensor in inputs),
            dtypes=tuple(tensor.dtype for tensor in inputs),
            batched=tuple(varies and t.dim() > 0 and t.shape[0] == batch for t in inputs),
            batch_range=settings.batch_range,
            outputs=_structure(result),
        )

    @classmethod
    def of_region(cls, region: Region) -> Signature:
        """The signature of a region's model."""
        shapes = (region.in_shape, region.out_shape) if region.residual else (region.in_shape,)
        count = len(shapes)
        return cls(shapes, (torch.float32,) * count, (False,) * count, None, None)

    def check(self, inputs: Sequence[Tensor], where: str) -> None:
        """Raise `InputError` unless the inputs fit."""
        if len(inputs) != len(self.shapes):
            raise InputError(f"{len(self.shapes)} inputs expected, {len(inputs)} given", where)
        for index, (tensor, shape, dtype, batched) in enumerate(
            zip(inputs, self.shapes, self.dtypes, self.batched, strict=True)
        ):
            given = tuple(tensor.shape)
            if tensor.dtype != dtype:
                raise InputError(f"input {index} is {tensor.dtype}, compiled for {dtype}", where)
            low, high = self.batch_range if batched and self.batch_range else (0, 0)
            fits = given == shape or (
                batched and given[1:] == shape[1:] and low <= given[0] <= high
            )
            if not fits:
                expected = (f"{low}..{high}", *shape[1:]) if batched else shape
                raise InputError(
                    f"input {index} has shape {given}, compiled for {expected}",
                    where,
                    "compile again for this shape, or set batch_range in the settings",
                )

    def restore(self, flat: Sequence[Tensor]) -> Any:
        """The outputs in the module's structure, from a compiler's flat list."""
        if self.outputs is None:
            return flat[0]
        if isinstance(self.outputs, int):
            return tuple(flat)
        return dict(zip(self.outputs, flat, strict=True))

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "shapes": [list(shape) for shape in self.shapes],
            "dtypes": [str(dtype).removeprefix("torch.") for dtype in self.dtypes],
            "batched": list(self.batched),
            "batch_range": self.batch_range and list(self.batch_range),
            "outputs": list(self.outputs) if isinstance(self.outputs, tuple) else self.outputs,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Signature:
        """From `to_json`."""
        outputs, batch_range = data["outputs"], data["batch_range"]
        return cls(
            shapes=tuple(tuple(shape) for shape in data["shapes"]),
            dtypes=tuple(getattr(torch, name) for name in data["dtypes"]),
            batched=tuple(data["batched"]),
            batch_range=(batch_range[0], batch_range[1]) if batch_range else None,
            outputs=tuple(outputs) if isinstance(outputs, list) else outputs,
        )


def _batch(inputs: tuple[Tensor, ...]) -> int | None:
    return next((tensor.shape[0] for tensor in inputs if tensor.dim() > 0), None)


def _structure(result: object) -> Structure:
    if isinstance(result, Tensor):
        return None
    if isinstance(result, Mapping) and all(isinstance(v, Tensor) for v in result.values()):
        return tuple(str(key) for key in result)
    if isinstance(result, tuple | list) and all(isinstance(v, Tensor) for v in result):
        return len(result)
    raise InputError(
        f"the model returns {type(result).__name__} with parts that are not tensors",
        "output of the model",
        "wrap the model so that it returns a tensor, or a flat tuple or dict of tensors",
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
