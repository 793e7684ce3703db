"""Shape constants of a captured graph, re-evaluated from the axes of what each node yields.

`view(b, 12, 64)`, `split(256)`, `x[:, 64:]`, `groups=32`, `normalized_shape` are written for the
dense widths. Rewriters replace the entries whose axis loses positions, and only those: `-1` and
sizes computed at run time stay, so a graph keeps taking the batch sizes it took.

Numbers that come from a width but are not a shape (the `1/sqrt(d)` of attention) are no business of
the slim network: they keep their dense value.
"""

from fxprune.passes.constants.arguments import argument, operation, set_argument
from fxprune.passes.constants.rewriters import rewrite_constants

__all__ = ["argument", "operation", "rewrite_constants", "set_argument"]
