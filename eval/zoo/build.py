"""Untrained models of the zoo: each family's config and processor, and how its files are written.

Everything that differs between families is a `Family`; training, scoring and the cards know only its fields.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
)

from eval.zoo.words import chat_template, tokenizer

IMAGE_SIZE = 64
PATCH = 8
#: Patches a side; Qwen2.5-VL and Idefics3 make one token of each two by two.
GRID = IMAGE_SIZE // PATCH
MERGE = 2
# About 1 / sqrt(width). The usual 0.02 is made for widths in the thousands; here it leaves attention flat, and
# the model blind for thousands of steps.
INITIAL = 0.08
NORMAL = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


@dataclass(frozen=True)
class Family:
    """What training, saving and loading need to know of one architecture.

    Attributes:
        title: for the model card.
        image: what the chat template writes for an image.
        build: an untrained model and its processor.
        vision: the module whose learning rate is the vision tower's.
        features: (model, `inputs`) -> vision features, shape (images, tokens, width), row by row, for stage 0.
        pixels: (processor, images) -> what the model takes for them beside the token ids, as one tensor whose
            first axis is the image.
        inputs: such a tensor -> the model's arguments.
        positions: (model, the processor's output for an image alone) -> positions, shape (axes, tokens).
        rename: a tensor's name as transformers saves it -> its name in published checkpoints.
        epochs: of stage 1, over the train images.
    """

    title: str
    image: str
    build: Callable[[], tuple[PreTrainedModel, ProcessorMixin]]
    vision: Callable[[PreTrainedModel], torch.nn.Module]
    features: Callable[[PreTrainedModel, Mapping[str, Any]], torch.Tensor]
    pixels: Callable[[ProcessorMixin, list[Any]], torch.Tensor]
    inputs: Callable[[torch.Tensor], dict[str, torch.Tensor]] = lambda pixels: {"pixel_values": pixels}
    positions: Callable[[PreTrainedModel, Mapping[str, Any]], torch.Tensor] = lambda _, alone: torch.arange(
        alone["input_ids"].shape[1]
    )[None]
    rename: Callable[[str], str] = lambda name: name
    epochs: int = 5


def _text(words: Any) -> dict[str, Any]:
    """What the families' decoders have in common."""
    return {
        "vocab_size": len(words),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        "initializer_range": INITIAL,
        **_ids(words),
    }


def _ids(words: Any) -> dict[str, Any]:
    return {name: getattr(words, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


TOWER = {
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": INITIAL,
}


def _llava() -> tuple[PreTrainedModel, ProcessorMixin]:
    words = tokenizer({"image_token": "<image>"})
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER, projection_dim=64),
        text_config=LlamaConfig(**_text(words)),
        image_token_index=words.image_token_id,
        image_seq_length=GRID**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        **_ids(words),
    )
    square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = LlavaProcessor(
        # Squashed to a square rather than cropped: a shape may touch the border.
        image_processor=CLIPImageProcessorPil(
            size=square,
            do_center_crop=False,
            crop_size=square,  # LlavaProcessor counts image tokens by it
            **NORMAL,
        ),
        tokenizer=words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, which "default" drops again
        chat_template=chat_template("<image>"),
        image_token="<image>",
    )
    return LlavaForConditionalGeneration(config), processor


QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def _qwen25vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    words = tokenizer(
        {
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
        }
    )
    text = _text(words)
    config = Qwen2_5_VLConfig(
        text_config={
            **text,
            # Of a head's 16 frequencies: time, height, width
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
        },
        vision_config={
            "depth": 3,
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": text["hidden_size"],
            "window_size": IMAGE_SIZE,
            "initializer_range": INITIAL,
            "fullatt_block_indexes": [0, 1, 2],
        },
        image_token_id=words.image_token_id,
        video_token_id=words.video_token_id,
        vision_start_token_id=words.vision_start_token_id,
        vision_end_token_id=words.vision_end_token_id,
        tie_word_embeddings=False,
        **_ids(words),
    )
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(
            # Areas: every image is scaled to 4,096 pixels, a square one to 64 x 64
            size={"shortest_edge": IMAGE_SIZE**2, "longest_edge": IMAGE_SIZE**2},
            patch_size=PATCH,
            merge_size=MERGE,
            **NORMAL,
        ),
        tokenizer=words,
        video_processor=_no_videos(),
        chat_template=chat_template(QWEN_IMAGE),
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def _no_videos() -> Any:
    from transformers import Qwen2VLVideoProcessor

    return Qwen2VLVideoProcessor(patch_size=PATCH, merge_size=MERGE, **NORMAL)


def _idefics3() -> tuple[PreTrainedModel, ProcessorMixin]:
    words = tokenizer(
        {
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",  # its processor adds it where it is missing
        }
    )
    config = Idefics3Config(
        text_config=LlamaConfig(**_text(words)),
        vision_config=TOWER,
        scale_factor=MERGE,
        image_token_id=words.image_token_id,
        tie_word_embeddings=False,
        **_ids(words),
    )
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(
            size={"longest_edge": IMAGE_SIZE},
            max_image_size={"longest_edge": IMAGE_SIZE},
            do_image_splitting=False,
            **NORMAL,
        ),
        tokenizer=words,
        image_seq_len=(GRID // MERGE) ** 2,
        chat_template=chat_template("<image>"),
    )
    return Idefics3ForConditionalGeneration(config), processor


def _pixel_values(processor: ProcessorMixin, images: list[Any]) -> torch.Tensor:
    return processor.image_processor(images, return_tensors="pt")["pixel_values"]


def _mrope(model: PreTrainedModel, alone: Mapping[str, Any]) -> torch.Tensor:
    return model.model.get_rope_index(alone["input_ids"], alone["mm_token_type_ids"], alone["image_grid_thw"])[0][
        :, 0
    ]


FAMILIES = {
    "llava": Family(
        title="LLaVA (CLIP vision tower, Llama decoder)",
        image="<image>",
        build=_llava,
        vision=lambda model: model.model.vision_tower,
        features=lambda model, inputs: model.model.vision_tower(**inputs).last_hidden_state[:, 1:],
        pixels=_pixel_values,
        # transformers 5 drops `vision_model` when it saves a model that it built, keeps it when it saves one
        # that it loaded, and takes either; vLLM wants the published name
        rename=lambda name: re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name),
    ),
    "qwen25vl": Family(
        title="Qwen2.5-VL (its own vision tower, Qwen2 decoder, M-RoPE)",
        image=QWEN_IMAGE,
        build=_qwen25vl,
        vision=lambda model: model.model.visual,
        features=lambda model, inputs: model.model.visual(
            inputs["pixel_values"], inputs["image_grid_thw"]
        ).pooler_output.unflatten(0, (-1, (GRID // MERGE) ** 2)),
        pixels=lambda processor, images: _pixel_values(processor, images).unflatten(0, (len(images), -1)),
        inputs=lambda pixels: {
            "pixel_values": pixels.flatten(0, 1),
            "image_grid_thw": torch.tensor([[1, GRID, GRID]]).repeat(len(pixels), 1),
        },
        positions=_mrope,
        epochs=3,
    ),
    "idefics3": Family(
        title="Idefics3 (SigLIP vision tower, Llama decoder)",
        image="<image>",
        build=_idefics3,
        vision=lambda model: model.model.vision_model,
        features=lambda model, inputs: (
            model.model.vision_model(inputs["pixel_values"].flatten(0, 1)).last_hidden_state
        ),
        pixels=lambda processor, images: _pixel_values(processor, [[image] for image in images]),
    ),
}


def save(family: Family, model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """Write model and processor: weights in fp16 under published names, to be computed with in fp32."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    weights = folder / "model.safetensors"
    tensors = {family.rename(name): tensor.half() for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    # Half the numbers are for the size of the clone only: fp16 is slow on CPUs, and `dtype="auto"`, which is
    # the default of transformers, follows this entry rather than the file.
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
