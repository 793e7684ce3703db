"""One small member of every family of torchvision: captured, slimmed at random, verified."""

import inspect
from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from torchvision.models.detection import (
    FCOS,
    FasterRCNN,
    KeypointRCNN,
    MaskRCNN,
    RetinaNet,
    ssdlite320_mobilenet_v3_large,
)
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

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


@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "convnext_tiny", "densenet121"],
)
def test_both_ways_of_capture_find_the_same_groups(name):
    model = build(name, 64)
    x = torch.randn(2, 3, 64, 64)
    traced = infer(capture(model, x))
    module, inputs = capture_by_export(model, (x,), {})
    exported = infer(type(capture(model, x))(module, inputs, "torch.export"))
    assert {g.name: g.members for g in exported.groups} == {
        g.name: g.members for g in traced.groups
    }


# Name and shape of the input: all of their parameters lie in groups.
OTHERS = {
    "fcn_resnet50": (2, 3, 33, 33),
    "deeplabv3_mobilenet_v3_large": (2, 3, 33, 33),
    "lraspp_mobilenet_v3_large": (2, 3, 33, 33),
    "r3d_18": (1, 3, 4, 32, 32),
    "mc3_18": (1, 3, 4, 32, 32),
    "r2plus1d_18": (1, 3, 4, 32, 32),
}


@pytest.mark.parametrize("name", OTHERS)
def test_segmentation_and_video_are_slimmed_and_equal_their_masked_originals(name):
    verified(other(name), (torch.randn(OTHERS[name]),), 0.999)


def test_video_transformers_are_slimmed_and_equal_their_masked_originals():
    """The smallest networks of these classes: the published ones take minutes."""
    block = torchvision.models.video.mvit.MSBlockConfig
    blocks = [
        block(1, 16, 32, (3, 3, 3), (3, 3, 3), (1, 1, 1), (1, 2, 2)),
        block(2, 32, 32, (3, 3, 3), (3, 3, 3), (1, 2, 2), (1, 1, 1)),
    ]
    clip = (torch.randn(1, 3, 4, 32, 32),)
    # The second version has relative positions, pools residuals, and projects after attention.
    for second in (False, True):
        torch.manual_seed(0)
        model = torchvision.models.video.MViT(
            (32, 32), 4, blocks, second, not second, second, second, num_classes=5
        )
        verified(model.eval(), clip, 0.9)
    model = torchvision.models.video.SwinTransformer3d(
        [2, 4, 4], 12, [2, 2], [2, 4], [4, 4, 4], num_classes=5
    )
    verified(model.eval(), clip, 0.9)


def test_optical_flow_is_slimmed_and_equals_its_masked_original():
    model = other("raft_small")
    frames = {f"image{i}": torch.rand(1, 3, 128, 128) for i in (1, 2)}
    verified(model, {**frames, "num_flow_updates": 2}, 0.99)


def on_resnet18(kind, **arguments):
    """A detector as it is published, on a smaller backbone."""
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    return kind(backbone, num_classes=4, min_size=64, max_size=80, **arguments)


# How each is built, children that must have been captured, and the least prunable share.
RCNN = {"box_detections_per_img": 1, "rpn_post_nms_top_n_test": 3}
SMALL = {"weights": None, "weights_backbone": None}
DETECTORS = {
    "Faster R-CNN": (partial(on_resnet18, FasterRCNN, **RCNN), {"backbone", "rpn.head"}, 0.97),
    "Mask R-CNN": (partial(on_resnet18, MaskRCNN, **RCNN), {"roi_heads.mask_head"}, 0.97),
    "Keypoint R-CNN": (partial(on_resnet18, KeypointRCNN, **RCNN), {"roi_heads.box_head"}, 0.97),
    "RetinaNet": (partial(on_resnet18, RetinaNet), {"backbone", "head"}, 0.999),
    "FCOS": (partial(on_resnet18, FCOS), {"backbone", "head"}, 0.999),
    "SSDlite": (partial(ssdlite320_mobilenet_v3_large, **SMALL), {"backbone", "head"}, 0.99),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_is_slimmed_around_its_glue(name):
    make, children, prunable = DETECTORS[name]
    torch.manual_seed(0)
    model = make().eval()
    images = [torch.rand(3, 60, 70), torch.rand(3, 50, 44)]
    module, verification = verified(model, (images,), prunable)
    assert children <= set(module.interfaces)
    assert verification.whole_error is None or verification.whole_error < 1e-6
    assert set(module.state_dict()) == set(model.state_dict())
    with torch.no_grad():
        found = module([torch.rand(3, 88, 90), torch.rand(3, 70, 99), torch.rand(3, 88, 90)])
    assert found[0].keys() >= {"boxes", "labels", "scores"}
    losses = module.train()(images, [target(image) for image in images])
    sum(losses.values()).backward()
    trained = [p for p in module.parameters() if p.requires_grad]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained)


def other(name, **arguments):
    """A model that is no classifier, with random weights, in evaluation mode."""
    torch.manual_seed(0)
    builder = torchvision.models.get_model_builder(name)
    names = inspect.signature(builder).parameters
    if "weights_backbone" in names:
        arguments["weights_backbone"] = None
    return builder(weights=None, **arguments).eval()


def target(image):
    """One object in the middle of `image`, with everything that a detector may ask for."""
    _, height, width = image.shape
    box = torch.tensor([[4.0, 5.0, width - 8.0, height - 9.0]])
    return {
        "boxes": box,
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, height, width, dtype=torch.uint8),
        "keypoints": torch.full((1, 17, 3), 20.0),
    }


def verified(model, inputs, prunable):
    """Slimmed at random and verified; what is left is smaller and runs."""
    captured = capture(model, inputs)
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
    return module, verification
