"""Tiny random models on disk with their processors, as vLLM loads them: heads of 32, for its CPU kernels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.tiny import END, IMAGE, START, VIDEO, VOCAB, randomise, tiny

NAMES = {IMAGE: "<|image_pad|>", VIDEO: "<|video_pad|>", START: "<|vision_start|>", END: "<|vision_end|>"}
#: What stands for one image in a prompt's text.
IMAGE_TEXT = "".join(NAMES[i] for i in (START, IMAGE, END))


def tokenizer() -> Any:
    """One word a token: token `i` is `w<i>`."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({NAMES.get(i, f"w{i}"): i for i in range(VOCAB)}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"w\d+"), "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="w0",
        pad_token="w0",
        bos_token="w1",
        eos_token="w2",
        extra_special_tokens={"image_token": NAMES[IMAGE], "video_token": NAMES[VIDEO]},
        additional_special_tokens=[NAMES[START], NAMES[END]],
        padding_side="left",
    )


def save(family: str, folder: Path) -> None:
    """Write `tiny(family)` and its processor."""
    import transformers as hf
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    model = tiny(family, num_attention_heads=2, num_key_value_heads=1, head_dim=32)
    model.config.get_text_config().bos_token_id = 1
    sizes: dict[str, Any] = {"patch_size": 4, "merge_size": 2}
    images = hf.Qwen2VLImageProcessorPil(**sizes, size={"shortest_edge": 64, "longest_edge": 4096})
    kinds = {
        "qwen2_5_vl": (hf.Qwen2_5_VLProcessor, Qwen2VLVideoProcessor),
        "qwen3_vl": (hf.Qwen3VLProcessor, Qwen3VLVideoProcessor),
    }
    make, videos = kinds[family]
    model.save_pretrained(folder)
    make(image_processor=images, tokenizer=tokenizer(), video_processor=videos(**sizes)).save_pretrained(folder)


def save_text(config: Any, folder: Path) -> None:
    """Write a random language model of a config, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    randomise(model)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def save_int8(source: Path, folder: Path) -> None:
    """Write a checkpoint with its language model's layers in int8 (W8A8): one scale a channel, one a token."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    tensors = load_file(source / "model.safetensors")
    for name in [n for n in tensors if "language_model" in n and n.endswith("_proj.weight")]:
        weight = tensors.pop(name)
        scale = weight.abs().amax(1, keepdim=True) / 127
        tensors[name] = (weight / scale).round().to(torch.int8)
        tensors[name + "_scale"] = scale
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    kind = {"num_bits": 8, "type": "int", "symmetric": True}
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head", "re:.*vision_tower.*", "re:.*multi_modal_projector.*", "re:.*lm_head.*"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": kind | {"strategy": "channel", "dynamic": False},
                "input_activations": kind | {"strategy": "token", "dynamic": True},
            }
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
