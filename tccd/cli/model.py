"""Loading a model and its processor, as the options of a command say."""

from __future__ import annotations

import sys
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
        ConfigError: no such device.
        TCCDError: the model can't be loaded; says why.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    place = _device(device)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        processor = AutoProcessor.from_pretrained(source, **options)
        model = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype, **options)
        if dtype == "auto" and place.type == "cpu" and model.dtype == torch.float16:
            model = model.float()
        return Loaded(model.eval().to(place), processor)
    # transformers and the hub raise many types here; out of memory is none of them and keeps its traceback.
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        hint = (
            "give --trust-remote-code if you trust it"
            if "trust_remote_code" in str(error)
            else ("expected a folder or hub id of an image-text-to-text model with its processor")
        )
        raise TCCDError(f"can't load model {source!r}: {reason}; {hint}") from error


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
    return device
