"""Contrastive decoding for vision-language models, text-centroid contrastive decoding (TCCD) among it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tccd.centroids.bank import CentroidBank
    from tccd.centroids.fit import fit_bank
    from tccd.decoding.config import Rule, TCCDConfig
    from tccd.decoding.huggingface import TCCD, Contrast
    from tccd.decoding.references import (
        blank_image,
        early_exit,
        mean_vision,
        no_vision,
        noised_image,
        other_prompt,
        text_centroid,
        vision_centroid,
    )
    from tccd.routing import Branch, Routed, load_branch

__version__ = "0.1.0"
__all__ = [
    "TCCD",
    "Branch",
    "CentroidBank",
    "Contrast",
    "Routed",
    "Rule",
    "TCCDConfig",
    "blank_image",
    "early_exit",
    "fit_bank",
    "load_branch",
    "mean_vision",
    "no_vision",
    "noised_image",
    "other_prompt",
    "text_centroid",
    "vision_centroid",
]

_HOMES = {
    "CentroidBank": "tccd.centroids.bank",
    "fit_bank": "tccd.centroids.fit",
    "Rule": "tccd.decoding.config",
    "TCCDConfig": "tccd.decoding.config",
    "TCCD": "tccd.decoding.huggingface",
    "Contrast": "tccd.decoding.huggingface",
    "blank_image": "tccd.decoding.references",
    "early_exit": "tccd.decoding.references",
    "mean_vision": "tccd.decoding.references",
    "no_vision": "tccd.decoding.references",
    "noised_image": "tccd.decoding.references",
    "other_prompt": "tccd.decoding.references",
    "text_centroid": "tccd.decoding.references",
    "vision_centroid": "tccd.decoding.references",
    "Branch": "tccd.routing",
    "Routed": "tccd.routing",
    "load_branch": "tccd.routing",
}


def __getattr__(name: str) -> Any:
    # Names are loaded where they are used: `tccd --help` need not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
