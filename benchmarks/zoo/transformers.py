"""Small members of families of transformers, made from configurations written here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks.zoo import Build, Built

Inputs = Callable[[], dict[str, Any]]

TEXT = {
    "vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 64,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "image_size": 64, "patch_size": 16,
}  # fmt: skip
SOUND = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "conv_dim": [16, 16, 16], "conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 2],
    "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 16,
}  # fmt: skip


def tokens() -> dict[str, Tensor]:
    """Two sentences of twelve words."""
    return {"input_ids": torch.randint(3, 100, (2, 12))}


def masked_tokens() -> dict[str, Tensor]:
    """Two sentences of twelve words, of which the second is shorter."""
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, 9:] = 0
    return {**tokens(), "attention_mask": mask}


def both_sides() -> dict[str, Tensor]:
    """A sentence, and the beginning of its translation."""
    return {**tokens(), "decoder_input_ids": torch.randint(3, 100, (2, 7))}


def image(side: int = 64) -> dict[str, Tensor]:
    """Two images."""
    return {"pixel_values": torch.randn(2, 3, side, side)}


def sound(samples: int = 4000) -> dict[str, Tensor]:
    """Two pieces of sound."""
    return {"input_values": torch.randn(2, samples)}


def spectrogram() -> dict[str, Tensor]:
    """Two spectrograms of 16 mel bands."""
    return {"input_features": torch.randn(2, 16, 60)}


def build(kind: str, config: str, settings: Mapping[str, Any], inputs: Inputs) -> Built:
    """The model `kind` with random weights; it returns no cache of its past."""
    given = getattr(transformers, config)(**settings)
    if hasattr(given, "use_cache"):
        given.use_cache = False
    model = getattr(transformers, kind)(given)
    return model.eval(), inputs()


def entry(kind: str, config: str, settings: Mapping[str, Any], inputs: Inputs) -> Build:
    """A row of the table below."""
    return partial(build, kind, config, settings, inputs)


def text(kind: str, config: str, inputs: Inputs = masked_tokens, **settings: Any) -> Build:
    """A model of sentences with the usual names of its sizes."""
    return entry(kind, config, {**TEXT, **settings}, inputs)


def vision(kind: str, config: str, **settings: Any) -> Build:
    """A model of images with the usual names of its sizes."""
    return entry(kind, config, {**VISION, **settings}, image)


STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}

MODELS: Mapping[str, Build] = {
    "bert": text("BertForSequenceClassification", "BertConfig"),
    "bert_mlm": text("BertForMaskedLM", "BertConfig"),
    "roberta": text("RobertaForSequenceClassification", "RobertaConfig"),
    "albert": text("AlbertForSequenceClassification", "AlbertConfig", embedding_size=16),
    "electra": text("ElectraForTokenClassification", "ElectraConfig", embedding_size=16),
    "distilbert": entry(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"vocab_size": 120, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
        masked_tokens,
    ),
    "deberta_v2": text("DebertaV2ForSequenceClassification", "DebertaV2Config"),
    "deberta_v2_relative": text(
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
    ),
    "mpnet": text("MPNetForSequenceClassification", "MPNetConfig"),
    "modernbert": text("ModernBertForSequenceClassification", "ModernBertConfig", pad_token_id=0),
    "gpt2": entry(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 120, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        tokens,
    ),
    "llama": text("LlamaForCausalLM", "LlamaConfig", tokens, num_key_value_heads=2),
    "mistral": text("MistralForCausalLM", "MistralConfig", tokens, num_key_value_heads=2),
    "qwen3": text("Qwen3ForCausalLM", "Qwen3Config", tokens, num_key_value_heads=2, head_dim=8),
    "opt": entry(
        "OPTForCausalLM",
        "OPTConfig",
        {
            "vocab_size": 120,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "ffn_dim": 64,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 32,
        },
        masked_tokens,
    ),
    "t5_encoder": entry(
        "T5EncoderModel",
        "T5Config",
        {"vocab_size": 120, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
        masked_tokens,
    ),
    "t5": entry(
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": 120, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
        both_sides,
    ),
    "mamba": entry(
        "MambaForCausalLM",
        "MambaConfig",
        {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        tokens,
    ),
    "vit": vision("ViTForImageClassification", "ViTConfig"),
    "deit": vision("DeiTForImageClassification", "DeiTConfig"),
    "beit": vision("BeitForImageClassification", "BeitConfig", use_relative_position_bias=True),
    "dinov2": vision("Dinov2ForImageClassification", "Dinov2Config"),
    "clip_vision": vision("CLIPVisionModel", "CLIPVisionConfig"),
    "siglip_vision": vision("SiglipVisionModel", "SiglipVisionConfig"),
    "clip_text": text("CLIPTextModel", "CLIPTextConfig", tokens),
    "swin": entry(
        "SwinForImageClassification",
        "SwinConfig",
        {
            "image_size": 64,
            "patch_size": 4,
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
        image,
    ),
    "swinv2": entry(
        "Swinv2ForImageClassification",
        "Swinv2Config",
        {
            "image_size": 64,
            "patch_size": 4,
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
        image,
    ),
    "convnextv2": entry("ConvNextV2ForImageClassification", "ConvNextV2Config", STAGES, image),
    "convnext": entry("ConvNextForImageClassification", "ConvNextConfig", STAGES, image),
    "resnet": entry(
        "ResNetForImageClassification",
        "ResNetConfig",
        {**STAGES, "hidden_sizes": [16, 32, 48, 64], "embedding_size": 8},
        image,
    ),
    "regnet": entry(
        "RegNetForImageClassification",
        "RegNetConfig",
        {**STAGES, "hidden_sizes": [16, 32, 48, 64], "embedding_size": 8, "groups_width": 8},
        image,
    ),
    "segformer": entry(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "decoder_hidden_size": 16,
            "num_attention_heads": [1, 2, 3, 4],
        },
        image,
    ),
    "mobilevit": entry(
        "MobileViTForImageClassification",
        "MobileViTConfig",
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [8, 8, 16, 16, 16, 24, 64],
            "num_attention_heads": 4,
            "mlp_ratio": 2.0,
        },
        image,
    ),
    "mobilenet_v2": entry(
        "MobileNetV2ForImageClassification", "MobileNetV2Config", {"image_size": 64}, image
    ),
    "poolformer": entry(
        "PoolFormerForImageClassification",
        "PoolFormerConfig",
        {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]},
        image,
    ),
    "detr": entry(
        "DetrForObjectDetection",
        "DetrConfig",
        {
            "use_timm_backbone": False,
            "backbone": None,
            "backbone_config": {
                "model_type": "resnet",
                "hidden_sizes": [16, 32, 48, 64],
                "depths": [1, 1, 1, 1],
                "embedding_size": 8,
                "out_features": ["stage4"],
            },
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "num_queries": 10,
        },
        partial(image, 96),
    ),
    "yolos": vision(
        "YolosForObjectDetection", "YolosConfig", image_size=[64, 64], num_detection_tokens=5
    ),
    "dpt": vision(
        "DPTForDepthEstimation",
        "DPTConfig",
        num_hidden_layers=4,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 16, 24, 32],
        fusion_hidden_size=16,
    ),
    "whisper_encoder": entry(
        "WhisperForAudioClassification",
        "WhisperConfig",
        {
            "vocab_size": 120,
            "num_mel_bins": 16,
            "encoder_layers": 2,
            "decoder_layers": 1,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "d_model": 32,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_source_positions": 30,
            "max_target_positions": 20,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
            "classifier_proj_size": 16,
        },
        spectrogram,
    ),
    "wav2vec2": entry("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", SOUND, sound),
    "hubert": entry("HubertForSequenceClassification", "HubertConfig", SOUND, sound),
}
