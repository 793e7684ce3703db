"""The last step before deployment: merge what may be merged, and fold batch norm."""

from __future__ import annotations

import copy
from typing import Any

from torch import fx

from fxprune import plain
from fxprune.errors import InputError
from fxprune.passes.chains import find_chains
from fxprune.passes.fold import fold_in_place
from fxprune.passes.glue.module import GluedModule
from fxprune.passes.linear.observed import NOTHING, Observed, observe
from fxprune.passes.lossless import cheapest_spans
from fxprune.passes.merge import MERGED, SPANS, merge_in_place, spans_of


def finalize(slim: fx.GraphModule, example_inputs: tuple[Any, ...] | None = None) -> fx.GraphModule:
    """A copy of `slim` for deployment, numerically equal to it in evaluation mode.

    - The spans whose activations were dropped (`slim.meta["fxprune_spans"]`) become one layer each.
    - So do other stretches that are linear as they stand, where the merged layer takes no more
      multiply-accumulates than its parts, whatever the size of the input.
    - Batch norms are folded into the layers before them.

    What was merged is listed in `meta["fxprune_merged"]` of the result; the rest of `slim.meta` is
    carried over.

    Args:
        slim: what `fxprune.optimize` returned, fine-tuned or not; not modified. Any other captured
            module will do as well.
        example_inputs: one value per placeholder. They are needed only for batch norms that take
            values of several ranks, as after a linear layer; without them, such a norm stays.

    Raises:
        InputError: `slim` is no graph, or was changed by hand, so that the recorded spans do not
            fit it.
    """
    if not isinstance(slim, fx.GraphModule):
        raise InputError(
            f"finalize works on graphs, and {type(slim).__name__} is none",
            fix="Pass what fxprune.optimize returned",
        )
    result = copy.deepcopy(slim).eval()
    merged = merge_in_place(result, spans_of(slim))
    lossless = cheapest_spans(find_chains(result, _observed(result, example_inputs)))
    merged += merge_in_place(result, lossless)
    fold_in_place(result, _observed(result, example_inputs))
    result.meta.pop(SPANS, None)
    before = result.meta.get(MERGED, [])
    result.meta[MERGED] = [*before, *plain.to_plain(merged)]
    return result


def _observed(module: fx.GraphModule, example_inputs: tuple[Any, ...] | None) -> Observed:
    if example_inputs is None or isinstance(module, GluedModule):  # its graph has other inputs
        return NOTHING
    return observe(module, example_inputs)
