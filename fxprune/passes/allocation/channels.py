"""Which positions of a group stay, once it is known how many.

By default the most important ones, each judged on its own (`ordered`). But a weight counts only if
both of its channels stay, so what a position is worth depends on what stays around it. `refined`
takes the groups in turn and gives each the positions that are worth most beside what the others
keep, as long as that raises the worth of the whole: block-coordinate ascent on the pairwise
objective of Jeong et al. (2022, "Optimal channel selection with discrete QCQP", section 3), from
the order by importance, below which it never falls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set

import numpy as np
from numpy.typing import NDArray

from fxprune.axes import Atom, Positions, kept_positions, project
from fxprune.passes.importance import Importance, Saliency
from fxprune.passes.infer import Analysis

Array = NDArray[np.float64]
Kept = dict[Atom, Positions]
Choose = Callable[[Analysis, Importance, Mapping[Atom, int], Set[str]], Kept]

MOST_SWEEPS = 20
# Gains below this share of the whole are round-off.
LEAST_GAIN = 1e-12


def ordered(
    analysis: Analysis,
    importance: Importance,
    sizes: Mapping[Atom, int],
    gone: Set[str] = frozenset(),
) -> Kept:
    """The most important positions of every group.

    Args:
        sizes: how many positions of every group stay.
        gone: tensors of dropped blocks, which count for nothing.

    Returns:
        Ascending positions per group.
    """
    return {
        group.atom: np.sort(importance.order[group.atom][: sizes[group.atom]])
        for group in analysis.groups
    }


def refined(
    analysis: Analysis,
    importance: Importance,
    sizes: Mapping[Atom, int],
    gone: Set[str] = frozenset(),
) -> Kept:
    """Positions that are together worth at least as much as the ordered ones; else as `ordered`."""
    kept = ordered(analysis, importance, sizes, gone)
    weights = {name: s for name, s in importance.weights.items() if name not in gone}
    free = [g.atom for g in analysis.groups if sizes[g.atom] < g.size]
    touched = {atom: _touched(analysis, weights, atom) for atom in free}
    least = LEAST_GAIN * sum(float(saliency.sum(dtype=np.float64)) for saliency in weights.values())
    for _ in range(MOST_SWEEPS):
        improved = False
        for atom in free:
            gains = _gains(analysis, touched[atom], kept, atom)
            best = np.sort(np.argsort(-gains, kind="stable")[: sizes[atom]])
            changed = kept | {atom: best}
            if _worth(analysis, touched[atom], changed) > least + _worth(
                analysis, touched[atom], kept
            ):
                kept, improved = changed, True
        if not improved:
            break
    return kept


def worth(analysis: Analysis, importance: Importance, kept: Mapping[Atom, Positions]) -> float:
    """The saliency of all weights both of whose channels stay."""
    return _worth(analysis, importance.weights, kept)


def _touched(
    analysis: Analysis, weights: Mapping[str, Saliency], atom: Atom
) -> dict[str, Saliency]:
    """The weights whose worth depends on `atom`."""
    return {
        name: saliency
        for name, saliency in weights.items()
        if any(atom in set(axis.atoms) for axis in analysis.tensors[name][:2])
    }


def _worth(
    analysis: Analysis, weights: Mapping[str, Saliency], kept: Mapping[Atom, Positions]
) -> float:
    total = 0.0
    for name, saliency in weights.items():
        rows, columns = (kept_positions(axis, kept) for axis in analysis.tensors[name][:2])
        total += float(saliency[np.ix_(rows, columns)].sum(dtype=np.float64))
    return total


def _gains(analysis: Analysis, weights: Mapping[str, Saliency], kept: Kept, atom: Atom) -> Array:
    """What each position of `atom` is worth beside what stays.

    Where both sides of a weight are made of `atom`, one side is taken as it is now.
    """
    others = {other: positions for other, positions in kept.items() if other != atom}
    gains = np.zeros(atom.size)
    for name, saliency in weights.items():
        axes = analysis.tensors[name][:2]
        for dim, axis in enumerate(axes):
            if atom not in set(axis.atoms):
                continue
            across = kept_positions(axes[1 - dim], kept)
            line = saliency.take(across, axis=1 - dim).sum(axis=1 - dim, dtype=np.float64)
            beside = np.zeros_like(line)
            places = kept_positions(axis, others)
            beside[places] = line[places]
            gains += project(axis, beside)[atom]
    return gains
