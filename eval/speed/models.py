"""A random-weight Qwen2.5-VL of a real one's proportions, and prompts for it: speed does not ask for sense."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: Token ids; text tokens lie below them.
IMAGE, VIDEO, START, END = 1000, 1001, 1002, 1003


def random_qwen(
    layers: int = 28,
    hidden: int = 1536,
    ffn: int = 5120,
    heads: int = 12,
    kv_heads: int = 2,
    vocabulary: int = 32_000,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Any:
    """A `Qwen2_5_VLForConditionalGeneration` of 0.92 billion parameters by default, that never stops early.

    The vision tower is small, so that the language model is what is measured.
    """
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    width = hidden // heads // 2
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [width // 4, *[width * 3 // 8] * 2]}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "rope_parameters": rope,
            "max_position_embeddings": 4096,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_heads": 4,
            "out_hidden_size": hidden,
            "fullatt_block_indexes": [1],
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    return drawn(Qwen2_5_VLForConditionalGeneration, config, slice(IMAGE, END + 1), dtype, seed)


def drawn(kind: type[Any], config: Any, never: slice, dtype: torch.dtype, seed: int) -> Any:
    """A model with random weights that never stops early.

    Args:
        kind: its class.
        config: its config.
        never: token ids that it does not generate: an image's token would have no image.
        dtype: of its weights.
        seed: of the draw.
    """
    from transformers.initialization import no_init_weights

    # Weights are drawn once, below; rotary frequencies are buffers, computed in fp32 whatever the default.
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights():
            model = kind(config)
    finally:
        torch.set_default_dtype(default)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1)
            else:
                parameter.normal_(0, 0.02, generator=generator)
        model.get_output_embeddings().weight[never] = 0
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def describe(model: Any) -> dict[str, Any]:
    """What a result says of the model that was measured."""
    return {
        "class": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": model.config.get_text_config().num_hidden_layers,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
    }


def prompt(
    model: Any, batch: int, image_tokens: int = 600, text_tokens: int = 60, seed: int = 0
) -> dict[str, Tensor]:
    """`batch` prompts of one image and then `text_tokens` tokens, the image's end marker the first of them."""
    generator = torch.Generator().manual_seed(seed)
    rows = max(d for d in range(1, math.isqrt(image_tokens) + 1) if image_tokens % d == 0)
    grid = (1, 2 * rows, 2 * image_tokens // rows)  # in patches, four a token
    ids = torch.full((batch, 2 + image_tokens + text_tokens - 1), IMAGE)
    ids[:, 0], ids[:, 1 + image_tokens] = START, END
    ids[:, 2 + image_tokens :] = torch.randint(3, IMAGE, (batch, text_tokens - 1), generator=generator)
    vision = model.config.vision_config
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(batch * 4 * image_tokens, patch, generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).int(),
        "pixel_values": pixels.to(model.dtype),
        "image_grid_thw": torch.tensor([grid] * batch),
    }


def save_for_serving(model: Any, folder: Path) -> None:
    """Write a `random_qwen` with a tokenizer of one word a token and its image processor, as a server loads it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLProcessor, Qwen2VLImageProcessorPil
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    names = {IMAGE: "<|image_pad|>", VIDEO: "<|video_pad|>", START: "<|vision_start|>", END: "<|vision_end|>"}
    size = model.config.get_text_config().vocab_size
    vocabulary = {names.get(i, f"w{i}"): i for i in range(size)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="w0",
        pad_token="w0",
        eos_token="w1",
        extra_special_tokens={"image_token": names[IMAGE], "video_token": names[VIDEO]},
        additional_special_tokens=[names[START], names[END]],
    )
    vision = model.config.vision_config
    sizes = {"patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size}
    limits = {"shortest_edge": 1, "longest_edge": 2**24}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessorPil(**sizes, size=limits),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes),
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
