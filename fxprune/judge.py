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

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from torch import fx

from fxprune.passes.allocate import plan_of
from fxprune.passes.allocation.ladders import Ladder
from fxprune.passes.allocation.values import TOTAL, value_tables
from fxprune.passes.allocation.widths import Choices
from fxprune.passes.capture import Captured
from fxprune.passes.depth_value import Damage, expected_errors
from fxprune.passes.importance import Importance
from fxprune.passes.infer import Analysis
from fxprune.passes.layers import Layer
from fxprune.passes.merge import drop_activations
from fxprune.passes.merges import Merge
from fxprune.passes.slim import slim
from fxprune.plan import Plan
from fxprune.probe import Memory, Variant
from fxprune.progress import Tell

# Shares of every group's width at which networks are compared with merged ones.
SHARES = (0.75, 0.5)


def by_damage(
    merges: Sequence[Merge],
    captured: Captured,
    analysis: Analysis,
    importance: Importance,
    damage: Damage,
    memory: Memory,
    tell: Tell,
) -> tuple[Merge, ...]:
    """`merges` with what each one alone loses, as measured.

    Args:
        damage: measures changed networks against the captured model.
        memory: knows what was measured before.
    """
    lossy = [merge for merge in merges if not merge.span.lossless]
    if not lossy:
        return tuple(merges)
    narrower = _narrower(captured, analysis, importance)
    variants: dict[str, Variant] = {
        merge.name: partial(_merged, captured.module, merge) for merge in lossy
    }
    variants |= {name: variant for name, (_, variant) in narrower.items()}
    step = partial(_count, tell, "Judging layers that could be merged", len(variants))
    found = memory.measured(variants, damage, step)
    hurt, points = [0.0], [0.0]
    for name, (lost, _) in narrower.items():
        # More channels gone is never taken for less damage.
        hurt.append(max(found[name], hurt[-1]))
        points.append(lost)
    losses = {merge.name: _read(max(found[merge.name], 0.0), hurt, points) for merge in lossy}
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
    total = importance.total
    worth = {
        layer.node: float(importance.weights[layer.weight].sum(dtype=np.float64)) * TOTAL / total
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


def _merged(module: fx.GraphModule, merge: Merge) -> fx.GraphModule:
    """`module` without the activations of a span."""
    return drop_activations(module, [merge.span]).eval()


def _narrower(
    captured: Captured, analysis: Analysis, importance: Importance
) -> dict[str, tuple[float, Variant]]:
    """Networks with all groups narrower, and what of their value each has lost."""
    found: dict[str, tuple[float, Variant]] = {}
    for share in SHARES:
        sizes = {group.atom: max(1, round(share * group.size)) for group in analysis.groups}
        ladders = {g.atom: Ladder(g, (sizes[g.atom], g.size)) for g in analysis.groups}
        value = value_tables(analysis, importance, Choices(ladders))
        plan = plan_of(sizes, analysis, importance, {})
        kept = value.at(dict.fromkeys(value.domains, 0))
        name = f"every width at {share:.0%}: {_digest(plan)}"
        found[name] = (TOTAL - kept, partial(_slim, captured, analysis, plan))
    return found


def _slim(captured: Captured, analysis: Analysis, plan: Plan) -> fx.GraphModule:
    return slim(captured, analysis, plan).eval()


def _digest(plan: Plan) -> str:
    return hashlib.sha256(plan.to_json().encode()).hexdigest()


def _read(damage: float, hurt: Sequence[float], points: Sequence[float]) -> float:
    """The points that go with a damage, on the line through those that are known."""
    if damage <= hurt[-1]:
        return float(np.interp(damage, hurt, points))
    return points[-1] * damage / hurt[-1] if hurt[-1] else TOTAL


def _count(tell: Tell, what: str, total: int, done: int) -> None:
    tell(what, done, total)
