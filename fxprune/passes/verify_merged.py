"""Verification of merging: the merged network must equal the one that is trained, in float64.

As in `verify`, weights are drawn so that the signal stays alive at every depth: a fault behind a
scale of zero would be invisible.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map_only

from fxprune.errors import VerificationError
from fxprune.passes.merge import merge_spans, spans_of
from fxprune.passes.precision import in_double
from fxprune.passes.recalibrate import recalibrate
from fxprune.passes.refresh import drawn_weights
from fxprune.passes.verify import SEED, TOLERANCE, as_noise, double_by_default


def verify_merged(module: fx.GraphModule, example_inputs: tuple[Any, ...]) -> float:
    """Compare `module` with itself after the spans that wait in it are merged.

    Returns:
        The largest error of an output, relative to its largest value; 0.0 if no span waits.

    Raises:
        VerificationError: it exceeds 1e-9.
    """
    spans = spans_of(module)
    if not spans:
        return 0.0
    with torch.no_grad(), double_by_default():
        trained = in_double(module)
        drawn_weights(trained, module, SEED)
        inputs = tree_map_only(Tensor, as_noise, tuple(example_inputs))
        recalibrate(trained, [(inputs, None)])
        merged = merge_spans(trained, spans)
        pairs = zip(tree_leaves(trained.eval()(*inputs)), tree_leaves(merged(*inputs)), strict=True)
        error = max((_error(a, b) for a, b in pairs if isinstance(a, Tensor)), default=0.0)
    if not error <= TOLERANCE:
        raise VerificationError(
            f"the merged network differs from the one that is trained by {error:.3g} relative",
            f"spans {', '.join(map(str, spans))}",
            "Please report this model; until then, use merge_layers=False",
        )
    return error


def _error(want: Tensor, found: Tensor) -> float:
    if want.shape != found.shape:
        return float("inf")
    scale = float(want.abs().amax()) if want.numel() else 0.0
    return float((want - found).abs().amax()) / scale if scale else 0.0
