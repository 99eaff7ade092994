"""Text-centroid contrastive decoding (TCCD) for vision-language models, and the centroids behind it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tccd.centroids.bank import CentroidBank
    from tccd.centroids.fit import fit_bank
    from tccd.decoding.config import TCCDConfig
    from tccd.decoding.huggingface import TCCD

__version__ = "0.1.0"
__all__ = ["TCCD", "CentroidBank", "TCCDConfig", "fit_bank"]

_HOMES = {
    "CentroidBank": "tccd.centroids.bank",
    "fit_bank": "tccd.centroids.fit",
    "TCCDConfig": "tccd.decoding.config",
    "TCCD": "tccd.decoding.huggingface",
}


def __getattr__(name: str) -> Any:
    # Names are loaded where they are used: `tccd --help` need not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
