"""Magnitude: large weights matter. Needs no data."""

from __future__ import annotations

import numpy as np
from torch import fx

from fxprune.passes.importance.base import Array, Importance, by_score, coupled_scores, over_places
from fxprune.passes.infer import Analysis
from fxprune.passes.layers import find_layers


def magnitude(module: fx.GraphModule, analysis: Analysis) -> Importance:
    """Absolute weights, per layer relative to the layer's Frobenius norm.

    The normalisation makes layers of different scale comparable (Jeong et al. 2022, "Optimal
    channel selection with discrete QCQP", section 3).
    """
    parameters = dict(module.named_parameters())
    weights: dict[str, Array] = {}
    for layer in find_layers(module, analysis):
        if layer.weight in weights or layer.weight not in parameters:
            continue
        matrix = over_places(parameters[layer.weight].detach().abs())
        weights[layer.weight] = matrix / (float(np.linalg.norm(matrix)) or 1.0)
    return by_score(weights, coupled_scores(weights, analysis))
