"""Tiny random vision-language models, one a family, and inputs for them without a processor.

Weights are seeded and large, so that hidden states differ between positions and a wrong one shows.

    model = tiny("qwen2_5_vl")
    batch = inputs("qwen2_5_vl", [Row(before=3, after=5), Row(images=2, after=2), Row(images=0)])
    model.generate(**batch, max_new_tokens=4, do_sample=False)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tests.families import (
    BOS,
    END,
    EOS,
    FAKE,
    FAMILIES,
    GLOBAL_MARK,
    HIDDEN,
    IMAGE,
    PAD,
    ROW_MARK,
    START,
    TEXT_IDS,
    VIDEO,
    VOCAB,
    config_of,
)

__all__ = [
    "BOS",
    "CAUSAL_FAMILIES",
    "END",
    "EOS",
    "FAMILIES",
    "HIDDEN",
    "IMAGE",
    "PAD",
    "START",
    "TEXT_IDS",
    "VIDEO",
    "VOCAB",
    "Row",
    "cached_tiny",
    "inputs",
    "row_of",
    "tiny",
]

#: Families whose positions before the text tail don't depend on it; PaliGemma's prefix attends to its prompt.
CAUSAL_FAMILIES = tuple(f for f in FAMILIES if f != "paligemma")


@dataclass(frozen=True)
class Row:
    """One prompt: `before` text tokens, images side by side, videos side by side, `after` text tokens."""

    images: int = 1
    before: int = 3
    after: int = 5
    videos: int = 0


def tiny(family: str, layers: int = 5, seed: int = 0, window: int = 6, **text: Any) -> Any:
    """A model of `family` in fp32 and eval mode; generation never stops early.

    Args:
        family: one of `FAMILIES`.
        layers: number of decoder layers.
        seed: of the weights.
        window: sliding window of Gemma3, whose layers alternate between sliding and full attention.
        text: overrides of the text config (`final_logit_softcapping=...`).
    """
    import transformers as hf

    name, config = config_of(family, layers, window, text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(hf, name)(config).eval()
    randomise(model, seed)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def randomise(model: Any, seed: int = 0) -> None:
    """Give a model seeded weights, large enough that hidden states differ between positions."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim < 2:
                p.add_(0.2 * noise)  # norms, biases, layer scales: near what they were, yet not uniform
            elif "embed" in key or "position" in key:
                p.copy_(noise if "gemma" not in model.config.model_type else 0.3 * noise)
            else:
                p.copy_(1.5 * noise / (p[0].numel() ** 0.5))
        # Special tokens are never the likeliest: a generated image token would have no image.
        head = model.get_output_embeddings()
        if head is not None:
            head.weight[: TEXT_IDS.start] = 0
            head.weight[TEXT_IDS.stop :] = 0


@lru_cache
def cached_tiny(family: str, **options: Any) -> Any:
    """`tiny`, built once a test session; don't change the model."""
    return tiny(family, **options)


def inputs(
    family: str, rows: Sequence[Row] | None = None, seed: int = 0, padding_side: str = "left"
) -> dict[str, Tensor]:
    """Inputs of `tiny(family)`, as its processor would make them.

    Args:
        family: one of `FAMILIES`.
        rows: one spec a row; a single default row when None. Only Qwen2.5-VL takes videos.
        seed: of the text tokens and the pixels.
        padding_side: "left" or "right".

    Returns:
        input_ids and attention_mask of shape (batch, sequence), and what the family needs beside them.
    """
    rows = [Row()] if rows is None else list(rows)
    if family != "qwen2_5_vl" and any(row.videos for row in rows):
        raise ValueError("only qwen2_5_vl has videos here")
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(TEXT_IDS.start, TEXT_IDS.stop, (count,), generator=generator).tolist()

    grids, video_grids, sequences = [], [], []
    for row in rows:
        ids = words(row.before)
        for _ in range(row.images):
            grid = (1, 4, 4 + 2 * (len(grids) % 2))  # images of two sizes where the family allows it
            grids.append(grid)
            ids += _image_ids(family, row.images, grid)
        for _ in range(row.videos):
            video_grids.append((2, 4, 4))
            ids += [START, *[VIDEO] * 8, END]
        sequences.append(ids + words(row.after))

    width = max(map(len, sequences))
    input_ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros_like(input_ids)
    for i, ids in enumerate(sequences):
        where = slice(width - len(ids), width) if padding_side == "left" else slice(0, len(ids))
        input_ids[i, where] = torch.tensor(ids)
        mask[i, where] = 1
    batch = {"input_ids": input_ids, "attention_mask": mask}
    is_image, is_video = input_ids == IMAGE, input_ids == VIDEO
    if family in ("qwen2_5_vl", "qwen3_vl", "glm4v"):
        batch["mm_token_type_ids"] = is_image.int() + 2 * is_video.int()
    if family == "gemma3":
        batch["token_type_ids"] = is_image.long()
    if family == "paligemma":
        batch["token_type_ids"] = torch.zeros_like(input_ids)  # 0: the prefix, which attends to itself
    batch.update(_pixels(family, rows, grids, video_grids, generator))
    return batch


def row_of(batch: dict[str, Tensor], rows: Sequence[Row], number: int) -> dict[str, Tensor]:
    """One row of `inputs(family, rows)` by itself, without padding and without the others' pixels."""
    real = batch["attention_mask"][number].bool()
    one = {k: v[number : number + 1, real] for k, v in batch.items() if v.shape == batch["input_ids"].shape}
    images = rows[number].images
    before = sum(row.images for row in rows[:number])
    pixels = batch["pixel_values"]
    if "pixel_attention_mask" in batch:  # Idefics3: by row
        names = ("pixel_values", "pixel_attention_mask")
        return one | {name: batch[name][number : number + 1, : 2 * images] for name in names}
    if "image_grid_thw" in batch:  # patches of all images one after the other
        sizes = batch["image_grid_thw"].prod(-1).tolist()
        start = sum(sizes[:before])
        one["pixel_values"] = pixels[start : start + sum(sizes[before : before + images])]
        return one | {"image_grid_thw": batch["image_grid_thw"][before : before + images]}
    one["pixel_values"] = pixels[before : before + images]
    if "image_sizes" in batch:
        one["image_sizes"] = batch["image_sizes"][before : before + images]
        one["batch_num_images"] = batch["batch_num_images"][number : number + 1]
    return one


def _image_ids(family: str, images_in_row: int, grid: tuple[int, int, int]) -> list[int]:
    if family in ("qwen2_5_vl", "qwen3_vl", "glm4v"):
        return [START, *[IMAGE] * (grid[1] * grid[2] // 4), END]
    if family == "llava":
        return [IMAGE] * 9
    if family == "llava_onevision":
        # base 2x2; a lone image has one tile more, with a newline after each of its two rows of patches
        return [IMAGE] * (4 + 2 * 3 if images_in_row == 1 else 4 + 1)
    if family in ("idefics3", "smolvlm"):
        return [FAKE, ROW_MARK, *[IMAGE] * 4, FAKE, GLOBAL_MARK, *[IMAGE] * 4, FAKE]
    if family in ("internvl", "gemma3"):
        return [START, *[IMAGE] * 4, END]
    return [IMAGE] * 4


def _pixels(
    family: str,
    rows: Sequence[Row],
    grids: list[tuple[int, int, int]],
    video_grids: list[tuple[int, int, int]],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    pixels: dict[str, Tensor] = {}
    if video_grids:
        pixels["pixel_values_videos"] = noise(sum(t * h * w for t, h, w in video_grids), 3 * 2 * 4 * 4)
        pixels["video_grid_thw"] = torch.tensor(video_grids)
    if not grids:
        return pixels
    if family in ("qwen2_5_vl", "qwen3_vl", "glm4v"):
        pixels["pixel_values"] = noise(sum(t * h * w for t, h, w in grids), 3 * 2 * 4 * 4)
        pixels["image_grid_thw"] = torch.tensor(grids)
    elif family == "llava":
        pixels["pixel_values"] = noise(len(grids), 3, 12, 12)
    elif family == "llava_onevision":
        pixels["pixel_values"] = noise(len(grids), 2, 3, 8, 8)
        pixels["image_sizes"] = torch.full((len(grids), 2), 8)
        pixels["batch_num_images"] = torch.tensor([row.images for row in rows])
    elif family in ("idefics3", "smolvlm"):
        most = max(row.images for row in rows)
        values = torch.zeros(len(rows), 2 * most, 3, 16, 16)
        for i, row in enumerate(rows):
            values[i, : 2 * row.images] = noise(2 * row.images, 3, 16, 16)
        pixels["pixel_values"] = values  # images that are all zero are padding
        pixels["pixel_attention_mask"] = torch.ones(len(rows), 2 * most, 16, 16, dtype=torch.bool)
    else:
        size = 8 if family == "paligemma" else 16
        pixels["pixel_values"] = noise(len(grids), 3, size, size)
    return pixels
