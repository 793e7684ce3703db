"""Symbolic tracing and export give one canonical form: the same groups, names and slim numbers."""

import warnings

import pytest
import torch

from fxprune.passes.bake import bake
from fxprune.passes.capture import Captured, call_quietly, cloned, normal_inputs
from fxprune.passes.differences import first_difference
from fxprune.passes.export import capture_by_export
from fxprune.passes.slim import slim
from fxprune.passes.trace import capture_by_tracing, is_opaque
from tests.properties import close, outputs, plan_of
from tests.test_models import built
from tests.ways import WAYS

CHUNK = 20
# What a hook does is a part of what export sees, and none of what tracing does.
UNLIKE = {
    "hook_that_changes_a_result",
    "masks_of_torch_pruning",
    "spectral_norm_by_hooks",
    "weight_norm_by_hooks",
}


def taken(name, way):
    """What one way of capture makes of a model; None if it does not take it whole."""
    model, inputs = built(WAYS[name].build)
    args, kwargs = cloned(normal_inputs(inputs))
    with torch.no_grad():
        expected = model.eval()(*cloned(args), **cloned(kwargs))
    try:
        module, found = way(model, args, kwargs)
    except Exception:
        return None
    if first_difference(expected, call_quietly(module, found)) is not None:
        return None
    modules = dict(module.named_modules())
    if any(is_opaque(modules, node) for node in module.graph.nodes):
        return None
    return Captured(module, found, way.__name__)


@pytest.mark.parametrize("first", range(0, len(WAYS) - CHUNK // 2, CHUNK))
def test_both_ways_of_capture_agree(first):
    torch.set_num_threads(1)
    compared = 0
    for name in list(WAYS)[first : first + CHUNK]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a batch size that export has to fix
            both = [taken(name, way) for way in (capture_by_tracing, capture_by_export)]
        if None in both or name in UNLIKE:
            continue
        compared += 1
        both, analyses = zip(*map(bake, both), strict=True)
        mine, theirs = ({g.name: g.members for g in analysis.groups} for analysis in analyses)
        assert mine == theirs, name
        results = []
        for captured, analysis in zip(both, analyses, strict=True):
            kept = {g.name: tuple(range(0, g.size, 2)) for g in analysis.groups}
            module = slim(captured, analysis, plan_of(analysis, kept))
            results.append((module, outputs(module, captured.example_inputs)))
        (traced, wanted), (exported, found) = results
        parameters = [dict(module.named_parameters()) for module in (traced, exported)]
        assert list(parameters[0]) == list(parameters[1]), name
        for want, got in zip(wanted, found, strict=True):
            close(want, got, name)
    assert compared >= CHUNK // 3
