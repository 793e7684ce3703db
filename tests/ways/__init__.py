"""Ways in which people write models: one small model each, and what becomes of its widths."""

from tests.ways import attention, interfaces, layers, values  # noqa: F401  (they fill the table)
from tests.ways.base import REFUSED, WAYS, Refused, Way

__all__ = ["REFUSED", "WAYS", "Refused", "Way"]
