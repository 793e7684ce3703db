"""Capture of models with data-dependent Python glue: the children, where the whole cannot be.

1. One run notes how every submodule is called. The largest ones that can be traced, called with
   tensors (in lists and dicts, if need be) and nothing that varies, become graphs.
2. A second run is watched (`watch.py`), and the children's graphs are put one after the other
   into one graph (`record.py`, `module.py`). A tensor that goes from one child to another as it is,
   the very same object with nobody writing to it between, is an edge. Any other tensor that a
   child is given is a placeholder, whose dimensions stay.
3. What glue reads of a tensor stays, and so does whatever leaves the model or is not read by any
   other child.

What is assumed: glue reads a tensor as it does on the example inputs, in evaluation mode. Other
inputs and training take it through other values, but not to other uses of the same tensor. Where a
layer did not run at all, there plainly are other ways, and no width crosses the glue.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from fxprune.errors import CaptureError
from fxprune.passes.differences import first_difference
from fxprune.passes.glue.children import calls_in, captured_children, unseen_part, without
from fxprune.passes.glue.module import GluedModule
from fxprune.passes.glue.record import Glued, Recorder, UnfaithfulError


def capture_with_glue(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], expected: Any
) -> Glued:
    """Capture the children of `model`, which is in evaluation mode and is not modified.

    Args:
        expected: what `model` returns for these arguments.

    Raises:
        CaptureError: no child with parameters can be captured, or two runs differ.
    """
    owner = copy.deepcopy(model)
    if isinstance(owner, GluedModule):
        owner = vars(owner)["owner"]
    calls = calls_in(owner, args, kwargs)
    children = captured_children(owner, calls)
    while True:
        if not any(True for child in children.values() for _ in child.module.parameters()):
            raise CaptureError("no child with parameters can be traced")
        for plain_shapes in (False, True):
            recorder = Recorder(owner, children, plain_shapes, unseen_part(owner, calls, children))
            try:
                found = recorder.run(args, kwargs)
            except UnfaithfulError as error:
                children = without(owner, children, calls, error.path)
                break
            except Exception as error:
                if plain_shapes:
                    raise CaptureError(f"glue cannot be watched: {error}") from error
                continue
            if first_difference(expected, found) is None:
                return recorder.finish(found)
            if plain_shapes:
                raise CaptureError("the model computes something else each time it runs")
