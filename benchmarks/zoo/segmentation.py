"""Encoders and decoders of segmentation-models-pytorch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import segmentation_models_pytorch as smp
import torch

from benchmarks.zoo import Build, Built

SIDE = 128
PAIRS = (
    ("Unet", "resnet18"),
    ("Unet", "mobilenet_v2"),
    ("Unet", "mit_b0"),
    ("UnetPlusPlus", "resnet18"),
    ("MAnet", "resnet18"),
    ("Linknet", "resnet18"),
    ("FPN", "resnet18"),
    ("FPN", "tu-mobilenetv3_small_050"),
    ("PSPNet", "resnet18"),
    ("PAN", "resnet18"),
    ("DeepLabV3", "resnet18"),
    ("DeepLabV3Plus", "timm-efficientnet-b0"),
    ("UPerNet", "resnet18"),
    ("Segformer", "mit_b0"),
)


def build(decoder: str, encoder: str) -> Built:
    """The model with random weights, and one image."""
    model = getattr(smp, decoder)(encoder, encoder_weights=None, classes=3)
    return model.eval(), (torch.randn(1, 3, SIDE, SIDE),)


MODELS: Mapping[str, Build] = {f"{d.lower()}_{e}": partial(build, d, e) for d, e in PAIRS}
