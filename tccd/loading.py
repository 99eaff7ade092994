"""Loading a model and its processor, as the options of a command say."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tccd.errors import ConfigError, TCCDError


class Loaded(NamedTuple):
    """A model in eval mode on its device, and its processor."""

    model: Any
    processor: Any


def load_model(
    source: str,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> Loaded:
    """Load a vision-language model.

    Args:
        source: local folder or hub id.
        revision: branch, tag or commit on the hub.
        device: a torch device, or `auto`: the first of cuda, mps, cpu that is there.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: the checkpoint's own, but float32 for a float16
            checkpoint on a CPU, where half precision is slow and its small sums are lost.
        trust_remote_code: run Python code from the repository.

    Raises:
        ConfigError: no such device, or a revision of a local folder.
        TCCDError: the model can't be loaded, or not whole: weights are missing, of another shape or not finite;
            says which.
        UnsupportedModelError: it has no decoder that tccd can read.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    from tccd.decoder import find_decoder

    source = check_source(source, revision)
    place = _device(device)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        processor = AutoProcessor.from_pretrained(source, **options)
        model, found = AutoModelForImageTextToText.from_pretrained(
            source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except (torch.cuda.OutOfMemoryError, MemoryError):
        raise
    # transformers, the hub, safetensors and a repository's own code raise anything here.
    except Exception as error:
        raise TCCDError(f"can't load model {source[:200]!r}: {_reason(error)}") from error
    find_decoder(model)
    _check_weights(source, model, found)
    _check_files(source, processor, model)
    if dtype == "auto" and place.type == "cpu" and model.dtype == torch.float16:
        model = model.float()
    return Loaded(model.eval().to(place), processor)


_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def check_source(source: str, revision: str | None = None) -> str:
    """A model's local folder or hub id, `~` expanded; needs neither torch nor the hub.

    Raises:
        ConfigError: a local folder with a revision.
        TCCDError: a path where no folder is.
    """
    path = Path(source).expanduser()
    if source and _is(path.is_dir):
        if revision is not None:
            raise ConfigError(
                f"--revision {revision[:200]!r}: {source} is a local folder, which has no revisions; leave it out"
            )
        return str(path)
    if source and _is(path.is_file):
        raise TCCDError(f"can't load model {source[:200]!r}: it is a file; expected the folder that it is in")
    if not _HUB_ID.fullmatch(source):
        raise TCCDError(
            f"can't load model {source[:200]!r}: no such folder; expected a local one, or a hub id as owner/name"
        )
    return source


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a name that no file system takes
        return False


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:300] or type(error).__name__
    if "trust_remote_code" in str(error):
        return f"{text}; give --trust-remote-code if you trust it"
    if type(error).__name__ == "SafetensorError":
        return f"its weights are truncated or damaged ({text}); download or copy them again"
    if isinstance(error, RecursionError):
        return "a JSON file of it is nested too deeply to be read; download or copy it again"
    return f"{text}; expected a folder or hub id of an image-text-to-text model with its processor"


def _check_weights(source: str, model: Any, found: dict[str, Any]) -> None:
    """Refuse a model with weights that its checkpoint did not bring: they would be drawn at random."""
    import torch

    lacking = {
        "lacks": sorted(found["missing_keys"]),
        "has another shape for": sorted(str(key[0]) for key in found["mismatched_keys"]),
        "has values that are not finite in": [
            name
            for name, weight in model.named_parameters()
            if weight.is_floating_point() and weight.device.type != "meta" and not torch.isfinite(weight).all()
        ],
    }
    for fault, names in lacking.items():
        if names:
            total = len(list(model.parameters()))
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise TCCDError(
                f"can't load model {source[:200]!r}: its checkpoint {fault} {len(names)} of {total} weights "
                f"({shown}), so what it answers would mean nothing; download or copy it again"
            )


def _check_files(source: str, processor: Any, model: Any) -> None:
    """Refuse a processor that can't put a picture before its model, and damaged settings of generation."""
    from tccd.inputs import check_processor

    settings = Path(source, "generation_config.json")
    try:
        check_processor(processor, model.config)
        if settings.is_file():
            # transformers leaves a damaged one aside, and with it the tokens that end an answer.
            json.loads(settings.read_bytes())
    except TCCDError as error:
        raise TCCDError(f"can't load model {source[:200]!r}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise TCCDError(
            f"can't load model {source[:200]!r}: {settings.name} is no JSON ({str(error)[:200]}); download or "
            "copy it again"
        ) from error


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}; expected auto, cpu, cuda, cuda:N or mps") from error
    there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 1)
    if (device.index or 0) >= there:
        raise ConfigError(f"device {name!r} is not there; found {there} of type {device.type}")
    try:
        torch.ones(1, device=device).item()
    except Exception as error:  # each backend has its own
        raise ConfigError(
            f"device {name!r} can't be used: {str(error)[:200]}; expected cpu, cuda or mps"
        ) from error
    return device
