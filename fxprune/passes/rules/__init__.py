"""Typing rules: how each family of ATen operators relates the axes of what it reads and writes."""

from fxprune.passes.rules import (  # noqa: F401  (imported to register their rules)
    contraction,
    creation,
    indexing,
    normalisation,
    pieces,
    pointwise,
    recurrent,
    reduction,
    spatial,
    views,
)
from fxprune.passes.rules.base import RULES, Contraction, Op, broadcast, tensors

__all__ = ["RULES", "Contraction", "Op", "broadcast", "tensors"]
