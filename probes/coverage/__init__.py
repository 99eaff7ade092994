"""The coverage probe: what a data set covers of what a model can represent, and how dense each sample is."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probes.coverage.probe import Source, coverage

__all__ = ["Source", "coverage"]


def __getattr__(name: str) -> Any:
    # Loaded where it is used: `tccd --help` need not wait for torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("probes.coverage.probe"), name)
