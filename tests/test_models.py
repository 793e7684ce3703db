"""Ways in which people write models: each is slimmed exactly, or says what stays and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fxprune.passes.bake import bake
from fxprune.passes.capture import capture
from tests.properties import CHECKS, examine
from tests.ways import REFUSED, WAYS


def samples_like(inputs: Any):
    """Inputs of any number of samples, shaped as `inputs`."""

    def of(count: int) -> Any:
        generator = torch.Generator().manual_seed(0)

        def one(tensor: Tensor) -> Tensor:
            shape = (count, *tensor.shape[1:])
            if tensor.is_floating_point():
                return torch.randn(shape, generator=generator, dtype=tensor.dtype)
            return torch.randint(0, 10, shape, generator=generator)

        found = tree_map_only(Tensor, one, inputs)
        return tuple(found.values()) if isinstance(found, dict) else found

    return of


def built(build):
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        return build()
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", WAYS)
def test_this_way_is_slimmed_exactly(name):
    torch.set_num_threads(1)
    way = WAYS[name]
    model, inputs = built(way.build)
    model.eval()
    case = examine(model, inputs, 0, samples_like(inputs), without=way.without)
    groups = {str(member) for group in case.analysis.groups for member in group.members}
    missing = [member for member in way.slim if member not in groups]
    assert not missing, f"dense: {missing}; groups are {case.analysis.groups}"
    assert bool(way.slim) == bool(case.analysis.groups), case.analysis.groups


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if way.frozen])
def test_what_stays_dense_says_why(name):
    way = WAYS[name]
    model, inputs = built(way.build)
    _, analysis = bake(capture(model, inputs))
    for place, piece in way.frozen.items():
        tensor, dim = place.removesuffix("]").split("[")
        found = [analysis.reasons.get(atom) for atom in analysis.tensors[tensor][int(dim)].atoms]
        assert any(reason is not None and piece in reason.detail for reason in found), found


@pytest.mark.parametrize("name", REFUSED)
def test_this_way_is_refused(name):
    case = REFUSED[name]
    model, inputs = built(case.build)
    with pytest.raises(case.error, match=case.message):
        bake(capture(model, inputs))


def test_every_check_has_been_named():
    assert {check for way in WAYS.values() for check in way.without} <= set(CHECKS)
