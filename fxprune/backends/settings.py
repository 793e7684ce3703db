"""What an engine is compiled with: explicit, recorded, and part of every measurement's key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch

from fxprune.errors import InputError

Precision = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How to compile and run an engine.

    precision: what the engine computes in; its inputs and outputs keep the module's own dtypes.
    threads: CPU threads used within an operator.
    channels_last: keep activations in NHWC order, where the backend leaves that to its caller.
    batch_range: smallest and largest batch to accept; None accepts only the example's batch.
    cuda_graphs: measure one CUDA graph per inference, where the backend runs on CUDA. It is what
        `Engine.runner` gives for fixed inputs; calling an engine starts kernel by kernel.
    """

    precision: Precision = "fp32"
    threads: int = 1
    channels_last: bool = False
    batch_range: tuple[int, int] | None = None
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            choices = ", ".join(get_args(Precision))
            raise InputError(
                f"precision {self.precision!r} is unknown", fix=f"choose from {choices}"
            )
        if self.threads < 1:
            raise InputError(f"threads must be at least 1, not {self.threads}")
        if self.batch_range is not None:
            low, high = self.batch_range
            if not 1 <= low < high:
                raise InputError(
                    f"batch_range {self.batch_range} is not a range",
                    fix="give (smallest, largest) with 1 <= smallest < largest",
                )

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point dtype that `precision` names."""
        return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[
            self.precision
        ]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Settings:
        """From `to_json`."""
        batch_range = data["batch_range"]
        pair = None if batch_range is None else (int(batch_range[0]), int(batch_range[1]))
        return cls(**{**data, "batch_range": pair})
