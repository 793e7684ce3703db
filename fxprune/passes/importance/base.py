"""What importance is: an order of the positions of every group, and a saliency for every weight.

A weight counts only if both its input and its output channel stay (Jeong et al. 2022, "Optimal
channel selection with discrete QCQP"), so what a layer is worth is pairwise: with `S` the saliency
of its weight, summed over the kernel, keeping rows `A` and columns `B` is worth `S[A, B].sum()`.
With the positions of each group in order of importance this is a two-dimensional prefix sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from fxprune.axes import Atom, project
from fxprune.passes.infer import Analysis
from fxprune.passes.layers import find_layers

Array = NDArray[np.float64]
Saliency = NDArray[np.float32]
"""One number for every weight of a model: as many bytes as the model itself, not twice as many."""


@dataclass(frozen=True)
class Importance:
    """What the positions of a model are worth.

    Attributes:
        weights: weight name -> non-negative saliency of its first two dimensions, [rows, columns].
        order: positions of every group, from most to least important.
        scores: the number that each position was ordered by.
    """

    weights: Mapping[str, Saliency]
    order: Mapping[Atom, NDArray[np.int64]]
    scores: Mapping[Atom, Array]

    @property
    def total(self) -> float:
        """The saliency of all weights."""
        return sum(float(saliency.sum(dtype=np.float64)) for saliency in self.weights.values())


def judged(module: fx.GraphModule, analysis: Analysis) -> tuple[str, ...]:
    """Weights that are worth something: those of layers, then any other matrix that is multiplied.

    Recurrent layers, experts in one tensor and attention written with `einsum` have such.
    """
    layers = [layer.weight for layer in find_layers(module, analysis)]
    others = [
        name
        for name, parameter in module.named_parameters()
        if name in analysis.weights and parameter.dim() > 1
    ]
    return tuple(dict.fromkeys((*layers, *others)))


def coupled_scores(elements: Mapping[str, Saliency], analysis: Analysis) -> dict[Atom, Array]:
    """Absolute sum, per position of every group, of the contributions of all coupled elements.

    Args:
        elements: parameter name -> signed contributions over the parameter's first dimensions,
            those of a kernel's places added up.
    """
    totals = {group.atom: np.zeros(group.size) for group in analysis.groups}
    for name, values in elements.items():
        for dim, axis in zip(range(values.ndim), analysis.tensors[name], strict=False):
            others = tuple(d for d in range(values.ndim) if d != dim)
            along = values.sum(axis=others, dtype=np.float64)
            for atom, part in project(axis, along).items():
                if atom in totals:
                    totals[atom] = totals[atom] + part
    return {atom: np.abs(total) for atom, total in totals.items()}


def over_places(values: Tensor) -> Saliency:
    """`values` of a parameter, summed over all dimensions but the first two."""
    if values.dim() > 2:
        values = values.flatten(2).sum(2, dtype=torch.float64)
    return np.asarray(values.float().cpu().numpy())


def by_score(weights: Mapping[str, Saliency], scores: Mapping[Atom, Array]) -> Importance:
    """Positions by falling score; equal ones by index, so that plans are reproducible."""
    order = {
        atom: np.argsort(-score, kind="stable").astype(np.int64) for atom, score in scores.items()
    }
    return Importance(weights, order, scores)
