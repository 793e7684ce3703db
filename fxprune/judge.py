"""What merged spans lose, in the points that widths are valued in: the dense network has 100.

Without its activations a network is worse, before any training. By how much is measured on data
(`depth_value`). What that is in points is read off networks with narrower layers, whose value is
known and whose damage is measured in the same way: a span costs as many points as channels do whose
removal hurts as much. So widths and depth are weighed on one scale.

Without data, all there is to go by are the layers' own numbers: an activation that changes what a
layer yields by a share e of its energy, if that is Gaussian, is charged that share of the layer's
saliency. It is a guess, and plans say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from torch import fx

from fxprune.axes import Atom
from fxprune.passes.allocate import plan_of
from fxprune.passes.allocation.ladders import Ladder
from fxprune.passes.allocation.values import TOTAL, value_tables
from fxprune.passes.allocation.widths import Choices
from fxprune.passes.capture import Captured
from fxprune.passes.depth_value import Damage, damages, expected_errors
from fxprune.passes.importance import Importance
from fxprune.passes.infer import Analysis
from fxprune.passes.layers import Layer
from fxprune.passes.merges import Merge
from fxprune.passes.slim import slim
from fxprune.progress import Tell

# Shares of every group's width at which networks are compared with merged ones.
SHARES = (0.75, 0.5)


def by_damage(
    merges: Sequence[Merge],
    captured: Captured,
    analysis: Analysis,
    ladders: Mapping[Atom, Ladder],
    importance: Importance,
    measure: Callable[[fx.GraphModule], Damage],
    tell: Tell,
) -> tuple[Merge, ...]:
    """`merges` with what each one alone loses, as measured.

    Args:
        measure: makes the measure of damage for the captured model.
    """
    lossy = [merge for merge in merges if not merge.span.lossless]
    if not lossy:
        return tuple(merges)
    damage = measure(captured.module)
    what = "Judging layers that could be merged"
    step = partial(_count, tell, what, len(lossy))
    found = damages(captured.module, [merge.span for merge in lossy], damage, step=step)
    hurt, points = [0.0], [0.0]
    for lost, narrow in _narrower(captured, analysis, ladders, importance):
        # More channels gone is never taken for less damage.
        hurt.append(max(damage(narrow), hurt[-1]))
        points.append(lost)
    losses = {m.name: _read(max(d, 0.0), hurt, points) for m, d in zip(lossy, found, strict=True)}
    return tuple(replace(merge, loss=losses.get(merge.name, 0.0)) for merge in merges)


def by_guess(
    merges: Sequence[Merge],
    module: fx.GraphModule,
    layers: Sequence[Layer],
    importance: Importance,
) -> tuple[Merge, ...]:
    """`merges` with what each one alone loses, guessed without data.

    Args:
        module: the captured model.
        layers: its layers.
    """
    errors = expected_errors(module, [merge.span for merge in merges])
    total = sum(float(saliency.sum()) for saliency in importance.weights.values())
    worth = {
        layer.node: float(importance.weights[layer.weight].sum()) * TOTAL / total
        for layer in layers
        if total and layer.weight in importance.weights
    }
    return tuple(replace(merge, loss=_guess(merge, errors, worth)) for merge in merges)


def _guess(merge: Merge, errors: Mapping[str, float], worth: Mapping[str, float]) -> float:
    loss, layer = 0.0, 0.0
    for node in merge.span.nodes:
        layer = worth.get(node, layer)
        if node in errors:
            loss += min(errors[node], 1.0) * layer
    return loss


def _narrower(
    captured: Captured,
    analysis: Analysis,
    ladders: Mapping[Atom, Ladder],
    importance: Importance,
) -> Iterator[tuple[float, fx.GraphModule]]:
    """Networks with all groups narrower, and what of their value each has lost."""
    value = value_tables(analysis, importance, Choices(ladders))
    for share in SHARES:
        sizes, options = {}, {}
        for atom, ladder in ladders.items():
            option = int(np.abs(np.array(ladder.widths) - share * atom.size).argmin())
            sizes[atom], options[ladder.group.name] = ladder.widths[option], option
        plan = plan_of(sizes, analysis, importance, {})
        yield TOTAL - value.at(options), slim(captured, analysis, plan).eval()


def _read(damage: float, hurt: Sequence[float], points: Sequence[float]) -> float:
    """The points that go with a damage, on the line through those that are known."""
    if damage <= hurt[-1]:
        return float(np.interp(damage, hurt, points))
    return points[-1] * damage / hurt[-1] if hurt[-1] else TOTAL


def _count(tell: Tell, what: str, total: int, done: int) -> None:
    tell(what, done, total)
