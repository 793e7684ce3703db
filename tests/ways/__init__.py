"""Ways in which people write models: one small model each, and what becomes of its widths."""

from tests.ways import (  # noqa: F401  (imported because they fill the table)
    attention,
    interfaces,
    layers,
    networks,
    places,
    transformers,
    values,
)
from tests.ways.base import REFUSED, WAYS, Refused, Way

__all__ = ["REFUSED", "WAYS", "Refused", "Way"]
