"""What every report says of itself, whoever makes it."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

SCHEMA = "tccd-report/3"
READ = ("tccd-report/2",)
"""Older schemas that are still read."""


def envelope(
    title: str,
    config: Mapping[str, Any],
    versions: Mapping[str, str] | None = None,
    schema: str = SCHEMA,
) -> dict[str, Any]:
    """Schema, title, time, versions and configuration of a report or a benchmark.

    Args:
        title: of its page.
        config: what it was made with, as JSON values.
        versions: of packages, by name; those of this process when None.
        schema: of what is in it; that of the probes' reports by default.
    """
    return {
        "schema": schema,
        "title": title,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": dict(installed() if versions is None else versions),
        "config": dict(config),
    }


def installed(*more: str) -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on, as far as they are installed.

    Args:
        more: packages beside those of every result.
    """
    packages = ("tccd", "torch", "transformers", "numpy", "faiss-cpu", "scikit-learn", "scipy", "statsmodels")
    found = {"python": platform.python_version()}
    for package in (*packages, *more):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
