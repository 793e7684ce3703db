"""A budget that layers which stay dense make hard to reach: silence about it would be a bug."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping

from fxprune.axes import Atom, kept_size
from fxprune.gauges import Gauge
from fxprune.passes.infer import named_tensors
from fxprune.prepare import Prepared

# More than this share of a budget taken by what stays dense leaves the rest of the network at less
# than half of the width that the budget seems to ask for.
ALARMING = 0.5


def warn_of_frozen_parts(prepared: Prepared, gauge: Gauge) -> None:
    """Warn if what cannot shrink takes more than half of a budget, and say where most of it lies.

    Latency, and functions of one's own, are taken to follow the multiply-accumulates. Groups that
    `ignore=` names count as dense.
    """
    fixed = all(len(ladder.widths) == 1 for ladder in prepared.ladders.values())
    if fixed and prepared.forms.parts:
        return  # whoever leaves every width as it is counts on depth
    by_weights = gauge.budget.resource in ("params", "memory")
    costs = _weights if by_weights else _macs
    narrowest = {
        atom: ladder.widths[0] if len(ladder.widths) == 1 else 0
        for atom, ladder in prepared.ladders.items()
    }
    stays = dict(costs(prepared, narrowest))
    dense = sum(cost for _, cost in costs(prepared, {}))
    frozen = sum(stays.values()) / dense if dense else 0.0
    wanted = gauge.limit / gauge.dense if gauge.dense else 1.0
    if frozen <= ALARMING * wanted:
        return
    place = max(stays, key=lambda name: stays[name])
    what = "parameters" if by_weights else "multiply-accumulates"
    warnings.warn(
        f"{frozen:.0%} of the {what} stay whatever is slimmed, of a budget of {wanted:.0%} "
        f"({gauge.budget.describe()}); most of them at {place}: fxprune.analyze shows why",
        stacklevel=4,
    )


def _macs(prepared: Prepared, sizes: Mapping[Atom, int]) -> Iterator[tuple[str, int]]:
    """Multiply-accumulates of every node at the given widths."""
    found: dict[str, int] = {}
    for contraction in prepared.analysis.contractions:
        count = contraction.constant * math.prod(kept_size(a, sizes) for a in contraction.axes)
        found[contraction.node] = found.get(contraction.node, 0) + count
    yield from found.items()


def _weights(prepared: Prepared, sizes: Mapping[Atom, int]) -> Iterator[tuple[str, int]]:
    """Elements of every parameter and buffer at the given widths."""
    for name, _ in named_tensors(prepared.module):
        yield name, math.prod(kept_size(a, sizes) for a in prepared.analysis.tensors[name])
