"""The embeddings' fingerprint of a checkpoint on disk, read in a moment and without loading the model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tccd.decoder import fingerprint

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_TABLE, _NORM = "embed_tokens.weight", "norm.weight"


def folder(model: Any) -> Path | None:
    """Where the checkpoint of a `ModelConfig` lies: its folder, or the hub's cache; None before it is there."""
    if os.path.isdir(model.model):
        return Path(model.model)
    from huggingface_hub import try_to_load_from_cache

    for name in (INDEX, SINGLE):
        found = try_to_load_from_cache(model.model, name, revision=model.revision)
        if isinstance(found, str):
            return Path(found).parent
    return None


def embedding(checkpoint: Path) -> str | None:
    """The fingerprint that `tccd.decoder.identify` calls `embedding`.

    Returns:
        None where the text model's input embeddings and final norm can't be told by their names, or not read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        files = _files(checkpoint)
        tables = [name for name in files if name.endswith(_TABLE)]
        names = [*tables, *(t.removesuffix(_TABLE) + _NORM for t in tables)]
        if len(tables) != 1 or names[1] not in files:
            return None
        tensors = []
        for name in names:
            with safe_open(checkpoint / files[name], "pt") as file:
                tensors.append(file.get_tensor(name))
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError):
        return None  # the loaded model is compared later, whatever happens here
    return fingerprint(zip(("embedding", "norm"), tensors, strict=True))


def _files(checkpoint: Path) -> dict[str, str]:
    """The file of each tensor."""
    from safetensors import safe_open

    if (checkpoint / INDEX).is_file():
        return dict(json.loads((checkpoint / INDEX).read_text())["weight_map"])
    with safe_open(checkpoint / SINGLE, "pt") as file:
        return dict.fromkeys(file.keys(), SINGLE)
