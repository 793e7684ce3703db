"""Residual blocks: which branches may go, and that nothing else changes when they do."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxprune.errors import PlanMismatch, VerificationError
from fxprune.passes.blocks import find_blocks
from fxprune.passes.capture import capture
from fxprune.passes.infer import infer
from fxprune.passes.slim import slim
from fxprune.passes.verify import verify
from fxprune.plan import Plan
from tests.networks import images, small_resnet
from tests.ways.base import Model


def analysed(model, x):
    captured = capture(model, x)
    return captured, infer(captured)


def whole(analysis, dropped=()):
    """A plan that keeps every position."""
    kept = {group.name: tuple(range(group.size)) for group in analysis.groups}
    return Plan(kept, {group.name: group.size for group in analysis.groups}, dropped=dropped)


def without(model, x, *places):
    """`model` without the blocks at `places`, verified."""
    captured, analysis = analysed(model, x)
    blocks = find_blocks(captured.module, analysis)
    assert set(places) <= {block.place for block in blocks}
    plan = whole(analysis, tuple(b.addition for b in blocks if b.place in places))
    module = slim(captured, analysis, plan)
    verify(captured, analysis, plan, module)
    return module


def conv(inputs=4, outputs=4):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def places(run, x=None, **parts):
    """The places of the blocks of a small model for images of four channels."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6) if x is None else x
    captured, analysis = analysed(Model(run, **parts).eval(), x)
    return [block.place for block in find_blocks(captured.module, analysis)]


def test_every_residual_block_is_found_and_its_projection_is_the_skip():
    captured, analysis = analysed(small_resnet(), images())
    blocks = find_blocks(captured.module, analysis)
    assert [block.place for block in blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    assert not any("project" in name for block in blocks for name in block.tensors)
    assert all("conv1.weight" in " ".join(block.tensors) for block in blocks)


@pytest.mark.parametrize("which", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_a_dropped_block_adds_zero(which):
    model = small_resnet()
    zeroed = copy.deepcopy(model)
    for i in which:
        nn.init.zeros_(zeroed.blocks[i].norm2.weight)
        nn.init.zeros_(zeroed.blocks[i].norm2.bias)
    module = without(model, images(), *(f"blocks.{i}" for i in which))
    torch.testing.assert_close(module(images(3)), zeroed(images(3)))


def test_what_only_the_block_used_is_gone_and_all_else_keeps_its_name():
    model = small_resnet()
    module = without(model, images(), "blocks.1")
    gone = set(model.state_dict()) - set(module.state_dict())
    body = {name for name in model.state_dict() if name.startswith("blocks.1.")}
    assert gone == {name for name in body if ".project." not in name}
    assert not hasattr(module.get_submodule("blocks.1"), "conv1")


def test_widths_and_blocks_go_together():
    captured, analysis = analysed(small_resnet(), images())
    blocks = find_blocks(captured.module, analysis)
    kept = {g.name: tuple(range(1, g.size, 3)) for g in analysis.groups}
    plan = replace(whole(analysis, (blocks[0].addition,)), kept=kept)
    module = slim(captured, analysis, plan)
    assert verify(captured, analysis, plan, module).slimmed > 5
    module.train()(images(4)).sum().backward()
    assert module.eval()(images(1)).shape == (1, 4)


def test_another_block_than_the_plans_is_noticed():
    captured, analysis = analysed(small_resnet(), images())
    first, _, third = (block.addition for block in find_blocks(captured.module, analysis))
    module = slim(captured, analysis, whole(analysis, (first,)))
    with pytest.raises(VerificationError, match="masked original"):
        verify(captured, analysis, whole(analysis, (third,)), module)


def test_a_plan_for_another_model_is_refused():
    captured, analysis = analysed(small_resnet(), images())
    with pytest.raises(PlanMismatch, match="drops the block 'add_9'"):
        slim(captured, analysis, whole(analysis, ("add_9",)))


def test_of_nested_blocks_the_inner_ones_may_go():
    def run(s, x):
        y = s.a(x)
        y = y + s.b(y)
        return x + s.c(y)

    assert places(run, a=conv(), b=conv(), c=conv()) == ["b"]


def test_of_a_sum_of_branches_each_may_go():
    assert places(lambda s, x: x + s.a(x) + s.b(x), a=conv(), b=conv()) == ["a", "b"]


def test_a_branch_that_is_read_elsewhere_stays():
    def run(s, x):
        y = s.a(x)
        return x + y, y.mean((2, 3))

    assert places(run, a=conv()) == []


def test_a_branch_that_would_leave_an_input_unused_stays():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(), conv()

        def forward(self, x, y):
            return self.a(x) + self.b(y)

    captured, analysis = analysed(Two(), (torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)))
    assert find_blocks(captured.module, analysis) == ()


def test_a_skip_of_another_shape_stays():
    assert places(lambda s, x: s.a(x) + x.mean((2, 3), keepdim=True), a=conv()) == []


def test_a_skip_of_another_precision_stays():
    def run(s, x):
        return s.b(s.a(x.float()) + x)

    assert places(run, torch.randn(2, 4, 6, 6).half(), a=conv(), b=conv()) == []


def test_a_parameter_that_is_added_is_no_block():
    assert places(lambda s, x: s.a(x) + s.p, a=conv(), p=nn.Parameter(torch.randn(4, 6, 6))) == []


def test_a_branch_that_writes_into_the_skip_stays():
    assert places(lambda s, x: (y := s.b(x)) + s.a(F.relu_(y)), a=conv(), b=conv()) == []


def test_what_is_written_into_the_sum_does_not_reach_the_skip():
    def run(s, x):
        y = s.a(x)
        z = s.b(y)
        z += y
        return F.relu_(z) + 2 * y

    torch.manual_seed(0)
    model = Model(run, a=conv(), b=conv()).eval()
    x = torch.randn(2, 4, 6, 6)
    y = model.a(x)
    torch.testing.assert_close(without(model, x, "b")(x), torch.relu(y) + 2 * y)


def test_a_layer_that_others_use_as_well_stays_with_them():
    torch.manual_seed(0)
    model = Model(lambda s, x: s.a((y := s.b(x)) + s.c(s.a(y))), a=conv(), b=conv(), c=conv())
    x = torch.randn(2, 4, 6, 6)
    module = without(model.eval(), x, "c")
    torch.testing.assert_close(module(x), model.a(model.b(x)))
