"""One small member of each family of timm, and more of those that hold several kinds of network."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import timm
import torch

from benchmarks.zoo import Build, Built

CLASSES = 10
SIDE = 128

# The large ones among them are built with fewer layers, see `EXTRA`.
NAMES = """
beit_base_patch16_224 halonet26t botnet26t_256 eca_halonext26ts lambda_resnet26t
lamhalobotnet50ts_256 test_byobnet repvgg_b0 mobileone_s0 gernet_s cait_xxs24_224 coat_lite_mini
convit_tiny convmixer_768_32 test_convnext test_convnext2 test_convnext3 cpubone_nano
crossvit_tiny_240 csatv2 cs3darknet_s cs3darknet_focus_s cspresnet50 darknet17 cspnext_tiny
davit_tiny deit_tiny_patch16_224 deit_tiny_distilled_patch16_224 densenet121 dla34 dpn68
edgenext_xx_small edgenext_small efficientformer_l1 efficientformerv2_s0 test_efficientnet
test_efficientnet_gn test_efficientnet_ln test_efficientnet_evos tf_efficientnet_b0
mixnet_s efficientnet_lite0 mobilenetv4_conv_small mobilenetv4_hybrid_medium mnasnet_small
spnasnet_100 fbnetc_100 efficientvim_m1 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224
fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_050 ghostnetv2_100 ghostnetv3_050
hardcorenas_a hgnet_tiny hgnetv2_b0 hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small iformer_t
inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128
levit_conv_128s lowformer_b0 test_mambaout test_maxvit test_coatnet coatnet_pico_rw_224
maxvit_pico_rw_256 poolformer_s12 poolformerv2_s12 caformer_s18 convformer_s18
gmlp_s16_224 mixer_s32_224 resmlp_12_224 gmixer_12_224 tf_mobilenetv3_small_minimal_100 lcnet_035
mobilenetv3_small_050 mobilevit_xxs mobilevitv2_050 mvitv2_tiny nasnetalarge pnasnet5large nest_tiny
nextvit_small test_nfnet nf_regnet_b0 nf_resnet26 nf_ecaresnet26 dm_nfnet_f0 pit_xs_224
pit_xs_distilled_224 pvt_v2_b0 rdnet_tiny regnetv_040 regnetx_002 regnety_002 regnetz_005
repghostnet_050 repvit_m0_9 res2net50_14w_8s res2next50 resnest14d test_resnet resnet18 resnet14t
seresnext26d_32x4d ecaresnet26t gcresnext26ts resnetaa34d resnetblur18 resnetrs50 resnetv2_18
resnetv2_50x1_bit resnetv2_50d_gn resnetv2_50d_evos rexnet_100 rexnetr_100 selecsls42
legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs
swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_ns_224 tiny_vit_5m_224
tnt_s_patch16_224 tresnet_m twins_svt_small twins_pcpvt_small vgg11 vgg11_bn visformer_tiny test_vit
test_vit2 test_vit3 vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 test_vit_relpos
vit_srelpos_small_patch16_224 samvit_base_patch16 vitamin_small_224 volo_d1_224 vovnet39a
ese_vovnet19b_dw eca_vovnet39b xception xception41 xcit_nano_12_p16_224 naflexvit_base_patch16_gap
gemma4_vit_167m qwen3_vit_88m deepseek_vit_412m mobilenetv5_300m
""".split()  # noqa: SIM905  (a list of names reads better in rows)

EXTRA: Mapping[str, Mapping[str, Any]] = {
    "beit_base_patch16_224": {"depth": 3},
    "cait_xxs24_224": {"depth": 4},
    "naflexvit_base_patch16_gap": {"depth": 3},
    "samvit_base_patch16": {"depth": 3, "img_size": 256},
    "vit_srelpos_small_patch16_224": {"depth": 4},
    "deepseek_vit_412m": {"depth": 3},
    "gemma4_vit_167m": {"depth": 3},
    "qwen3_vit_88m": {"depth": 3},
    "xcit_nano_12_p16_224": {"depth": 4},
}
SIDES = {"samvit_base_patch16": 256}


def build(name: str) -> Built:
    """The model with random weights, and one image of a modest size that it takes."""
    model = timm.create_model(name, pretrained=False, num_classes=CLASSES, **EXTRA.get(name, {}))
    model = model.eval()
    given = model.pretrained_cfg
    channels, height, _ = given.get("input_size", (3, 224, 224))
    sides = [SIDES[name]] if name in SIDES else [SIDE, height]
    if given.get("fixed_input_size"):
        sides = [height]
    for side in sides:
        image = torch.randn(1, channels, side, side)
        try:
            with torch.no_grad():
                model(image)
        except Exception:  # not every model takes a small image
            continue
        return model, (image,)
    raise RuntimeError(f"runs on no image of side {sides}")


MODELS: Mapping[str, Build] = {name: partial(build, name) for name in NAMES}
