"""Magnitude: large weights matter. Needs no data."""

from __future__ import annotations

import numpy as np
from torch import fx

from fxprune.passes.importance.base import (
    Importance,
    Saliency,
    by_score,
    coupled_scores,
    judged,
    over_places,
)
from fxprune.passes.infer import Analysis


def magnitude(module: fx.GraphModule, analysis: Analysis) -> Importance:
    """Absolute weights, per layer relative to the layer's Frobenius norm.

    The normalisation makes layers of different scale comparable (Jeong et al. 2022, "Optimal
    channel selection with discrete QCQP", section 3).
    """
    parameters = dict(module.named_parameters())
    weights: dict[str, Saliency] = {}
    for name in judged(module, analysis):
        if name in parameters:
            matrix = over_places(parameters[name].detach().abs())
            weights[name] = matrix / (float(np.linalg.norm(matrix.astype(np.float64))) or 1.0)
    return by_score(weights, coupled_scores(weights, analysis))
