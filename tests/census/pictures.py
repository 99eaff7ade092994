"""Pictures of noise in the forms that the families' processors make, and how many tokens each stands for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.families import END, IMAGE, PAD, START, TEXT_IDS
from tests.oracle import vision_ids_of

Pixels = dict[str, Tensor]


def _noise(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def _plain(model: Any, generator: torch.Generator) -> Pixels:
    return {"pixel_values": _noise(generator, 1, 3, 16, 16)}


def _sized(model: Any, generator: torch.Generator) -> Pixels:
    return _plain(model, generator) | {"image_sizes": torch.tensor([[16, 16]])}


def _grid(model: Any, generator: torch.Generator) -> Pixels:
    vision = model.config.vision_config
    patch = getattr(vision, "patch_size", 4)
    frames = getattr(vision, "temporal_patch_size", None) or getattr(vision, "patch_temporal", 1)
    return {
        "pixel_values": _noise(generator, 16, 3 * frames * patch * patch),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }


def _grid_images(model: Any, generator: torch.Generator) -> Pixels:
    patch = model.config.vision_config.patch_size
    return {"pixel_values": _noise(generator, 16, 3, patch, patch), "image_grid_thw": torch.tensor([[1, 4, 4]])}


def _grid_merged(model: Any, generator: torch.Generator) -> Pixels:
    return _grid(model, generator) | {"image_merge_sizes": torch.tensor([2])}


def _tiles(model: Any, generator: torch.Generator) -> Pixels:
    return {"pixel_values": _noise(generator, 1, 2, 3, 16, 16), "image_sizes": torch.tensor([[16, 16]])}


def _patches(model: Any, generator: torch.Generator) -> Pixels:
    patch = model.config.vision_config.patch_size
    return {
        "pixel_values": _noise(generator, 1, 16, 3 * patch * patch),
        "spatial_shapes": torch.tensor([[4, 4]]),
        "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
    }


def _positioned(model: Any, generator: torch.Generator) -> Pixels:
    places = torch.tensor([[[x, y] for y in range(4) for x in range(4)]])
    vision = model.config.vision_config
    patch = getattr(vision, "model_patch_size", vision.patch_size)
    return {
        "pixel_values": torch.rand(1, 16, 3 * patch * patch, generator=generator),
        "image_position_ids": places,
    }


def _two_sizes(model: Any, generator: torch.Generator) -> Pixels:
    return _plain(model, generator) | {"high_res_pixel_values": _noise(generator, 1, 3, 16, 16)}


def _questioned(model: Any, generator: torch.Generator) -> Pixels:
    question = torch.tensor([_words(4, generator)])
    return _plain(model, generator) | {"qformer_input_ids": question, "qformer_attention_mask": torch.ones(1, 4)}


def _questioned_frames(model: Any, generator: torch.Generator) -> Pixels:
    return _questioned(model, generator) | {"pixel_values": _noise(generator, 1, 2, 3, 16, 16)}


def _named(name: str, *shape: int) -> Callable[[Any, torch.Generator], Pixels]:
    return lambda model, generator: {name: _noise(generator, *shape)}


#: Name -> what makes one picture for a model.
KINDS: dict[str, Callable[[Any, torch.Generator], Pixels]] = {
    "plain": _plain,
    "sized": _sized,
    "grid": _grid,
    "grid_images": _grid_images,
    "grid_merged": _grid_merged,
    "tiles": _tiles,
    "tiles_only": _named("pixel_values", 1, 1, 3, 16, 16),
    "patches": _patches,
    "positioned": _positioned,
    "two_sizes": _two_sizes,
    "questioned": _questioned,
    "questioned_frames": _questioned_frames,
    "listed": _named("pixel_values", 1, 1, 3, 16, 16),
    "image_patches": _named("image_patches", 1, 4, 48),
    "images": _named("pixel_values_images", 1, 3, 16, 16),
}


def batch_of(row: Any, model: Any, rows: Any, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of a model as its processor would make them.

    Args:
        row: the architecture.
        model: its tiny model.
        rows: `tests.tiny.Row`s.
        seed: of the words and the pictures.
    """
    generator = torch.Generator().manual_seed(seed)
    accepted = inspect.signature(model.forward).parameters
    kind = KINDS[row.pictures or kind_of(accepted)]
    sequences, pictures = [], []
    for spec in rows:
        ids = _words(spec.before, generator)
        for _ in range(spec.images):
            picture = kind(model, generator)
            pictures.append(picture)
            ids += [START, *[image_id(model)] * (row.tokens or tokens_of(model, picture)), END]
        sequences.append(ids + _words(spec.after, generator))
    width = max(map(len, sequences))
    input_ids = torch.full((len(sequences), width), PAD)
    mask = torch.zeros_like(input_ids)
    for i, ids in enumerate(sequences):
        input_ids[i, width - len(ids) :] = torch.tensor(ids)
        mask[i, width - len(ids) :] = 1
    batch = {"input_ids": input_ids, "attention_mask": mask}
    is_image = input_ids == image_id(model)
    for name in ("mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids"):
        if name in accepted:
            batch[name] = is_image.long()
    return batch | {name: torch.cat([one[name] for one in pictures]) for name in (pictures[0] if pictures else ())}


def kind_of(accepted: Any) -> str:
    """The kind of pictures that a forward's arguments show."""
    if "image_grid_thw" in accepted:
        return "grid"
    return "plain"


def image_id(model: Any) -> int:
    """The token that stands for an image's features."""
    return int(min(vision_ids_of(model), default=IMAGE))


def tokens_of(model: Any, picture: Pixels) -> int:
    """How many tokens a picture stands for: as many as it has features."""
    reader = next(one for one in (model, getattr(model, "model", None)) if hasattr(one, "get_image_features"))
    values, *rest = picture.items()
    with torch.no_grad():
        found = reader.get_image_features(values[1], **dict(rest), return_dict=True)
    features = getattr(found, "pooler_output", None)
    features = getattr(found, "last_hidden_state", found) if features is None else features
    parts = features if isinstance(features, tuple | list) else [features]
    return sum(part.numel() // part.shape[-1] for part in parts)


def _words(count: int, generator: torch.Generator) -> list[int]:
    return torch.randint(TEXT_IDS.start, TEXT_IDS.stop, (count,), generator=generator).tolist()
