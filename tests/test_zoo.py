"""One small member of every family of torchvision: captured, slimmed at random, verified."""

import numpy as np
import pytest
import torch
import torchvision

import fxprune
from fxprune.passes.capture import capture
from fxprune.passes.export import capture_by_export
from fxprune.passes.frozen import prunable_share
from fxprune.passes.infer import infer
from fxprune.passes.slim import slim
from fxprune.passes.verify import verify

# Name, image size, and the least share of parameters that must lie in groups.
FAMILIES = [
    ("resnet18", 64, 0.999),
    ("resnext50_32x4d", 64, 0.999),
    ("vgg11_bn", 64, 0.999),
    ("mobilenet_v2", 64, 0.999),
    ("mobilenet_v3_small", 64, 0.999),
    ("mnasnet0_5", 64, 0.999),
    ("densenet121", 64, 0.999),
    ("efficientnet_b0", 64, 0.999),
    ("regnet_y_400mf", 64, 0.999),
    ("shufflenet_v2_x0_5", 64, 0.99),
    ("squeezenet1_1", 64, 0.99),
    ("googlenet", 64, 0.999),
    ("inception_v3", 107, 0.999),
    ("convnext_tiny", 64, 0.999),
    ("alexnet", 64, 0.999),
    ("vit_b_32", 64, 0.99),
    ("swin_t", 64, 0.99),
    ("swin_v2_t", 64, 0.99),
]


def build(name, size):
    torch.manual_seed(0)
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("vit"):
        extra["image_size"] = size
    return torchvision.models.get_model(name, weights=None, **extra).eval()


def random_plan(analysis, seed=0):
    """Between a fifth and all of the positions of every group, anywhere."""
    rng = np.random.default_rng(seed)
    kept = {}
    for group in analysis.groups:
        count = max(1, int(group.size * rng.uniform(0.2, 1.0)))
        kept[group.name] = tuple(sorted(rng.choice(group.size, count, replace=False).tolist()))
    return fxprune.Plan(kept, {group.name: group.size for group in analysis.groups})


@pytest.mark.parametrize(("name", "size", "prunable"), FAMILIES)
def test_a_family_is_slimmed_and_equals_its_masked_original(name, size, prunable):
    model = build(name, size)
    captured = capture(model, torch.randn(2, 3, size, size))
    analysis = infer(captured)
    assert prunable_share(analysis) >= prunable
    plan = random_plan(analysis)
    module = slim(captured, analysis, plan)
    verification = verify(captured, analysis, plan, module)
    assert verification.max_error < 1e-9
    assert verification.slimmed > 10
    dense = sum(p.numel() for p in captured.module.parameters())
    assert sum(p.numel() for p in module.parameters()) < 0.9 * dense
    assert set(module.state_dict()) <= set(model.state_dict())
    with torch.no_grad():
        assert module(torch.randn(1, 3, size, size)).shape == (1, 1000)
        assert module.train()(torch.randn(3, 3, size, size)).shape == (3, 1000)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_both_ways_of_capture_find_the_same_groups(name):
    model = build(name, 64)
    x = torch.randn(2, 3, 64, 64)
    traced = infer(capture(model, x))
    module, inputs = capture_by_export(model, (x,), {})
    exported = infer(type(capture(model, x))(module, inputs, "torch.export"))
    assert {g.name: g.members for g in exported.groups} == {
        g.name: g.members for g in traced.groups
    }
