"""Whether two runs of the same computation gave the same result."""

from __future__ import annotations

from typing import Any

import torch

from fxprune.passes.rules import tensors


def first_difference(expected: Any, found: Any) -> str | None:
    """How two results of the same computation differ, or None; round-off is no difference."""
    left, right = tensors(expected), tensors(found)
    if len(left) != len(right):
        return f"{len(right)} output tensors instead of {len(left)}"
    for index, (mine, theirs) in enumerate(zip(left, right, strict=True)):
        if mine.shape != theirs.shape:
            return f"output {index} has shape {tuple(theirs.shape)} instead of {tuple(mine.shape)}"
        loose = mine.dtype in (torch.float16, torch.bfloat16)
        tolerance = 1e-2 if loose else 1e-4
        finite = mine[torch.isfinite(mine)] if mine.is_floating_point() else mine
        scale = float(finite.abs().max()) if finite.numel() else 0.0
        close = torch.allclose(
            mine.double(), theirs.double(), rtol=tolerance, atol=tolerance * scale, equal_nan=True
        )
        if not close:
            return f"output {index} has other values; does forward draw random numbers?"
    return None
