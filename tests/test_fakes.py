"""Fake tensors: a call that is looked up gives what the call itself gives."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fxprune.passes.fakes import Fakes, storage_of
from fxprune.passes.tracker import AxisTracker

aten = torch.ops.aten
CALLS = {
    "pointwise": (aten.add.Tensor, lambda x: (x, x)),
    "view": (aten.view.default, lambda x: (x, [6, 4])),
    "transposed view": (aten.t.default, lambda x: (x,)),
    "slice": (aten.slice.Tensor, lambda x: (x, 1, 2, 5)),
    "several results": (aten.split.Tensor, lambda x: (x, 3, 1)),
    "product": (aten.mm.default, lambda x: (x, x.t())),
    "in place": (aten.mul_.Tensor, lambda x: (x, 2.0)),
    "in place, not pointwise": (aten.zero_.default, lambda x: (x,)),
    "changes dimensions": (aten.transpose_.default, lambda x: (x, 0, 1)),
    "counted": (aten.arange.default, lambda x: (5,)),
}


def flat(value):
    return list(value) if isinstance(value, (tuple, list)) else [value]


def looks(tensor):
    place = tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, tensor.device
    return (*place, type(tensor), vars(tensor))


@pytest.mark.parametrize("name", CALLS)
def test_the_second_time_is_as_the_first(name):
    func, arguments = CALLS[name]
    with FakeTensorMode() as mode:
        fakes, seen = Fakes(mode), []
        for _ in range(3):
            x = mode.from_tensor(torch.randn(4, 6))
            found = flat(fakes.run(func, arguments(x), {})[0])
            seen.append([(*looks(t), t is x, storage_of(t) == storage_of(x)) for t in found])
            seen[-1].append(looks(x))
    assert seen[0] == seen[1] == seen[2]


def test_tensors_that_share_memory_share_it_as_fakes():
    base = torch.randn(6)
    state = {"base": base, "part": base[2:4], "other": torch.randn(3)}
    with FakeTensorMode() as mode:
        found = Fakes(mode).of_state(state)
    assert storage_of(found["base"]) == storage_of(found["part"]) != storage_of(found["other"])
    assert {n: (t.shape, t.dtype) for n, t in found.items()} == {
        n: (t.shape, t.dtype) for n, t in state.items()
    }


def test_a_linear_operator_that_a_device_keeps_whole_has_the_axes_of_its_products():
    """The CPU splits `linear` before a rule sees it, so no network here reaches this rule."""
    with FakeTensorMode() as mode:
        tracker = AxisTracker(Fakes(mode))
        shapes = {"value": (2, 5), "weight": (8, 5), "bias": (8,)}
        given = {n: mode.from_tensor(torch.randn(s)) for n, s in shapes.items()}
        for tensor in given.values():
            tracker.give(tensor, tuple(map(tracker.unifier.fresh, tensor.shape)))
        out = tracker.__torch_dispatch__(aten.linear.default, (), tuple(given.values()))
    value, weight, bias = (tracker.axes_of(t) for t in given.values())
    assert tracker.axes_of(out) == (value[0], weight[0])
    assert value[1] == weight[1]
    assert bias[0] == weight[0]
    (contraction,) = tracker.contractions
    summed = tuple(map(tracker.unifier.resolve, contraction.axes))
    assert summed == (value[0], weight[0], value[1])
