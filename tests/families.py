"""Configs of the tiny models, a function a family."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

VOCAB = 128
PAD, BOS, EOS = 0, 1, 2
TEXT_IDS = range(3, 110)
IMAGE, VIDEO, START, END, FAKE, ROW_MARK, GLOBAL_MARK = range(120, 127)
HIDDEN = 64

#: A text config's settings and the sliding window -> the model's config.
Make = Callable[[dict[str, Any], int], Any]

_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
}
_GRID_TOWER = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": HIDDEN,
}
_COMMON: dict[str, Any] = {"tie_word_embeddings": False}
_IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
_MARKS = {"vision_start_token_id": START, "vision_end_token_id": END}


def config_of(family: str, layers: int, window: int, text: dict[str, Any]) -> tuple[str, Any]:
    """The name of a family's model class, and a config.

    Args:
        family: one of `FAMILIES`.
        layers: number of decoder layers.
        window: sliding window of Gemma3.
        text: overrides of the text config.
    """
    if family not in _MAKE:
        raise ValueError(f"unknown family {family!r}; expected one of {', '.join(FAMILIES)}")
    name, make = _MAKE[family]
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        **text,
    }
    return name, make(settings, window)


def _without_head_dim(text: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in text.items() if name != "head_dim"}


def _rope(text: dict[str, Any], share: int = 1, **more: Any) -> dict[str, Any]:
    width = text["hidden_size"] // text["num_attention_heads"]
    sections = [width // 4 // share, *[width // 8 // share] * 2]
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections, **more}


def _qwen2_5_vl(text: dict[str, Any], window: int) -> Any:
    from transformers import Qwen2_5_VLConfig

    text = {**_without_head_dim(text), "rope_parameters": _rope(text)}
    vision = {**_GRID_TOWER, "window_size": 16, "fullatt_block_indexes": [1]}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_IDS, **_MARKS, **_COMMON)


def _qwen3_vl(text: dict[str, Any], window: int) -> Any:
    from transformers import Qwen3VLConfig

    text = {**text, "rope_parameters": _rope(text, mrope_interleaved=True)}
    vision = {**_GRID_TOWER, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    return Qwen3VLConfig(text_config=text, vision_config=vision, **_IDS, **_MARKS, **_COMMON)


def _glm4v(text: dict[str, Any], window: int) -> Any:
    from transformers import Glm4vConfig

    text = {**_without_head_dim(text), "rope_parameters": _rope(text, 2, partial_rotary_factor=0.5)}
    markers = {"image_start_token_id": START, "image_end_token_id": END}
    videos = {"video_start_token_id": FAKE, "video_end_token_id": ROW_MARK}
    vision = {**_GRID_TOWER, "image_size": 16}
    return Glm4vConfig(text_config=text, vision_config=vision, **_IDS, **markers, **videos, **_COMMON)


def _llava(text: dict[str, Any], window: int) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    return LlavaConfig(
        text_config=LlamaConfig(**text),
        vision_config=CLIPVisionConfig(**_TOWER, image_size=12),
        image_token_index=IMAGE,
        **_COMMON,
    )


def _llava_onevision(text: dict[str, Any], window: int) -> Any:
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    return LlavaOnevisionConfig(
        text_config=Qwen2Config(**_without_head_dim(text)),
        vision_config=SiglipVisionConfig(**_TOWER, image_size=8, vision_use_head=False),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[8, 8]],
        **_COMMON,
    )


def _internvl(text: dict[str, Any], window: int) -> Any:
    from transformers import InternVLConfig, InternVLVisionConfig, Qwen2Config

    return InternVLConfig(
        text_config=Qwen2Config(**_without_head_dim(text)),
        vision_config=InternVLVisionConfig(**_TOWER, image_size=16),
        image_token_id=IMAGE,
        image_seq_length=4,
        **_COMMON,
    )


def _idefics(kind: str, text: dict[str, Any], window: int) -> Any:
    import transformers

    return getattr(transformers, kind)(
        text_config={**text, "model_type": "llama"},
        vision_config={**_TOWER, "image_size": 16},
        scale_factor=2,
        image_token_id=IMAGE,
        pad_token_id=PAD,
        **_COMMON,
    )


def _gemma3(text: dict[str, Any], window: int) -> Any:
    from transformers import Gemma3Config

    layers = text["num_hidden_layers"]
    kinds = ["sliding_attention", "full_attention"] * layers
    return Gemma3Config(
        text_config={**text, "sliding_window": window, "layer_types": kinds[:layers], "query_pre_attn_scalar": 16},
        vision_config={**_TOWER, "image_size": 16, "vision_use_head": False},
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
        **_COMMON,
    )


def _paligemma(text: dict[str, Any], window: int) -> Any:
    from transformers import GemmaConfig, PaliGemmaConfig, SiglipVisionConfig

    return PaliGemmaConfig(
        text_config=GemmaConfig(**text),
        vision_config=SiglipVisionConfig(**_TOWER, image_size=8, vision_use_head=False),
        image_token_index=IMAGE,
        projection_dim=HIDDEN,
        hidden_size=HIDDEN,
        **_COMMON,
    )


#: Family -> its model's class, and what makes its config.
_MAKE: dict[str, tuple[str, Make]] = {
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", _qwen2_5_vl),
    "qwen3_vl": ("Qwen3VLForConditionalGeneration", _qwen3_vl),
    "llava": ("LlavaForConditionalGeneration", _llava),
    "llava_onevision": ("LlavaOnevisionForConditionalGeneration", _llava_onevision),
    "internvl": ("InternVLForConditionalGeneration", _internvl),
    "idefics3": ("Idefics3ForConditionalGeneration", partial(_idefics, "Idefics3Config")),
    "smolvlm": ("SmolVLMForConditionalGeneration", partial(_idefics, "SmolVLMConfig")),
    "gemma3": ("Gemma3ForConditionalGeneration", _gemma3),
    "glm4v": ("Glm4vForConditionalGeneration", _glm4v),
    "paligemma": ("PaliGemmaForConditionalGeneration", _paligemma),
}
FAMILIES = tuple(_MAKE)
