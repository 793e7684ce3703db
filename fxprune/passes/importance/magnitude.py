"""Magnitude: large weights matter. Needs no data."""

from __future__ import annotations

import numpy as np
from torch import fx

from fxprune.passes.importance.base import Array, Importance, by_score, coupled_scores
from fxprune.passes.infer import Analysis
from fxprune.passes.layers import find_layers


def magnitude(module: fx.GraphModule, analysis: Analysis) -> Importance:
    """Absolute weights, per layer relative to the layer's Frobenius norm.

    The normalisation makes layers of different scale comparable (Jeong et al. 2022, "Optimal
    channel selection with discrete QCQP", section 3).
    """
    parameters = dict(module.named_parameters())
    weights: dict[str, Array] = {}
    elements: dict[str, Array] = {}
    for layer in find_layers(module, analysis):
        if layer.weight in weights or layer.weight not in parameters:
            continue
        value = np.abs(parameters[layer.weight].detach().double().cpu().numpy())
        matrix = value.reshape(*value.shape[:2], -1).sum(axis=2)
        norm = float(np.linalg.norm(matrix)) or 1.0
        weights[layer.weight] = matrix / norm
        elements[layer.weight] = value / norm
    return by_score(weights, coupled_scores(elements, analysis))
