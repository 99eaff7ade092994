"""Every architecture of transformers' image-text-to-text mapping, and what its tiny config needs but small sizes.

A row of the census is an architecture as its config comes, or a variant of it: one setting that changes what its
decoder layers do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers

from tests.census.shrink import HEAD, LAYERS, TOWER, merged, shrink
from tests.families import END, HIDDEN, IMAGE, PAD, START, VOCAB
from tests.tiny import randomise


@dataclass(frozen=True)
class Architecture:
    """One row of the census.

    Attributes:
        name: its key in the mapping, and the variant behind a colon.
        model: the model's class.
        changes: settings beside the small sizes; `...` takes one out.
        pictures: one of `tests.census.pictures.KINDS`; None for the one that the forward's arguments show.
        tokens: how many a picture stands for; None to count the features that the model makes of it.
        text: `model_type` of another language model than its config's own.
    """

    name: str
    model: str
    changes: dict[str, Any] = field(default_factory=dict, compare=False)
    pictures: str | None = None
    tokens: int | None = None
    text: str | None = None

    @property
    def key(self) -> str:
        """Its key in the mapping."""
        return self.name.split(":")[0]

    def config(self) -> Any:
        """Its tiny config."""
        import transformers
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        kind = getattr(transformers, self.model).config_class
        try:
            settings = shrink(kind().to_dict())
        except ValueError:  # a config that is nothing without its parts
            settings = {}
        settings.pop("model_type", None)
        if self.text is not None:
            settings["text_config"] = shrink(CONFIG_MAPPING[self.text]().to_dict())
        return kind(**merged(settings, self.changes))

    def build(self, seed: int = 0) -> Any:
        """Its tiny model with seeded weights, in fp32 and eval mode; generation never stops early."""
        import transformers

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = getattr(transformers, self.model)(self.config()).eval()
        randomise(model, seed)
        if model.can_generate():
            model.generation_config.eos_token_id = None
            model.generation_config.pad_token_id = PAD
        return model


_HALF = HEAD // 2


def _mrope(*sections: int, **more: Any) -> dict[str, Any]:
    return {"text_config": {"rope_parameters": {"mrope_section": list(sections), **more}}}


_MROPE = _mrope(4, 2, 2)
_VQ = {
    "base_channels": 32,
    "channel_multiplier": [1, 2],
    "resolution": 16,
    "num_embeddings": 16,
    "codebook_size": 16,
    "attn_resolutions": [],
}
#: Chameleon and Emu3 name the tokens of their discrete images.
_CODES = {f"IMGIMG{'ABCDEFGHIJ'[code // 10]}{'ABCDEFGHIJ'[code % 10]}Z": 3 + code for code in range(16)}
_MARKS = {"vision_start_token_id": START, "vision_end_token_id": END}
_TILES = {"image_grid_pinpoints": [[16, 16]]}
_TEXT = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "layer_types": ["full_attention"] * LAYERS,
}
_OPT = {"text_config": {"word_embed_proj_dim": HIDDEN}}
_OMNI_AUDIO = {
    "encoder_layers": 1,
    "d_model": 32,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "output_dim": HIDDEN,
}

_CHANGES: dict[str, dict[str, Any]] = {
    "aria": {"projector_patch_to_query_dict": {16: 4}, "max_value_projector_patch_to_query_dict": 4},
    "chameleon": {"vocabulary_map": {"<image>": IMAGE, **_CODES}, "vq_config": _VQ},
    "cohere_compass": {
        "text_config": {
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 4]}
            }
        }
    },
    "blip-2": {"num_query_tokens": 4, **_OPT},
    "instructblip": {"num_query_tokens": 4, **_OPT},
    "instructblipvideo": {"num_query_tokens": 4, **_OPT},
    "deepseek_vl_hybrid": {"high_res_vision_config": {"global_attn_indexes": [0]}},
    "deepseek_ocr2": {
        "vision_config": {"sam_config": {"downsample_channels": [16, TOWER], "global_attn_indexes": [1]}},
        "text_config": {
            "num_experts_per_tok": 2,
            "mlp_layer_types": ["dense", "sparse", "sparse", "dense", "sparse"],
        },
    },
    "diffusion_gemma": {
        "vision_config": {"model_type": "gemma4_vision", "hidden_size": TOWER},
        "text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
    },
    "emu3": {
        "vocabulary_map": {
            "<image>": IMAGE,
            "<|extra_200|>": 2,
            **{f"<|visual token {code:06d}|>": 3 + code for code in range(16)},
        },
        "vq_config": {**_VQ, "hidden_size": HIDDEN},
    },
    "ernie4_5_vl_moe": {
        "text_config": {
            "moe_intermediate_size": [32, 16],
            "moe_num_experts": 4,
            "moe_k": 2,
            **_mrope(3, 3, 2)["text_config"],
        }
    },
    "fast_vlm": {"vision_config": {"architecture": "fastvit_t8", "hidden_size": 768}},
    "gemma4_unified": {"vision_config": {}},
    "internvl": {"vision_config": {"use_absolute_position_embeddings": True}},
    "janus": {"vq_config": {"base_channels": 32, "channel_multiplier": [1, 2]}},
    "kimi_k25": {
        "projection_hidden_size": TOWER,
        "text_config": {"head_dim": 8, "num_key_value_heads": 4, "n_group": 1, "topk_group": 1},
    },
    "step3p7": {"text_config": {"sliding_window": 6}},
    "muse_glimmer": {"out_hidden_size": 4 * TOWER, "text_config": {"layer_rope_theta": [1e4, 0] * 2 + [1e4]}},
    "paddleocr_vl": _MROPE,
    "perception_lm": {
        "vision_config": {
            "architecture": "vit_tiny_patch16_224",
            "do_pooling": False,
            "model_args": {
                "embed_dim": TOWER,
                "depth": 2,
                "num_heads": 2,
                "img_size": [16, 16],
                "patch_size": 4,
                "global_pool": "",
            },
        }
    },
    "qwen4_exp": {
        "text_config": {
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": HEAD,
            "indexer_budget": 8,
            "indexer_compress_ratio": 2,
        }
    },
    "gemma3": {"vision_config": {"vision_use_head": False}, "mm_tokens_per_image": 4},
    "florence2": {"vision_config": {"embed_dim": [8, 16, 16, TOWER], "projection_dim": HIDDEN}},
    "t5gemma2": {"encoder": {"text_config": _TEXT}, "decoder": _TEXT},
    "vipllava": {"vision_feature_layers": [-2, -1]},
    "vision-encoder-decoder": {
        "encoder": {"model_type": "vit", "hidden_size": TOWER, "num_hidden_layers": 1, "num_attention_heads": 2},
        "decoder": {"model_type": "gpt2", "n_embd": HIDDEN, "n_layer": 1, "n_head": 2, "vocab_size": VOCAB},
    },
    "shieldgemma2": {"vision_config": {"vision_use_head": False}, "mm_tokens_per_image": 4},
    "gemma3n": {
        "text_config": {
            "intermediate_size": [96] * LAYERS,
            "activation_sparsity_pattern": [0.0] * LAYERS,
            "num_kv_shared_layers": 2,
        },
        "vision_config": {"architecture": "mobilenetv3_small_050"},
    },
    "gemma4": {
        "text_config": {"hidden_size_per_layer_input": 8},
        "vision_config": {"model_type": "gemma4_vision", "hidden_size": TOWER},
    },
    "glm46v": _MROPE,
    "glm4v": _MROPE,
    "glm4v_moe": _mrope(2, 1, 1),
    "glm5_next": {"text_config": {"num_key_value_heads": 4, "index_topk": 4, "index_kpool": 2}},
    "glm_ocr": _MROPE,
    "glmga": _MROPE,
    "granite4_vision": {
        "text_config": {"model_type": "granite4_vision_text"},
        "deepstack_layer_map": [[-1, 1]],
        "spatial_target_layers": [0, 2, 3, 4],
        "downsample_rate": "1/2",
        "vision_feature_select_strategy": "full",
        **_TILES,
    },
    "hunyuan_vl": {"text_config": {"head_dim": HEAD, **_mrope(2, 2, 2, 2)["text_config"]}},
    "idefics2": {"perceiver_config": {"resampler_n_latents": 4}},
    "llama4": {
        "vision_config": {
            "intermediate_size": 4 * TOWER,
            "vision_output_dim": TOWER,
            "projector_input_dim": TOWER,
            "projector_output_dim": TOWER,
        }
    },
    "llava_next": _TILES,
    "llava_next_video": _TILES,
    "llava_onevision": _TILES,
    "qwen2_5_vl": _MROPE,
    "qwen2_vl": {**_MROPE, "vision_config": {"embed_dim": TOWER, "hidden_size": HIDDEN, "mlp_ratio": 1}},
    "qwen2_5_omni_thinker": {**_MROPE, "audio_config": _OMNI_AUDIO, **_MARKS},
    "qwen3_omni_moe_thinker": {**_MROPE, "audio_config": _OMNI_AUDIO, **_MARKS},
    "minimax_m3_vl": {"projector_hidden_size": HIDDEN, "merged_hidden_size": 4 * HIDDEN},
}
_PICTURES: dict[str, str] = {
    "idefics2": "listed",
    "idefics3": "listed",
    "smolvlm": "listed",
    "lighton_ocr": "sized",
    "mistral3": "sized",
    "emu3": "sized",
    "llava_next": "tiles",
    "llava_next_video": "tiles",
    "granite4_vision": "tiles",
    "llava_onevision": "tiles",
    "perception_lm": "tiles_only",
    "lfm2_vl": "patches",
    "kimi_k25": "grid_images",
    "fuyu": "image_patches",
    "video_llama_3": "grid_merged",
    "video_llava": "images",
    "gemma4": "positioned",
    "gemma4_unified": "positioned",
    "paddleocr_vl": "grid_images",
    "deepseek_vl_hybrid": "two_sizes",
    "muse_glimmer": "grid",
    "instructblip": "questioned",
    "instructblipvideo": "questioned_frames",
}
_TOKENS = {"blip-2": 4, "instructblip": 4, "instructblipvideo": 8, "granite4_vision": 10}

_VARIANTS: dict[str, dict[str, Any]] = {
    "gemma3:soft-capped logits": {"text_config": {"final_logit_softcapping": 3.0}},
    "gemma4:mixture of experts": {
        "text_config": {
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 32,
        }
    },
    "gemma4:no input per layer": {"text_config": {"hidden_size_per_layer_input": 0}},
    "gemma4:shared keys": {"text_config": {"num_kv_shared_layers": 2}},
    "lfm2_vl:convolutions": {
        "text_config": {"layer_types": ["conv", "full_attention", "conv", "conv", "full_attention"]}
    },
    "llama4:chunks shorter than the prompt": {"text_config": {"attention_chunk_size": 4}},
    "minimax_m3_vl:sparse attention": {
        "text_config": {"layer_types": ["full_attention"] + ["minimax_m3_sparse"] * 4}
    },
    "step3p7:sliding windows": {
        "text_config": {"layer_types": ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]}
    },
}


#: Variants with another language model: what reads the image is LLaVA's, the decoder layers are not.
_TEXTS = {f"llava:{text}": text for text in ("falcon_h1", "gemma2", "glm4", "gpt_oss")}

#: Architectures whose vision tower is timm's.
NEED_TIMM = ("fast_vlm", "gemma3n", "perception_lm")


def mapping() -> dict[str, str]:
    """transformers' image-text-to-text mapping: key -> the model's class."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return dict(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def architecture(name: str) -> Architecture:
    """One row of the census; the test is skipped where the release of transformers has no such architecture."""
    found = next((row for row in architectures() if row.name == name), None)
    return found or pytest.skip(f"transformers {transformers.__version__} has no {name}")


def architectures() -> list[Architecture]:
    """The rows of the census, by name."""
    models = mapping()
    names = [*models, *(name for name in (*_VARIANTS, *_TEXTS) if name.split(":")[0] in models)]
    rows = []
    for name in sorted(names):
        key = name.split(":")[0]
        changes = merged({} if name in _TEXTS else _CHANGES.get(key, {}), _VARIANTS.get(name, {}))
        rows.append(
            Architecture(name, models[key], changes, _PICTURES.get(key), _TOKENS.get(key), _TEXTS.get(name))
        )
    return rows
