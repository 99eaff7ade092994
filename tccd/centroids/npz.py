"""The reference release's `.npz` of centroids, read without ever loading a pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tccd.errors import BankError

_ARRAYS = ("text_centroids", "vis_centroids")


def read_npz(path: Path, text_layer: int, vision_layer: int) -> tuple[dict[Any, np.ndarray], Any]:
    """Arrays by (modality, layer), and the file's note (`metadata_json`), {} where it has none.

    The layers that the note names win over the arguments.

    Raises:
        BankError: not such an archive, or its note is not JSON.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in (*_ARRAYS, "metadata_json") if name in archive.files}
            found = list(archive.files)
    except Exception as error:  # a damaged archive fails in many ways: zip, zlib, struct, numpy
        raise BankError(f"{path} can't be read as .npz without pickle: {error}") from error
    note: Any = {}
    if "metadata_json" in arrays:
        try:
            note = json.loads(str(arrays.pop("metadata_json")))
        except (ValueError, RecursionError) as error:
            raise BankError(f"{path}: metadata_json is not JSON: {error}") from error
    if not arrays:
        held = ", ".join(found)[:200]
        raise BankError(f"{path} holds {held or 'nothing'}; expected text_centroids or vis_centroids")
    known = note if isinstance(note, dict) else {}
    layers = {
        "text_centroids": ("text", known.get("text_layer", text_layer)),
        "vis_centroids": ("vision", known.get("vision_layer", known.get("vis_layer", vision_layer))),
    }
    return {layers[name]: array for name, array in arrays.items()}, note
