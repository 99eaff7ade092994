"""Untrained models of the zoo: tokenizer, chat template, and each family's config and processor.

Everything that differs between families is a `Family`; training, scoring and the cards know only its fields.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from eval.zoo.data import COLORS, SHAPES

IMAGE_SIZE = 64
IMAGE_TOKEN = "<image>"
PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
# The words of easy-VQA's questions and answers, then those of the paper's harvest prompt ("Describe what you
# see in this image.\nAnswer:"), which training never shows.
WORDS = (
    *("yes", "no", *SHAPES, *COLORS),
    *(
        "?",
        "a",
        "color",
        "contain",
        "does",
        "image",
        "in",
        "is",
        "not",
        "of",
        "present",
        "shape",
        "the",
        "there",
    ),
    *("what", "describe", "you", "see", "this", ".", "answer", ":"),
)
# BOS comes from the template and not from the tokenizer: rendering and tokenizing in one step or two, here or
# in vLLM, then gives the same ids.
CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<image>' -}}"
    "{%- elif part['type'] == 'text' -%}{{- part['text'] -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer: lower case, punctuation apart, unknown words `<unk>`, padding on the left."""
    specials = [PAD, BOS, EOS, UNK, IMAGE_TOKEN]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*specials, *WORDS])}, unk_token=UNK))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[^\w\s]"), "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


@dataclass(frozen=True)
class Family:
    """What training, saving and loading need to know of one architecture.

    Attributes:
        title: for the model card.
        build: an untrained model and its processor.
        vision: the module whose learning rate is the vision tower's.
        features: (model, pixels) -> vision features, shape (images, patches, width), for stage 0.
        pixels: (processor, images) -> what the model takes for them beside the token ids, as one tensor whose
            first axis is the image.
        notes: for `grounded` and `competing`, what was tried before this recipe, for the model card.
        rename: a tensor's name as transformers saves it -> its name in published checkpoints.
    """

    title: str
    build: Callable[[], tuple[PreTrainedModel, ProcessorMixin]]
    vision: Callable[[PreTrainedModel], torch.nn.Module]
    features: Callable[[PreTrainedModel, torch.Tensor], torch.Tensor]
    pixels: Callable[[ProcessorMixin, list], torch.Tensor]
    rename: Callable[[str], str]
    notes: dict[str, str]


def _llava() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    words = tokenizer()
    patch = 8
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            image_size=IMAGE_SIZE,
            patch_size=patch,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            projection_dim=64,
        ),
        text_config=LlamaConfig(
            vocab_size=len(words),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        ),
        image_token_index=words.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(IMAGE_SIZE // patch) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    processor = LlavaProcessor(
        # Squashed to a square rather than cropped: a shape may touch the border.
        image_processor=CLIPImageProcessorPil(
            size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            do_center_crop=False,
            crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},  # LlavaProcessor counts image tokens by it
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
        ),
        tokenizer=words,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, which "default" drops again
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
    )
    return LlavaForConditionalGeneration(config), processor


FAMILIES = {
    "llava": Family(
        title="LLaVA (CLIP vision tower, Llama decoder)",
        build=_llava,
        vision=lambda model: model.model.vision_tower,
        features=lambda model, pixels: model.model.vision_tower(pixels).last_hidden_state[:, 1:],
        pixels=lambda processor, images: processor.image_processor(images, return_tensors="pt")["pixel_values"],
        # transformers 5 drops `vision_model` when it saves a model that it built, keeps it when it saves one
        # that it loaded, and takes either; vLLM wants the published name
        rename=lambda name: re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name),
        notes={
            "grounded": "a first recipe (16 images a step with 4 questions each, 6 epochs) reached 95.4 % of the "
            "whole test split; more, smaller steps came in its place.",
            "competing": "a first run at a learning rate of 5e-4 came out a little low on the test split (79.0 % "
            "of the whole, 57.7 % balanced); the rate was then settled on 250 train images.",
        },
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
