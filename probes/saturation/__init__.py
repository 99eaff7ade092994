"""From which layer on a model no longer needs the image: attention, states, and what withholding it costs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probes.saturation.probe import run

__all__ = ["run"]


def __getattr__(name: str) -> Any:
    # Loaded where it is used: `tccd --help` need not wait for torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("probes.saturation.probe"), name)
